//! A flood of drops: what of it is told, and what it leaves room for.

use sluice_policy_bpf::layout::{DropReason, Event, EventKind, Hook, MAPS, SETTING_NO_EVENTS, Settings};

use crate::frame::{Packet, SYN};
use crate::kernel::{Action, UPLINK, may_run};
use crate::pod::{CLIENT, DENY, NONE, PORT, Pod, families};

const FLOOD: u32 = 200_000;
/// What the ring holds beside an event, in bytes.
const HEADER: usize = 8;

#[test]
fn a_flood_of_drops_is_counted_and_sampled_and_hides_nothing_else() {
    if !may_run() {
        return;
    }
    let [family, _] = families();
    let mut pod = Pod::new();
    pod.policy(DENY, NONE);
    pod.kernel.events();
    let ring = MAPS.iter().find(|map| map.name == "events").unwrap().entries;
    let room = usize::try_from(ring).unwrap() / (size_of::<Event>() + HEADER);
    let before = (pod.kernel.dropped(DropReason::Policy), pod.kernel.dropped(DropReason::EventLost));
    let denied = Packet::tcp((family.server, CLIENT), (family.own, PORT), SYN).frame();
    for round in 1..=2 {
        let (action, _) = pod.kernel.repeat(Hook::ToPod, &denied, UPLINK, FLOOD);
        assert_eq!(action, Action::Drop);
        // Whatever the flood left of the ring, others have room.
        let port = CLIENT + round;
        assert_eq!(pod.sends(&Packet::udp((family.own, port), (family.server, PORT))), Action::Pass);
        let events = pod.kernel.events();
        let drops = events.iter().filter(|event| event.kind == EventKind::Drop.number()).count();
        let flows: Vec<u16> =
            events.iter().filter(|event| event.kind == EventKind::Flow.number()).map(|event| event.own_port).collect();
        assert_eq!(flows, [port], "{drops} drops were told");
        assert!((room / 4..=room / 2 + 1).contains(&drops), "{drops} drops were told in room for {room}");
        let after = (pod.kernel.dropped(DropReason::Policy), pod.kernel.dropped(DropReason::EventLost));
        let told = u64::try_from(drops).unwrap();
        if round == 1 {
            assert_eq!((after.0 - before.0, after.1 - before.1), (FLOOD.into(), u64::from(FLOOD) - told));
        }
    }
}

#[test]
fn where_nobody_reads_nothing_is_told_and_nothing_is_lost() {
    if !may_run() {
        return;
    }
    let [family, _] = families();
    let mut pod = Pod::new();
    pod.policy(DENY, NONE);
    pod.kernel.set(Settings { flags: SETTING_NO_EVENTS, ..Settings::default() });
    pod.kernel.events();
    let count = |pod: &mut Pod, reason| pod.kernel.dropped(reason);
    let before = (count(&mut pod, DropReason::Policy), count(&mut pod, DropReason::EventLost));
    let denied = Packet::tcp((family.server, CLIENT), (family.own, PORT), SYN).frame();
    assert_eq!(pod.kernel.repeat(Hook::ToPod, &denied, UPLINK, FLOOD).0, Action::Drop);
    assert_eq!(pod.sends(&Packet::udp((family.own, CLIENT), (family.server, PORT))), Action::Pass);
    assert_eq!(pod.kernel.events().len(), 0);
    let after = (count(&mut pod, DropReason::Policy), count(&mut pod, DropReason::EventLost));
    assert_eq!((after.0 - before.0, after.1 - before.1), (FLOOD.into(), 0), "drops are counted as ever");
    pod.kernel.set(Settings::default());
    assert_eq!(pod.sends(&Packet::udp((family.own, CLIENT + 1), (family.server, PORT))), Action::Pass);
    assert_eq!(pod.kernel.events().len(), 1);
}
