//! What the metadata service tells an instance about itself, by path (EC2 User Guide, "Instance metadata categories").

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::time::Duration;

use serde::Serialize;
use sluice_contract::id::InstanceId;

use crate::limits::{InstanceType, instance_type};
use crate::live::iso8601;
use crate::model::Settings;
use crate::model::state::{Eni, Instance, State};
use crate::names;

/// The role that every instance has.
pub const ROLE: &str = "vpcsim-node";
/// How long its temporary credentials are good for.
const CREDENTIALS_FOR: Duration = Duration::from_secs(6 * 3600);

/// Leaves by path below the version, e.g. `meta-data/mac`.
pub type Tree = BTreeMap<String, String>;

/// The leaves that an instance sees of `state` as it was `at`; nothing when there is no such instance.
#[must_use]
pub fn of(state: &State, settings: &Settings, id: &InstanceId, at: Duration) -> Option<Tree> {
    let instance = state.instances.get(id)?;
    let primary = state.enis.get(&instance.primary_eni)?;
    let mut leaves = Leaves { tree: Tree::new(), prefix: "meta-data/".to_owned() };
    let private_name = names::private(&settings.region, primary.primary);
    leaves
        .put("ami-id", &instance.image)
        .put("ami-launch-index", 0)
        .put("hostname", &private_name)
        .put("instance-action", "none")
        .put("instance-id", id)
        .put("instance-life-cycle", "on-demand")
        .put("instance-type", &instance.instance_type)
        .put("local-hostname", &private_name)
        .put("local-ipv4", primary.primary)
        .put("mac", primary.mac)
        .put("profile", "default-hvm")
        .put("reservation-id", &instance.reservation)
        .put("security-groups", group_names(state, primary))
        .put("placement/availability-zone", &instance.availability_zone)
        .put("placement/availability-zone-id", names::zone_id(&settings.region, &instance.availability_zone))
        .put("placement/region", &settings.region)
        .put("services/domain", "amazonaws.com")
        .put("services/partition", "aws")
        .put("iam/info", json(&info(settings, at)))
        .put(&format!("iam/security-credentials/{ROLE}"), json(&credentials(settings, at)));
    if let Some(address) = primary.ipv6.first() {
        leaves.put("ipv6", address);
    }
    if let Some(association) = primary.association {
        leaves
            .put("public-ipv4", association.public_ip)
            .put("public-hostname", names::public(&settings.region, association.public_ip));
    }
    let limits = instance_type(&instance.instance_type);
    for link in state.links(at).filter(|link| link.instance == id) {
        leaves.prefix = format!("meta-data/network/interfaces/macs/{}/", link.eni.mac);
        leaves.put("device-number", link.device);
        if limits.is_some_and(|limits| limits.cards.len() > 1) {
            leaves.put("network-card", link.card);
        }
        interface(&mut leaves, state, settings, link.eni);
    }
    leaves.prefix = "dynamic/".to_owned();
    leaves.put("instance-identity/document", json(&document(instance, primary, limits, settings)));
    Some(leaves.tree)
}

fn interface(leaves: &mut Leaves, state: &State, settings: &Settings, eni: &Eni) {
    let addresses = std::iter::once(&eni.primary).chain(&eni.secondaries);
    leaves
        .put("interface-id", &eni.id)
        .put("mac", eni.mac)
        .put("owner-id", &settings.account)
        .put("local-hostname", names::private(&settings.region, eni.primary))
        .put("local-ipv4s", lines(addresses))
        .put("subnet-id", &eni.subnet)
        .put("vpc-id", &eni.vpc)
        .put("security-group-ids", lines(&eni.groups))
        .put("security-groups", group_names(state, eni))
        .some("ipv4-prefix", &eni.prefixes)
        .some("ipv6s", &eni.ipv6)
        .some("ipv6-prefix", &eni.ipv6_prefixes);
    if let Some(subnet) = state.subnets.get(&eni.subnet) {
        leaves.put("subnet-ipv4-cidr-block", subnet.cidr).some("subnet-ipv6-cidr-blocks", subnet.ipv6_cidr.as_ref());
    }
    if let Some(vpc) = state.vpcs.get(&eni.vpc) {
        leaves
            .some("vpc-ipv4-cidr-block", vpc.cidrs.first())
            .some("vpc-ipv4-cidr-blocks", &vpc.cidrs)
            .some("vpc-ipv6-cidr-blocks", &vpc.ipv6_cidrs);
    }
    if let Some(association) = eni.association {
        leaves
            .put("public-ipv4s", association.public_ip)
            .put("public-hostname", names::public(&settings.region, association.public_ip))
            .put(&format!("ipv4-associations/{}", association.public_ip), association.private_ip);
    }
}

/// The body for a path: a leaf's value, or the names in a directory with `/` after those that are directories. A path may
/// end with `/` or not; boto3 asks for leaves with one.
#[must_use]
pub fn look_up(tree: &Tree, path: &str) -> Option<String> {
    let path = path.strip_prefix('/')?;
    if path.is_empty() {
        return Some("latest".to_owned());
    }
    let (version, rest) = path.split_once('/').unwrap_or((path, ""));
    let dated = version.len() == 10 && version.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    if version != "latest" && !dated {
        return None;
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if let Some(value) = tree.get(rest) {
        return Some(value.clone());
    }
    let directory = match rest {
        "" => String::new(),
        inside => format!("{inside}/"),
    };
    let mut names = BTreeSet::new();
    for (leaf, _) in tree.range(directory.clone()..) {
        let Some(below) = leaf.strip_prefix(&directory) else { break };
        names.insert(match below.split_once('/') {
            Some((name, _)) => format!("{name}/"),
            None => below.to_owned(),
        });
    }
    (!names.is_empty()).then(|| lines(&names))
}

struct Leaves {
    tree: Tree,
    prefix: String,
}

impl Leaves {
    fn put(&mut self, name: &str, value: impl Display) -> &mut Self {
        self.tree.insert(format!("{}{name}", self.prefix), value.to_string());
        self
    }

    /// Lists are absent when empty, as on AWS: the client is told 404.
    fn some<T: Display>(&mut self, name: &str, values: impl IntoIterator<Item = T>) -> &mut Self {
        let text = lines(values);
        if text.is_empty() { self } else { self.put(name, text) }
    }
}

fn lines<T: Display>(values: impl IntoIterator<Item = T>) -> String {
    values.into_iter().map(|value| value.to_string()).collect::<Vec<_>>().join("\n")
}

fn group_names(state: &State, eni: &Eni) -> String {
    lines(eni.groups.iter().filter_map(|id| state.security_groups.get(id)).map(|group| &group.name))
}

fn json(value: &impl Serialize) -> String {
    // Strings and nothing else: writing them cannot fail.
    serde_json::to_string_pretty(value).unwrap_or_default()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    account_id: &'a str,
    architecture: &'a str,
    availability_zone: &'a str,
    image_id: &'a str,
    instance_id: &'a str,
    instance_type: &'a str,
    pending_time: String,
    private_ip: String,
    region: &'a str,
    version: &'a str,
}

fn document<'a>(
    instance: &'a Instance,
    primary: &Eni,
    limits: Option<&InstanceType>,
    settings: &'a Settings,
) -> Document<'a> {
    Document {
        account_id: &settings.account,
        architecture: limits.map_or("x86_64", |limits| limits.architecture),
        availability_zone: &instance.availability_zone,
        image_id: &instance.image,
        instance_id: instance.id.as_str(),
        instance_type: &instance.instance_type,
        pending_time: iso8601(settings.epoch.saturating_add(instance.launched)),
        private_ip: primary.primary.to_string(),
        region: &settings.region,
        version: "2017-09-30",
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Info {
    code: &'static str,
    last_updated: String,
    instance_profile_arn: String,
    instance_profile_id: &'static str,
}

fn info(settings: &Settings, at: Duration) -> Info {
    Info {
        code: "Success",
        last_updated: iso8601(settings.epoch.saturating_add(at)),
        instance_profile_arn: format!("arn:aws:iam::{}:instance-profile/{ROLE}", settings.account),
        instance_profile_id: "AIPAVPCSIMVPCSIMVPCS",
    }
}

/// Temporary credentials in AWS's form. They open nothing: the EC2 server checks no signature.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Credentials {
    code: &'static str,
    last_updated: String,
    r#type: &'static str,
    access_key_id: &'static str,
    secret_access_key: &'static str,
    token: &'static str,
    expiration: String,
}

fn credentials(settings: &Settings, at: Duration) -> Credentials {
    let now = settings.epoch.saturating_add(at);
    Credentials {
        code: "Success",
        last_updated: iso8601(now),
        r#type: "AWS-HMAC",
        access_key_id: "ASIAVPCSIMVPCSIMVPCS",
        secret_access_key: "vpcsim-has-no-secrets",
        token: "vpcsim",
        expiration: iso8601(now.saturating_add(CREDENTIALS_FOR)),
    }
}
