//! What differs between an attachment and what it should be.

use sluice_contract::cni::Interface;
use sluice_hostnet::branch::is_vlan;
use sluice_hostnet::desired::Desired;
use sluice_hostnet::host::{Host, ObserveError};
use sluice_hostnet::netlink::OpenError;
use sluice_hostnet::netns::Namespace;
use sluice_hostnet::plan::plan;

use super::{are_ends_of_one_veth, is_host_end_of, mac_text};
use crate::layout::Layout;

/// Why an attachment could not be looked at.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookError {
    /// No socket.
    #[error("cannot speak to the kernel")]
    Open(#[source] OpenError),
    /// It could not be read.
    #[error("cannot read what there is")]
    Observe(#[source] ObserveError),
}

/// What differs, a line each. `reported` is the pod's interface as the result has it: a later plugin may have set
/// another MAC address or MTU. Sysctls and what later plugins have added are theirs to judge.
pub(crate) async fn differences(
    layout: &Layout,
    netns: &Namespace,
    reported: Option<&Interface>,
) -> Result<Vec<String>, LookError> {
    let mut faults = Vec::new();
    let host = Host::current().map_err(LookError::Open)?;
    let pod = Host::of(netns.clone()).map_err(LookError::Open)?;

    let mut wanted = layout.pod();
    wanted.sysctls.clear();
    for link in &mut wanted.links {
        link.mtu = reported.and_then(|interface| interface.mtu);
    }
    let mac = reported.and_then(|interface| interface.mac).unwrap_or(layout.pod_mac);
    let in_pod = pod.observe(&wanted.view()).await.map_err(LookError::Observe)?;
    let ifname = &layout.attachment.ifname;
    let pod_end = in_pod.link(ifname);
    match pod_end {
        None => faults.push(format!("the sandbox has no interface {ifname}")),
        Some(link) if link.mac != Some(mac) => {
            faults.push(format!("{ifname} has MAC address {}, not {mac}", mac_text(link.mac)));
        }
        Some(_) => {}
    }
    faults.extend(plan(&in_pod, &wanted).iter().map(|planned| format!("in the sandbox: {planned}")));

    let settings = layout.host();
    let uplink = layout.uplink().unwrap_or_default();
    let wanted = Desired {
        links: settings.links.into_iter().chain(uplink.links).collect(),
        rules: settings.rules,
        routes: uplink.routes.into_iter().chain(layout.host_routes().routes).collect(),
        ..Desired::default()
    };
    let on_host = host.observe(&wanted.view()).await.map_err(LookError::Observe)?;
    match on_host.link(&layout.host) {
        None => faults.push(format!("the host has no interface {}", layout.host)),
        Some(link) if !is_host_end_of(link, &layout.attachment) => {
            faults.push(format!("the host's {} is not of this attachment", layout.host));
        }
        Some(link) if pod_end.is_some_and(|pod_end| !are_ends_of_one_veth(pod_end, link)) => {
            faults.push(format!("{ifname} and the host's {} are not ends of one veth", layout.host));
        }
        Some(_) => {}
    }
    if let Some(branch) = &layout.branch {
        match on_host.link(&branch.link) {
            None => faults.push(format!("the host has no interface {}", branch.link)),
            Some(link) if !is_vlan(link) || link.mac != Some(branch.mac) => {
                faults.push(format!("the host's {} is not the VLAN of {}", branch.link, branch.mac));
            }
            Some(_) => {}
        }
    }
    faults.extend(plan(&on_host, &wanted).iter().map(|planned| format!("on the host: {planned}")));
    Ok(faults)
}
