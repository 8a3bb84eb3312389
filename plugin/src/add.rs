//! ADD.

use std::path::Path;
use std::time::{Duration, Instant};

use sluice_contract::cni::{AddResult, EniConf, ErrorCode, Failure, NetConf, chain};
use sluice_contract::id::{Attachment, ContainerId, IfName, PodRef};
use sluice_contract::node::{nic, veth};
use sluice_contract::rpc::{AddRequest, DelRequest};
use sluice_hostnet::plugin::{on_runtime, sandbox};

use crate::gate::Gate;
use crate::ipamd::Ipamd;
use crate::kernel;
use crate::{del, layout, note};

/// How long an ADD waits for an ipamd that is gone.
const PATIENCE: Duration = Duration::from_secs(5);

/// Capabilities (<https://www.cni.dev/docs/conventions/>) that would be broken by passing them over.
const UNSUPPORTED: [&str; 4] = ["ips", "ipRanges", "mac", "infinibandGUID"];

pub(crate) fn run(
    conf: &NetConf,
    container: ContainerId,
    netns_path: &Path,
    ifname: IfName,
    pod: &PodRef,
) -> Result<AddResult, Failure> {
    let started = Instant::now();
    let options = EniConf::of(conf)?;
    let runtime = conf.runtime_config()?;
    for capability in UNSUPPORTED {
        if conf.raw_runtime_config.as_ref().is_some_and(|given| given.get(capability).is_some()) {
            let text = format!("runtimeConfig asks for {capability:?}: addresses are ipamd's to choose");
            return Err(Failure::new(ErrorCode::UnsupportedField, text));
        }
    }
    if conf.raw_prev_result.is_some() {
        let text = "the configuration of an ADD has a prevResult: sluice-eni must be the first plugin of its list";
        return Err(Failure::new(ErrorCode::InvalidConfig, text));
    }
    if nic::index(&ifname) > 0 {
        let text = format!(
            "CNI_IFNAME {ifname}: pods' interfaces on further network cards are called so, and are made with the \
             first, {}",
            veth::POD_IFNAME
        );
        return Err(Failure::new(ErrorCode::InvalidEnvironment, text));
    }
    let netns = sandbox(netns_path)?;
    let attachment = Attachment { container, ifname, network: conf.name.clone() };
    let every_card = nic::has_further(&attachment) && runtime.wants_every_card();
    let host = veth::host_name(&options.veth_prefix, pod, &attachment)
        .map_err(|error| Failure::of(ErrorCode::InvalidConfig, &error))?;

    let gate = options.gated.then(Gate::open).transpose()?;

    let deadline = started + options.deadline;
    let ipamd = Ipamd { socket: &options.ipamd_socket, deadline, patience: PATIENCE.min(options.deadline) };
    let reply = ipamd.add(AddRequest {
        attachment: attachment.clone(),
        pod: pod.clone(),
        netns: netns_path.to_string_lossy().into_owned(),
        host_ifname: host.clone(),
        branches: true,
        every_card,
    })?;

    // From here on a failed ADD holds an address. It is given back only when nothing of the attachment is in the kernel:
    // a second ADD that fails must not take the address from the pod that the first has made. Else the DEL that follows
    // every failed ADD does it.
    let further = |of: &Attachment| veth::host_name(&options.veth_prefix, pod, of);
    let mut layouts = layout::layouts(&attachment, &host, further, options.mtu, reply)
        .map_err(|error| Failure::of(ErrorCode::Refused, &error))?;
    // As by the bandwidth plugin, the interface that the runtime knows is limited, and no other.
    if let (Some(first), Some(bandwidth)) = (layouts.first_mut(), runtime.bandwidth) {
        first.bandwidth = bandwidth;
    }
    if every_card && layouts.len() == 1 {
        note(&format!(
            "the pod gets one interface, though its annotation {} asks for one on each network card: this node has \
             one card, or does not serve the others (ENABLE_MULTI_NIC)",
            nic::ANNOTATION
        ));
    }
    on_runtime(kernel::attach(&layouts, &netns, gate.as_ref()))?.map_err(|error| {
        for left in error.leftovers() {
            note(left);
        }
        if error.is_undone() {
            let request = DelRequest { attachment: attachment.clone(), pod: pod.clone(), add_failed: true };
            if let Err(failure) = del::release(&options, &request) {
                note(&format!("the address of the failed ADD stays with its attachment until its DEL: {failure}"));
            }
        }
        Failure::new(error.code(), format!("cannot set up {attachment}: {}", chain(&error)))
    })?;
    Ok(layout::result(&layouts, netns_path))
}
