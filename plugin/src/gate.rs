//! The gate before there is a policy: the pinned program that drops everything, on both hooks of the host's end.
//!
//! Where sluice-policy follows in the list, the pod's host interface gets it before it is up and before any route leads
//! to the pod. policyd then puts the policy's programs into the same slots, so that no packet passes in between.

use std::os::fd::{AsFd, OwnedFd};

use sluice_contract::cni::{ErrorCode, Failure};
use sluice_contract::node::DROP_PROGRAM;
use sluice_contract::rpc::{Refusal, RefusalCode};
use sluice_hostnet::bpf::open_pinned;
use sluice_hostnet::netlink::Netlink;
use sluice_hostnet::tc::{Existing, Hook, Program, Slot, TcError};

/// What `tc filter show` calls the program.
const NAME: &str = "sluice-drop";

/// The program, open.
#[derive(Debug)]
pub(crate) struct Gate(OwnedFd);

impl Gate {
    /// Opens the pin. That there is none passes by itself: policyd makes it when it starts.
    pub(crate) fn open() -> Result<Self, Failure> {
        open_pinned(DROP_PROGRAM).map(Self).map_err(|error| {
            if error.is_missing() {
                let text = format!("policyd has not pinned {DROP_PROGRAM} since this node booted");
                let hint = "see whether policyd runs on this node and which layout it has; the runtime will try again";
                return Failure::Refused(Refusal::new(RefusalCode::PolicyNotReady, text).hint(hint));
            }
            Failure::of(ErrorCode::Io, &error)
        })
    }

    /// Closes the host interface of number `index`, where it is not gated already: a policy that is in force stays.
    pub(crate) async fn close(&self, host: &Netlink, index: u32) -> Result<(), TcError> {
        host.attach(index, Slot::GATE, &self.programs(), Existing::Keep).await
    }

    /// Closes a host interface that this process has just made.
    pub(crate) async fn close_new(&self, host: &Netlink, index: u32) -> Result<(), TcError> {
        host.attach_to_new(index, Slot::GATE, &self.programs()).await
    }

    fn programs(&self) -> [(Hook, Program<'_>); 2] {
        Hook::ALL.map(|hook| (hook, Program { fd: self.0.as_fd(), name: NAME }))
    }
}
