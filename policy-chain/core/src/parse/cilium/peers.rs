//! The peers of a rule: one kind of them.

use super::super::cursor::{Cursor, Faults, Fields, Report};
use super::super::metadata::NameForm;
use super::{application, cidr, each, groups, selector};
use crate::flow::Direction;
use crate::model::cilium::{CidrBlock, CidrRule, CiliumPeers, Entity, ServiceSelector};
use crate::model::{Text, Usable};

/// Whose peers.
#[derive(Clone, Copy)]
pub(super) struct Peers<'a> {
    /// Direction of the rule.
    pub(super) direction: Direction,
    /// Namespace of the policy; none for a cluster-wide one.
    pub(super) namespace: Option<&'a Text>,
    /// Whether it is a deny rule.
    pub(super) deny: bool,
}

#[derive(Clone, Copy)]
enum Kind {
    Endpoints,
    Cidrs,
    CidrSet,
    Entities,
    Services,
    Groups,
    Nodes,
    Names,
}

const INGRESS: &[(&str, Kind)] = &[
    ("fromEndpoints", Kind::Endpoints),
    ("fromCIDR", Kind::Cidrs),
    ("fromCIDRSet", Kind::CidrSet),
    ("fromEntities", Kind::Entities),
    ("fromGroups", Kind::Groups),
    ("fromNodes", Kind::Nodes),
];

const EGRESS: &[(&str, Kind)] = &[
    ("toEndpoints", Kind::Endpoints),
    ("toCIDR", Kind::Cidrs),
    ("toCIDRSet", Kind::CidrSet),
    ("toEntities", Kind::Entities),
    ("toServices", Kind::Services),
    ("toGroups", Kind::Groups),
    ("toNodes", Kind::Nodes),
    ("toFQDNs", Kind::Names),
];

/// Reads the peer fields. None: there is none of them. A list that is there and empty is nobody, whichever it is
/// (CVE-2025-64715 was an empty list that became an absent one).
pub(super) fn read(fields: &mut Fields<'_>, of: Peers<'_>, report: &mut Report) -> Usable<Option<CiliumPeers>> {
    let mut faults = Faults::default();
    let mut given = false;
    let mut filled: Vec<(&str, Option<CiliumPeers>)> = Vec::new();
    let (known, removed) = match of.direction {
        Direction::Ingress => (INGRESS, "fromRequires"),
        Direction::Egress => (EGRESS, "toRequires"),
    };
    for (name, kind) in known {
        let Some(field) = fields.take(name) else { continue };
        given = true;
        if of.deny && matches!(kind, Kind::Names) {
            faults.keep::<()>(Err(report.unusable(&field.path, "is not allowed in a deny rule")));
            continue;
        }
        match faults.keep(field.elements(report)) {
            Some(elements) if elements.is_empty() => {}
            Some(elements) => {
                filled.push((*name, faults.keep(kind.read(&elements, of.namespace, report))));
            }
            None => {}
        }
    }
    if let Some(field) = fields.take(removed) {
        // The schema has MaxItems=0 for it.
        if !field.elements(report).is_ok_and(|list| list.is_empty()) {
            let message = "was removed from the API (Cilium 1.19); write endpointSelector and peers that say the same";
            faults.keep::<()>(Err(report.refused(&field.path, message)));
        }
    }
    if let [(one, _), (other, _), ..] = filled.as_slice() {
        let message = format!("Combining {} and {} is not supported yet", go_name(one), go_name(other));
        faults.keep::<()>(Err(report.refused(fields.path(), message)));
    }
    let peers = match filled.pop() {
        Some((_, peers)) => peers,
        None => given.then_some(CiliumPeers::Nothing),
    };
    faults.or(peers)
}

/// A field as Cilium names it in messages: `FromCIDRSet`.
fn go_name(field: &str) -> String {
    let mut characters = field.chars();
    characters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(characters).collect()
}

impl Kind {
    fn read(self, elements: &[Cursor<'_>], namespace: Option<&Text>, report: &mut Report) -> Usable<CiliumPeers> {
        Ok(match self {
            Self::Endpoints => CiliumPeers::Endpoints(each(elements, report, |cursor, report| {
                selector::peer(cursor, namespace, report)
            })?),
            Self::Cidrs => CiliumPeers::Cidrs(each(elements, report, |cursor, report| {
                let block = cidr::block_or_address(cursor, report)?;
                Ok(CidrRule { block: CidrBlock::Cidr(block), except: Vec::new() })
            })?),
            Self::CidrSet => CiliumPeers::Cidrs(each(elements, report, cidr::rule)?),
            Self::Entities => CiliumPeers::Entities(each(elements, report, entity)?),
            Self::Services => CiliumPeers::Services(each(elements, report, service)?),
            Self::Groups => CiliumPeers::Groups(each(elements, report, groups::read)?),
            Self::Nodes => CiliumPeers::Nodes(each(elements, report, selector::plain)?),
            Self::Names => CiliumPeers::Names(each(elements, report, application::name)?),
        })
    }
}

fn entity(cursor: &Cursor<'_>, report: &mut Report) -> Usable<Entity> {
    Ok(match cursor.text(report)? {
        "all" => Entity::All,
        "world" => Entity::World,
        "world-ipv4" => Entity::WorldIpv4,
        "world-ipv6" => Entity::WorldIpv6,
        // A mesh of one cluster.
        "cluster" | "cluster-mesh" => Entity::Cluster,
        "host" => Entity::Host,
        "init" => Entity::Init,
        "ingress" => Entity::Ingress,
        "unmanaged" => Entity::Unmanaged,
        "remote-node" => Entity::RemoteNode,
        "health" => Entity::Health,
        "none" => Entity::None,
        "kube-apiserver" => Entity::KubeApiserver,
        _ => return Err(report.refused(&cursor.path, format!("unsupported entity: {}", cursor.shown()))),
    })
}

/// An element of `toServices`.
fn service(cursor: &Cursor<'_>, report: &mut Report) -> Usable<ServiceSelector> {
    let mut fields = cursor.fields(report)?;
    let (named, labelled) = (fields.take("k8sService"), fields.take("k8sServiceSelector"));
    let service = match (named, labelled) {
        (Some(named), None) => named_service(&named, report),
        (None, Some(labelled)) => labelled_services(&labelled, report),
        _ => Err(report.unusable(&cursor.path, "must have exactly one of k8sService and k8sServiceSelector")),
    };
    fields.finish(report)?;
    service
}

fn named_service(cursor: &Cursor<'_>, report: &mut Report) -> Usable<ServiceSelector> {
    let mut fields = cursor.fields(report)?;
    let name = fields.required(report, "serviceName").and_then(|field| label(&field, report));
    let namespace = match fields.take("namespace") {
        Some(field) if field.value != "" => label(&field, report).map(Some),
        _ => Ok(None),
    };
    fields.finish(report)?;
    Ok(ServiceSelector::Named { name: name?, namespace: namespace? })
}

fn labelled_services(cursor: &Cursor<'_>, report: &mut Report) -> Usable<ServiceSelector> {
    let mut fields = cursor.fields(report)?;
    let selector = fields.required(report, "selector").and_then(|field| selector::plain(&field, report));
    let namespace = match fields.take("namespace") {
        Some(field) if field.value != "" => label(&field, report).map(Some),
        _ => Ok(None),
    };
    fields.finish(report)?;
    Ok(ServiceSelector::Labels { namespace: namespace?, selector: selector? })
}

fn label(cursor: &Cursor<'_>, report: &mut Report) -> Usable<Text> {
    let text = cursor.text(report)?;
    match NameForm::Label.broken_rule(text) {
        None => Ok(text.into()),
        Some(rule) => Err(report.refused(&cursor.path, format!("{} is not a name: {rule}", cursor.shown()))),
    }
}
