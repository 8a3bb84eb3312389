//! GC: what belongs to none of the attachments that the runtime lists is taken away.
//!
//! Its traces are found from both sides: the kernel's links by their marks, and ipamd's ledger. Neither alone has all.
//! A runtime lists the first of a pod's interfaces, and all of them stay with it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use sluice_contract::cni::{EniConf, ErrorCode, Failure, GcAttachment, NetConf, chain};
use sluice_contract::id::{Attachment, PodRef};
use sluice_contract::node::nic;
use sluice_contract::rpc::{DelRequest, GcRequest};
use sluice_hostnet::plugin::on_runtime;

use crate::del;
use crate::ipamd::Ipamd;
use crate::kernel::{self, Traces};

/// How long a GC waits for an ipamd that is gone.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long it waits for an answer.
const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) fn run(conf: &NetConf) -> Result<(), Failure> {
    let options = EniConf::of(conf)?;
    // NetConf::parse has made sure of the list; without one, nothing may be taken away.
    let Some(valid) = conf.valid_attachments.clone() else {
        return Err(Failure::new(ErrorCode::InvalidConfig, "GC without a list of valid attachments"));
    };
    let lives: BTreeSet<&GcAttachment> = valid.iter().collect();
    let is_stale =
        |attachment: &Attachment| attachment.network == conf.name && !lives.contains(&GcAttachment::of(attachment));
    let mut errors = Vec::new();

    let marked = on_runtime(kernel::marked())?.unwrap_or_else(|error| {
        errors.push(chain(&error));
        Vec::new()
    });
    let stale: Vec<_> = marked.into_iter().filter(|(attachment, _)| is_stale(attachment)).collect();
    for (attachment, name) in &stale {
        let traces = Traces { names: vec![name.clone()], ..Traces::default() };
        if let Err(error) = on_runtime(kernel::detach(attachment, &traces))? {
            errors.push(format!("{attachment}: {}", chain(&error)));
        }
    }

    let patience = PATIENCE.min(options.deadline);
    let ipamd = Ipamd { socket: &options.ipamd_socket, deadline: Instant::now() + DEADLINE, patience };
    match ipamd.gc(GcRequest { network: conf.name.clone(), valid }) {
        Ok(reply) => {
            for (attachment, held) in reply.released {
                // An address rests before it is given to another, so that it is still nobody's. A mark that does not
                // name its attachment can still be told to be that of a known one.
                let search = stale.iter().all(|(seen, _)| *seen != attachment);
                let further = held.iter().map(|address| address.interface).filter(|index| *index > 0).collect();
                let traces = Traces { further, held, search, ..Traces::default() };
                if let Err(error) = on_runtime(kernel::detach(&attachment, &traces))? {
                    errors.push(format!("{attachment}: {}", chain(&error)));
                }
            }
        }
        Err(error) => {
            // ipamd knows of each one's further interfaces.
            let firsts: BTreeSet<Attachment> = stale.iter().map(|(attachment, _)| nic::first(attachment)).collect();
            for attachment in firsts {
                let request = DelRequest { attachment, pod: PodRef::default(), add_failed: false };
                if let Err(failure) = del::bury(&options, &request) {
                    errors.push(failure.to_string());
                }
            }
            if errors.is_empty() {
                return Err(error.into());
            }
            errors.push(chain(&error));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(Failure::new(ErrorCode::Leftover, errors.join("; "))) }
}
