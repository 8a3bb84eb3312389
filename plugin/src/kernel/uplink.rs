//! The VLAN by which a pod with security groups of its own leaves: made before the pod's veth, taken away after it.

use nix::errno::Errno;
use sluice_contract::cni::{ErrorCode, chain};
use sluice_contract::id::{IfName, MacAddr};
use sluice_contract::node::veth;
use sluice_hostnet::branch::{PodBranch, is_vlan, strict_rules_beside};
use sluice_hostnet::desired::LinkSettings;
use sluice_hostnet::host::{ExecuteError, Host, ObserveError};
use sluice_hostnet::netlink::{LinkError, VlanSpec};
use sluice_hostnet::plan::{Op, Planned, plan};
use sluice_hostnet::state::{Link, LinkKind, Observed};

use crate::layout::Layout;

/// Why the VLAN could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum UplinkError {
    #[error("cannot look for the trunk ENI's link")]
    Look(#[source] ObserveError),
    #[error(
        "no link has the MAC address {mac} of the node's trunk ENI; EC2 takes some seconds to plug it in, and the runtime will \
         try again"
    )]
    NoTrunk { mac: MacAddr },
    #[error("the host has an interface {name} already, which is no VLAN")]
    NameTaken { name: IfName },
    #[error("cannot remove the stale {name}")]
    Replace {
        name: IfName,
        #[source]
        source: LinkError,
    },
    #[error(
        "this node's kernel has no VLANs, which pods with security groups of their own need: load its module 8021q, or run \
         such pods on nodes whose kernel has CONFIG_VLAN_8021Q"
    )]
    NoVlans(#[source] LinkError),
    #[error("cannot make {name}")]
    Create {
        name: IfName,
        #[source]
        source: LinkError,
    },
    #[error("cannot mark {name}")]
    Mark {
        name: IfName,
        #[source]
        source: LinkError,
    },
    #[error("cannot set up {name}")]
    Execute {
        name: IfName,
        #[source]
        source: ExecuteError,
    },
}

impl UplinkError {
    fn create(name: &IfName, source: LinkError) -> Self {
        match source.errno() {
            // "Unknown device type".
            Some(Errno::EOPNOTSUPP) => Self::NoVlans(source),
            _ => Self::Create { name: name.clone(), source },
        }
    }

    /// The code on the wire.
    pub(super) const fn code(&self) -> ErrorCode {
        match self {
            Self::NameTaken { .. } => ErrorCode::Conflict,
            _ => ErrorCode::Kernel,
        }
    }
}

/// The VLAN of an attachment.
#[derive(Debug)]
pub(super) struct Uplink {
    link: Link,
    /// Whether this ADD has made it.
    made: bool,
}

/// Makes the VLAN, or brings it to what it should be. One that an earlier pod has left is replaced: EC2 gives the number of a
/// VLAN to one branch ENI at a time, and ipamd says that it is this pod's.
pub(super) async fn raise(layout: &Layout, branch: &PodBranch, host: &Host) -> Result<Uplink, UplinkError> {
    let wanted = branch.uplink(&layout.host, layout.mtu);
    let mut seen = host.observe(&wanted.view()).await.map_err(UplinkError::Look)?;
    let is_trunk =
        |link: &&Link| link.mac == Some(branch.trunk_mac) && matches!(link.kind, LinkKind::Physical | LinkKind::Veth);
    let trunk = seen.links.iter().find(is_trunk).cloned().ok_or(UplinkError::NoTrunk { mac: branch.trunk_mac })?;
    let uplink = match seen.link(&branch.link).cloned() {
        Some(link) if branch.is_link(&link, trunk.index) => Uplink { link, made: false },
        Some(link) if !is_vlan(&link) => return Err(UplinkError::NameTaken { name: link.name }),
        stale => {
            if let Some(Link { index, name, .. }) = stale {
                host.netlink()
                    .delete_link(index)
                    .await
                    .map_err(|source| UplinkError::Replace { name: name.clone(), source })?;
                // With it went all that stood on it.
                seen.links.retain(|link| link.index != index);
                seen.routes.retain(|route| route.dev.as_ref() != Some(&name));
            }
            let spec = VlanSpec {
                name: &branch.link,
                parent: trunk.index,
                vlan: branch.vlan,
                mac: branch.mac,
                mtu: layout.mtu,
            };
            let link =
                host.netlink().create_vlan(&spec).await.map_err(|source| UplinkError::create(&branch.link, source))?;
            seen.links.push(link.clone());
            seen.sysctls.clear();
            Uplink { link, made: true }
        }
    };
    match furnish(layout, branch, host, &seen, &trunk, &uplink.link).await {
        Ok(()) => Ok(uplink),
        Err(error) => {
            // What could not be taken back is found by the DEL, which follows every ADD that fails.
            drop(lower(layout, branch, host, &uplink).await);
            Err(error)
        }
    }
}

async fn furnish(
    layout: &Layout,
    branch: &PodBranch,
    host: &Host,
    seen: &Observed,
    trunk: &Link,
    link: &Link,
) -> Result<(), UplinkError> {
    let name = || branch.link.clone();
    let alias = veth::alias(&layout.attachment);
    if link.alias.as_ref() != Some(&alias) {
        let marked = host.netlink().set_alias(link.index, &alias).await;
        marked.map_err(|source| UplinkError::Mark { name: name(), source })?;
    }
    let mut wanted = branch.uplink(&layout.host, layout.mtu);
    // A VLAN cannot be up before its link is.
    wanted.links.insert(0, LinkSettings { dev: trunk.name.clone(), up: Some(true), mtu: None });
    let mut ops = plan(seen, &wanted);
    let earlier = strict_rules_beside(&seen.rules, &layout.host, branch.table);
    ops.extend(
        earlier.map(|rule| Planned::new(Op::DeleteRule(rule.clone()), "an earlier pod of this name has left it")),
    );
    let known = [trunk.clone(), link.clone()];
    let done = host.execute_with(&ops, &known).await;
    done.map(drop).map_err(|source| UplinkError::Execute { name: name(), source })
}

/// Takes back what this ADD has made. Answers what is left.
pub(super) async fn lower(layout: &Layout, branch: &PodBranch, host: &Host, uplink: &Uplink) -> Vec<String> {
    let mut left = Vec::new();
    if !uplink.made {
        return left;
    }
    if let Err(cause) = host.netlink().delete_link(uplink.link.index).await {
        left.push(format!("left behind: {}: {}", branch.link, chain(&cause)));
    }
    let rules = branch.uplink(&layout.host, layout.mtu).rules;
    let ops: Vec<_> = rules.into_iter().map(|rule| Planned::new(Op::DeleteRule(rule), "the ADD has failed")).collect();
    if let Err(cause) = host.execute(&ops).await {
        left.push(format!("left behind: rules of {}: {}", branch.link, chain(&cause)));
    }
    left
}
