//! DEL. It converges whatever is gone: the configuration's `prevResult`, the namespace, ipamd.
//!
//! The kernel comes first and the ledger last: as long as ipamd holds an address for the attachment, nobody else can
//! have it, so that what is deleted by address is the attachment's own.
//!
//! A runtime knows the first of a pod's interfaces, and all of them go with it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use sluice_contract::cni::{AddResult, EniConf, ErrorCode, Failure, NetConf, chain};
use sluice_contract::id::{Attachment, ContainerId, IfName, PodRef};
use sluice_contract::node::{TOMBSTONE_DIR, branch, nic, veth};
use sluice_contract::rpc::{CheckRequest, DelRequest};
use sluice_hostnet::netns::Namespace;
use sluice_hostnet::plugin::{ClientError, on_runtime, tombstone};

use crate::ipamd::{Ipamd, shrug};
use crate::kernel::{self, Traces};
use crate::note;

/// How long a DEL waits for an ipamd that is gone, before it leaves a tombstone.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long it waits for an answer.
const DEADLINE: Duration = Duration::from_secs(10);

pub(crate) fn run(
    conf: &NetConf,
    container: ContainerId,
    netns: Option<&Path>,
    ifname: IfName,
    pod: PodRef,
) -> Result<(), Failure> {
    // A conflist that somebody has broken while the pod ran must not keep the pod from being deleted.
    let options = EniConf::of(conf).unwrap_or_else(|error| {
        note(&format!("going on with the defaults: {}", chain(&error)));
        EniConf::default()
    });
    if nic::index(&ifname) > 0 {
        // ADD makes none by such a name: the interface that has it goes with the pod's first.
        return Ok(());
    }
    let attachment = Attachment { container, ifname, network: conf.name.clone() };
    let prev_result = conf.prev_result().unwrap_or_else(|error| {
        note(&format!("going on without it: {}", chain(&error)));
        None
    });
    let mut traces = Traces {
        further: further_in(prev_result.as_ref(), &attachment),
        names: host_names(&options, &pod, &attachment, prev_result.as_ref()),
        netns: netns.and_then(|path| Namespace::open(path).ok()).filter(|netns| !netns.is_current()),
        // A runtime that does not tell the pod again leaves only the mark to go by.
        search: pod.name.is_empty() && prev_result.is_none(),
        ..Traces::default()
    };
    // With a branch ENI in strict mode it has another name, which the result has, where there is one.
    let strict: Vec<IfName> = traces.names.iter().map(|name| branch::host_name(name, branch::Mode::Strict)).collect();
    let held = ipamd(&options).check(CheckRequest { attachment: attachment.clone() });
    let gone = held.as_ref().is_err_and(ClientError::is_gone);
    match held {
        Ok(reply) => {
            traces.further.extend(reply.addresses.iter().map(|address| address.interface).filter(|index| *index > 0));
            traces.held = reply.addresses;
        }
        // The ledger has let go of them: they may be another's by now.
        Err(error) if error.is_unknown() => {}
        Err(error) => {
            note(&shrug("going by prevResult and the kernel", &error));
            let further = traces.further.iter().filter_map(|index| nic::ifname(&attachment.ifname, *index));
            let all = std::iter::once(attachment.ifname.clone()).chain(further);
            traces.claimed = all.flat_map(|ifname| addresses_of(prev_result.as_ref(), &ifname)).collect();
        }
    }
    for further in traces.further.iter().filter_map(|index| nic::attachment(&attachment, *index)) {
        if let Ok(name) = veth::host_name(&options.veth_prefix, &pod, &further)
            && !traces.names.contains(&name)
        {
            traces.names.push(name);
        }
    }
    if traces.held.is_empty() || traces.held.iter().any(|address| address.branch.is_some()) {
        traces.names.extend(strict);
    }
    let request = DelRequest { attachment: attachment.clone(), pod, add_failed: false };
    let detached = on_runtime(kernel::detach(&attachment, &traces))?;
    // Also when the kernel refuses: the runtime will ask again, and the address cools anyway. A daemon that is gone is
    // not waited for twice.
    if gone { bury(&options, &request) } else { release(&options, &request) }?;
    detached
        .map_err(|error| Failure::new(ErrorCode::Leftover, format!("cannot take down {attachment}: {}", chain(&error))))
}

fn ipamd(options: &EniConf) -> Ipamd<'_> {
    let patience = PATIENCE.min(options.deadline);
    Ipamd { socket: &options.ipamd_socket, deadline: Instant::now() + DEADLINE, patience }
}

/// Gives the addresses of an attachment back; if ipamd cannot be told, leaves a tombstone.
pub(crate) fn release(options: &EniConf, request: &DelRequest) -> Result<(), Failure> {
    match ipamd(options).del(request.clone()) {
        Ok(_) => Ok(()),
        Err(error) if error.is_unknown() => Ok(()),
        Err(error) => {
            note(&shrug("leaving a tombstone", &error));
            bury(options, request)
        }
    }
}

/// Leaves a tombstone.
pub(crate) fn bury(options: &EniConf, request: &DelRequest) -> Result<(), Failure> {
    let dir = options.run_dir.join(Path::new(TOMBSTONE_DIR).file_name().unwrap_or_default());
    tombstone::leave(&dir, &request.attachment, request).map_err(|error| Failure::of(ErrorCode::Io, &error))
}

/// What the host's end may be called: after the pod, where the runtime still knows it, and as the result says.
fn host_names(
    options: &EniConf,
    pod: &PodRef,
    attachment: &Attachment,
    prev_result: Option<&AddResult>,
) -> Vec<IfName> {
    let mut names: Vec<IfName> = veth::host_name(&options.veth_prefix, pod, attachment).into_iter().collect();
    for interface in prev_result.iter().flat_map(|result| &result.interfaces) {
        if let (None, Ok(name)) = (&interface.sandbox, IfName::new(&interface.name))
            && !names.contains(&name)
        {
            names.push(name);
        }
    }
    names
}

/// Which interfaces of further network cards a result has.
pub(crate) fn further_in(result: Option<&AddResult>, first: &Attachment) -> BTreeSet<u8> {
    let Some(result) = result.filter(|_| nic::has_further(first)) else { return BTreeSet::new() };
    let in_sandbox = result.interfaces.iter().filter(|interface| interface.sandbox.is_some());
    let index = |name: &str| IfName::new(name).map_or(0, |name| nic::index(&name));
    in_sandbox.map(|interface| index(&interface.name)).filter(|index| *index > 0).collect()
}

/// The addresses on an interface in a result.
pub(crate) fn addresses_of(result: Option<&AddResult>, ifname: &IfName) -> Vec<IpAddr> {
    let Some(result) = result else { return Vec::new() };
    let on_it = |index: usize| result.interfaces.get(index).is_some_and(|interface| interface.name == ifname.as_str());
    result.ips.iter().filter(|ip| ip.interface.is_some_and(on_it)).map(|ip| ip.address.addr()).collect()
}
