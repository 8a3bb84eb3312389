use super::*;
use crate::fixture::{COOLDOWN, at, eni, eni_id, ip, owner, state};

fn kernel(pods: &[(&str, &str)]) -> KernelView {
    KernelView { pods: pods.iter().map(|(address, name)| (ip(address), owner(name).host_ifname.clone())).collect() }
}

fn checkpoint(state: &State) -> Option<Result<Checkpoint<'_>, CheckpointError>> {
    Some(Ok(Checkpoint::of(state, at(10))))
}

#[test]
fn a_live_pod_keeps_its_address_whatever_else_is_wrong() {
    let mut before = state(vec![eni(1, &["10.0.0.1/32", "10.0.0.2/32", "10.0.0.3/32"])]);
    for (address, name) in [("10.0.0.1", "a"), ("10.0.0.2", "b")] {
        before.apply(Event::Assign(ip(address), owner(name)), at(1)).unwrap();
    }
    // b's address is on an interface of another name; c's is known to nobody.
    let seen = kernel(&[("10.0.0.1", "a"), ("10.0.0.2", "x"), ("10.0.0.3", "c"), ("10.0.9.9", "d")]);
    let recovered = recover(checkpoint(&before), &seen, 2, COOLDOWN, at(1000));
    let ledger = recovered.state.ledger();
    assert_eq!(ledger.address_of(&owner("a").attachment), Some(ip("10.0.0.1")));
    assert_eq!(ledger.address_of(&owner("b").attachment), Some(ip("10.0.0.2")));
    assert!(matches!(ledger.address(ip("10.0.0.3")), Some(AddressState::Quarantined { .. })));
    let findings: Vec<String> = recovered.findings.iter().map(ToString::to_string).collect();
    assert_eq!(
        findings,
        [
            "10.0.0.2 of b/eth0@sluice is on enix, not on the interface that was recorded",
            "10.0.0.3 lives on enic and no attachment has it: quarantined",
            "10.0.9.9 lives on enid and no known ENI has it",
        ]
    );
}

#[test]
fn a_pod_that_is_gone_gives_its_address_back_but_not_while_its_add_may_run() {
    let mut before = state(vec![eni(1, &["10.0.0.1/32"])]);
    before.apply(Event::Assign(ip("10.0.0.1"), owner("a")), at(1)).unwrap();
    let young = recover(checkpoint(&before), &kernel(&[]), 2, COOLDOWN, at(100));
    assert_eq!(young.findings, []);
    let old = recover(checkpoint(&before), &kernel(&[]), 2, COOLDOWN, at(122));
    assert_eq!(old.findings, [Finding::PodGone(owner("a").attachment.clone(), ip("10.0.0.1"))]);
    assert_eq!(old.state.ledger().address(ip("10.0.0.1")), Some(&AddressState::Cooling { until: at(152) }));
}

#[test]
fn without_a_checkpoint_nothing_is_given_out_that_might_be_in_use() {
    let seen = kernel(&[("10.0.0.1", "a")]);
    let lost = Some(Err(CheckpointError::Version("9".to_owned())));
    for read in [lost, None] {
        let told = read.is_some();
        let mut state = recover(read, &seen, 2, COOLDOWN, at(0)).state;
        assert!(!state.imds_trusted);
        state.apply(Event::NodeKnown(crate::fixture::node()), at(1)).unwrap();
        let first = eni(1, &["10.0.0.1/32", "10.0.0.2/32", "10.0.0.3/32"]);
        state.apply(Event::Surveyed(vec![first]), at(1)).unwrap();
        state.apply(Event::EniReady(eni_id(1)), at(1)).unwrap();
        assert!(matches!(state.ledger().address(ip("10.0.0.1")), Some(AddressState::Quarantined { .. })), "{told}");
        assert_eq!(state.ledger().next_available(at(3600)), None, "one description may be late");
        assert_eq!(state.ledger().tally(at(3600)).cooling, 2);
        let again = Checkpoint::of(&state, at(2)).into_state(at(2)).unwrap();
        assert_eq!(again.ledger().next_available(at(3600)), None, "a restart confirms nothing");
        state.apply(Event::Surveyed(vec![eni(1, &["10.0.0.1/32", "10.0.0.2/32"])]), at(20)).unwrap();
        assert_eq!(state.ledger().next_available(at(29)), None, "it may have been released just before");
        assert_eq!(state.ledger().available(at(30)).collect::<Vec<_>>(), [ip("10.0.0.2")]);
        state.apply(Event::EniDescribed(eni_id(1), Some(eni(1, &["10.0.0.1/32", "10.0.0.2/32"]))), at(31)).unwrap();
        assert!(state.ledger().address(ip("10.0.0.3")).is_none(), "EC2 had shown it late");
    }
    let first = recover(None, &kernel(&[]), 2, COOLDOWN, at(0));
    assert_eq!(first.state, State::new(2));
}
