use super::*;
use crate::cloud::{AddressCount, CloudErrorKind, Unassign};
use crate::fixture::{COOLDOWN, at, eni, eni_id, failed, ip, owner, state, subnet_id};
use crate::op::Op;
use crate::state::Event;

/// One of everything that a checkpoint keeps.
fn full() -> State {
    let mut state = state(vec![eni(1, &["10.0.0.0/28"]), eni(2, &["10.0.1.1/32", "10.0.1.2/32", "10.0.1.3/32"])]);
    state.apply(Event::Assign(ip("10.0.0.0"), owner("a")), at(1)).unwrap();
    state.apply(Event::Assign(ip("10.0.0.1"), owner("b")), at(1)).unwrap();
    state.apply(Event::Release(owner("b").attachment.clone(), COOLDOWN), at(2)).unwrap();
    let alive = [ip("10.0.0.0"), ip("10.0.1.1"), ip("10.9.9.9")].into();
    state.apply(Event::KernelSeen(alive, COOLDOWN), at(3)).unwrap();
    let what = Unassign { addresses: ["10.0.1.2".parse().unwrap()].into(), prefixes: [].into() };
    failed(&mut state, &Op::Unassign { eni: eni_id(2), what }, CloudErrorKind::Timeout, at(4));
    let request = crate::cloud::CreateEni {
        card: 1,
        subnet: subnet_id(1),
        security_groups: Vec::new(),
        addresses: AddressCount::Prefixes(2),
        ipv6_prefix: true,
        connection_tracking: None,
        description: String::new(),
        tags: BTreeMap::new(),
        client_token: state.client_token(0),
    };
    failed(&mut state, &Op::Create(request), CloudErrorKind::Timeout, at(5));
    state
}

/// It as a document, for the corpus of hostile ones.
pub(crate) fn full_document() -> Vec<u8> {
    Checkpoint::of(&full(), at(6)).to_json().unwrap()
}

#[test]
fn a_checkpoint_keeps_the_cooldown_the_quarantine_and_what_was_begun() {
    let before = full();
    let document = Checkpoint::of(&before, at(6)).to_json().unwrap();
    let after = Checkpoint::from_json(&document).unwrap().into_state(at(6)).unwrap();
    assert_eq!(after.ledger(), before.ledger());
    assert_eq!(after.intents(), before.intents());
    assert_eq!(after.subnets(), before.subnets());
    assert_eq!(after.ledger().strays(), &BTreeSet::from([ip("10.9.9.9")]));
    assert_eq!(after.client_token(0), before.client_token(0), "no token is used again");
    assert!(after.survey_at.is_some() && !after.imds_trusted);
}

/// A version of before refuses what it does not know, except within the node.
#[test]
fn how_many_pods_the_kubelet_takes_is_kept_where_older_versions_pass_over_it() {
    let keys = |state: &State| {
        let document: serde_json::Value =
            serde_json::from_slice(&Checkpoint::of(state, at(6)).to_json().unwrap()).unwrap();
        let keys: Vec<String> = document.as_object().unwrap().keys().cloned().collect();
        (keys, document["node"].clone())
    };
    let mut state = full();
    let (before, without) = keys(&state);
    state.apply(Event::MaxPodsKnown(58), at(6)).unwrap();
    let (after, with) = keys(&state);
    assert_eq!(before, after);
    assert_eq!(with["max_pods"], 58);
    let read = |node: serde_json::Value| serde_json::from_value::<Node>(node).unwrap();
    assert_eq!(Some(&read(with)), state.node());
    assert_eq!(Some(&read(without)), state.node());
    let document = Checkpoint::of(&state, at(6)).to_json().unwrap();
    let back = Checkpoint::from_json(&document).unwrap().into_state(at(6)).unwrap();
    assert_eq!((back.max_pods(), back.node()), (Some(58), state.node()));
}

#[test]
fn a_call_under_way_leaves_its_eni_in_doubt() {
    let mut state = state(vec![eni(1, &[])]);
    state.apply(Event::Begin(Op::Assign { eni: eni_id(1), count: AddressCount::Secondary(3) }), at(1)).unwrap();
    let after = Checkpoint::of(&state, at(1)).into_state(at(9)).unwrap();
    assert!(after.ledger().eni(&eni_id(1)).unwrap().unsure);
    assert!(after.flights().is_empty());
}

#[test]
fn a_clock_that_was_set_back_shortens_no_cooldown() {
    let document = Checkpoint::of(&full(), at(6)).to_json().unwrap();
    let earlier = at(0).earlier(Duration::from_secs(3600));
    let after = Checkpoint::from_json(&document).unwrap().into_state(earlier).unwrap();
    // 26 of the 30 seconds were left.
    assert_eq!(
        after.ledger().address(ip("10.0.0.1")),
        Some(&AddressState::Cooling { until: earlier + Duration::from_secs(26) })
    );
    assert!(after.ledger().next_available(earlier).is_some(), "what was free is free");
}

#[test]
fn what_is_no_checkpoint_is_told_from_what_is_one() {
    let document = String::from_utf8(Checkpoint::of(&full(), at(6)).to_json().unwrap()).unwrap();
    let read = |text: &str| Checkpoint::from_json(text.as_bytes()).and_then(|read| read.into_state(at(6)));
    assert!(matches!(read(""), Err(CheckpointError::Malformed(_))));
    assert!(matches!(read("{}"), Err(CheckpointError::Malformed(_))));
    assert!(matches!(read(document.trim_end_matches('}')), Err(CheckpointError::Malformed(_))));
    let newer = document.replace("sluice-ipam/1", "sluice-ipam/2");
    assert!(matches!(read(&newer), Err(CheckpointError::Version(version)) if version == "sluice-ipam/2"));
    assert!(matches!(read(r#"{"version":"vpc-cni-ipam/1","allocations":[]}"#), Err(CheckpointError::Version(_))));
    let more = document.replacen('{', r#"{"moon":1,"#, 1);
    assert!(matches!(read(&more), Err(CheckpointError::Malformed(_))));
    // Two blocks with one address.
    let twice = document.replace("\"10.0.1.3/32\"", "\"10.0.0.3/32\"");
    assert!(matches!(read(&twice), Err(CheckpointError::Ledger(LedgerError::Overlap { .. }))));
    // What no ENI can hold is not counted out.
    for wide in ["0.0.0.0/0", "10.0.1.0/27", "::/0", "2001:db8::/64"] {
        let wide = document.replace("\"10.0.1.3/32\"", &format!("\"{wide}\""));
        assert!(matches!(read(&wide), Err(CheckpointError::Ledger(LedgerError::NoBlock(_)))), "{wide}");
    }
    let homeless = document.replace("\"10.0.0.1\":{\"cooling\"", "\"10.0.7.1\":{\"cooling\"");
    assert!(matches!(read(&homeless), Err(CheckpointError::Ledger(LedgerError::UnknownAddress(_)))));
    let leaving = document.replacen("\"in_service\"", "\"leaving\"", 1);
    assert!(matches!(read(&leaving), Err(CheckpointError::Rule(_))));
    assert!(matches!(Checkpoint::from_json(&vec![b' '; SIZE_LIMIT + 1]), Err(CheckpointError::TooLong(_))));
}

proptest::proptest! {
    /// Damage of any kind is an error or a state that keeps the rules, and never a panic.
    #[test]
    fn damage_is_survived(position in 0..10_000usize, byte in proptest::prelude::any::<u8>()) {
        let mut document = Checkpoint::of(&full(), at(6)).to_json().unwrap();
        let position = position % document.len();
        document[position] = byte;
        if let Ok(state) = Checkpoint::from_json(&document).and_then(|read| read.into_state(at(6))) {
            proptest::prop_assert_eq!(check(&state, at(6)), vec![]);
        }
    }
}
