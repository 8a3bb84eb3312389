//! CHECK: is the attachment still as ADD said? Compared with the kernel and with ipamd's ledger.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use sluice_contract::cni::{AddResult, EniConf, ErrorCode, Failure, NetConf, chain};
use sluice_contract::id::{Attachment, ContainerId, IfName, InvalidId, PodRef};
use sluice_contract::node::{nic, veth};
use sluice_contract::rpc::CheckRequest;
use sluice_hostnet::plugin::{on_runtime, sandbox};

use crate::del::{addresses_of, further_in};
use crate::ipamd::Ipamd;
use crate::kernel;
use crate::layout::{self, Layout};

/// How long a CHECK waits for an ipamd that is gone.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long it waits for an answer.
const DEADLINE: Duration = Duration::from_secs(10);

pub(crate) fn run(
    conf: &NetConf,
    container: ContainerId,
    netns_path: &Path,
    ifname: IfName,
    pod: &PodRef,
) -> Result<(), Failure> {
    let options = EniConf::of(conf)?;
    // NetConf::parse has made sure of it.
    let prev_result = conf.prev_result()?.unwrap_or_default();
    let attachment = Attachment { container, ifname, network: conf.name.clone() };
    let netns = sandbox(netns_path)?;
    let patience = PATIENCE.min(options.deadline);
    let ipamd = Ipamd { socket: &options.ipamd_socket, deadline: Instant::now() + DEADLINE, patience };
    let reply = ipamd.check(CheckRequest { attachment: attachment.clone() })?;
    let host = host_name(&options, pod, &attachment, &prev_result)
        .map_err(|error| Failure::of(ErrorCode::InvalidConfig, &error))?;
    let further = |of: &Attachment| host_name(&options, pod, of, &prev_result);
    let layouts = layout::layouts(&attachment, &host, further, options.mtu, reply)
        .map_err(|error| Failure::of(ErrorCode::CheckFailed, &error))?;

    let mut faults = Vec::new();
    let reported = further_in(Some(&prev_result), &attachment);
    for further in reported.into_iter().filter_map(|index| nic::attachment(&attachment, index)) {
        if layouts.iter().all(|layout| layout.attachment != further) {
            faults.push(format!("prevResult has {}, for which ipamd holds no address", further.ifname));
        }
    }
    for layout in &layouts {
        faults.extend(compare(&prev_result, layout));
        let ifname = layout.attachment.ifname.as_str();
        let reported = prev_result.interfaces.iter().find(|i| i.name == ifname && i.sandbox.is_some());
        faults.extend(on_runtime(kernel::differences(layout, &netns, reported))?.map_err(|error| {
            Failure::new(ErrorCode::Kernel, format!("cannot look at {}: {}", layout.attachment, chain(&error)))
        })?);
    }
    if faults.is_empty() {
        return Ok(());
    }
    Err(Failure::new(ErrorCode::CheckFailed, format!("{attachment} is not as ADD left it: {}", faults.join("; "))))
}

/// The host's end: as ADD has reported it, else as it would be called now.
fn host_name(
    options: &EniConf,
    pod: &PodRef,
    attachment: &Attachment,
    prev_result: &AddResult,
) -> Result<IfName, InvalidId> {
    let host_mac = veth::mac(veth::End::Host, attachment);
    let reported = prev_result.interfaces.iter().find(|i| i.sandbox.is_none() && i.mac == Some(host_mac));
    match reported.and_then(|interface| IfName::new(&interface.name).ok()) {
        Some(name) => Ok(name),
        None => veth::host_name(&options.veth_prefix, pod, attachment),
    }
}

/// What the result and ipamd disagree about.
fn compare(prev_result: &AddResult, layout: &Layout) -> Vec<String> {
    let ifname = &layout.attachment.ifname;
    let mut faults = Vec::new();
    if !prev_result.interfaces.iter().any(|i| i.name == ifname.as_str() && i.sandbox.is_some()) {
        faults.push(format!("prevResult has no interface {ifname} in a sandbox"));
    }
    let reported: BTreeSet<IpAddr> = addresses_of(Some(prev_result), ifname).into_iter().collect();
    let held: BTreeSet<IpAddr> = layout.addresses.iter().map(|address| address.ip).collect();
    for ip in reported.difference(&held) {
        faults.push(format!("prevResult has {ip}, which ipamd does not hold for it"));
    }
    for ip in held.difference(&reported) {
        faults.push(format!("ipamd holds {ip} for it, which prevResult does not have"));
    }
    faults
}
