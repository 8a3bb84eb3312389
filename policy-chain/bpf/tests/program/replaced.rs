//! Endpoints that are written anew while packets are judged: the kernel gives the memory of a replaced entry to the next one
//! at once, and that may be another endpoint's.

use sluice_policy_bpf::layout::{DropReason, Endpoint, Hook};

use crate::frame::{Packet, RST};
use crate::kernel::{FREE_INTERFACE, INTERFACE, UPLINK, may_run};
use crate::pod::{CLIENT, DENY, NONE, PORT, Pod, families};

/// Packets. Of so many, some ten passed before a judgement was checked at all, and one in three runs before it was checked whole.
const PACKETS: u32 = 400_000;

#[test]
fn no_packet_passes_by_the_policy_of_another_endpoint() {
    if !may_run() {
        return;
    }
    let [family, _] = families();
    let mut pod = Pod::new();
    pod.policy(DENY, DENY);
    let free = Endpoint { id: pod.endpoint.id + 1, revision: 1 << 40, ingress: NONE, egress: NONE, ..pod.endpoint };
    let entries = [(INTERFACE, pod.endpoint), (FREE_INTERFACE, free)];
    // A lookup beside a write may miss the entry, and a check of the source may see another's addresses: both drop.
    let drops = |pod: &Pod| {
        [DropReason::Policy, DropReason::Broken, DropReason::UnknownEndpoint, DropReason::Spoofed]
            .map(|reason| pod.kernel.dropped(reason))
            .iter()
            .sum::<u64>()
    };
    // No flow of a reset is written down: each of them is judged.
    let reset = |from, to| Packet::tcp(from, to, RST).frame();
    for (hook, frame) in [
        (Hook::ToPod, reset((family.server, CLIENT), (family.own, PORT))),
        (Hook::FromPod, reset((family.own, PORT), (family.server, CLIENT))),
    ] {
        let before = drops(&pod);
        let written = pod.kernel.repeat_while_written(hook, &frame, UPLINK, PACKETS, &entries);
        assert_eq!(drops(&pod) - before, u64::from(PACKETS), "{hook:?}: packets passed, beside {written} writes");
    }
}
