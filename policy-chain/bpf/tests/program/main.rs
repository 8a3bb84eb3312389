//! The kernel's programs, by `BPF_PROG_TEST_RUN`.
//!
//! | part | what it holds |
//! |---|---|
//! | [`agree`] | first packets are judged as the image and the oracle say, on random clusters |
//! | [`backends`] | the second judgement, of flows to Services |
//! | [`cost`] | prints what a packet costs |
//! | [`edges`] | fragments, options, ICMP errors, neighbour discovery, forged sources, flags of endpoints |
//! | [`hostile`] | frames that are built wrong and damaged fare as in [`model`], a gate that was written apart |
//! | [`live`] | translated packets between namespaces, of which connection tracking knows more |
//! | [`replaced`] | endpoints that are written anew while packets are judged |
//! | [`flows`] | answers, ends, changes of policy, ports used again, adoption |
#![cfg(test)]

mod agree;
mod backends;
mod compiled;
mod cost;
mod edges;
mod flows;
mod frame;
mod hostile;
mod kernel;
mod live;
mod model;
mod pod;
#[expect(dead_code, reason = "the generator of policy-core's tests, of which these use a part")]
mod random;
mod recent;
mod replaced;
mod storm;

use kernel::{Action, Kernel, UPLINK, may_run};
use sluice_policy_bpf::layout::{DropReason, Hook};

/// The verifier takes all programs; without an endpoint nothing passes.
#[test]
fn an_interface_without_an_endpoint_is_shut() {
    if !may_run() {
        return;
    }
    let kernel = Kernel::new();
    for hook in [Hook::FromPod, Hook::ToPod] {
        assert_eq!(kernel.run(hook, &[0; 60], UPLINK), Action::Drop);
    }
    assert_eq!(kernel.dropped(DropReason::UnknownEndpoint), 2);
    assert_eq!(kernel.run(Hook::Closed, &[0; 60], UPLINK), Action::Drop);
    assert_eq!(kernel.dropped(DropReason::NotReady), 1);
    assert_eq!(kernel.run(Hook::Uplink, &[0; 60], UPLINK), Action::Pass);
}
