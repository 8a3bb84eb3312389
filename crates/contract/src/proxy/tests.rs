use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::rpc::{FrameError, decode, encode_within, frame_length_within};

fn text() -> impl Strategy<Value = String> {
    prop_oneof![".{0,12}", Just("x".repeat(100_000))]
}

fn header_match() -> impl Strategy<Value = HeaderMatch> {
    let mismatch = prop_oneof![
        Just(Mismatch::Refuse),
        Just(Mismatch::Log),
        Just(Mismatch::Add),
        Just(Mismatch::Delete),
        Just(Mismatch::Replace)
    ];
    (".{1,8}", option::of(".{0,8}"), mismatch).prop_map(|(name, value, mismatch)| HeaderMatch { name, value, mismatch })
}

fn http_rule() -> impl Strategy<Value = HttpRule> {
    let texts = (option::of(text()), option::of(".{0,8}"), option::of(".{0,8}"));
    (texts, vec(".{0,8}", 0..3), vec(header_match(), 0..3)).prop_map(
        |((path, method, host), headers, header_matches)| HttpRule { path, method, host, headers, header_matches },
    )
}

fn list() -> impl Strategy<Value = List> {
    let application = prop_oneof![
        vec(http_rule(), 0..4).prop_map(Application::Http),
        vec(text(), 0..4).prop_map(Application::Dns),
        vec(text(), 0..4).prop_map(Application::ServerNames),
    ];
    (".{0,20}", application).prop_map(|(rule, application)| List { rule, application })
}

fn verdict() -> impl Strategy<Value = Verdict> {
    let see = option::of(prop_oneof![Just(Protocol::Http), Just(Protocol::Dns), Just(Protocol::Tls)]);
    (vec(any::<u32>(), 0..5), see, any::<bool>(), ".{0,20}").prop_map(|(lists, see, passes, reason)| Verdict {
        lists,
        see,
        passes,
        reason,
    })
}

fn decision() -> impl Strategy<Value = Decision> {
    (verdict(), option::of(verdict())).prop_map(|(verdict, audit)| Decision { verdict, audit })
}

fn pod() -> impl Strategy<Value = Pod> {
    ("[a-z]{1,9}", "[a-z]{1,9}").prop_map(|(namespace, name)| Pod { namespace, name })
}

fn names() -> impl Strategy<Value = Names> {
    let patterns = || vec(".{0,12}", 0..4);
    let class = (any::<u32>(), patterns(), any::<u32>()).prop_map(|(base, patterns, identity)| NameClass {
        base,
        patterns,
        identity,
    });
    (patterns(), any::<u32>(), vec(class, 0..3)).prop_map(|(patterns, least, classes)| Names {
        patterns,
        least,
        classes,
    })
}

fn update() -> impl Strategy<Value = Update> {
    let maps = (
        btree_map(0u32..8, option::of(list()), 0..6),
        btree_map(0u32..8, option::of(decision()), 0..6),
        btree_map(0u32..8, option::of(pod()), 0..6),
        option::of(names()),
    );
    (any::<u64>(), any::<bool>(), maps).prop_map(|(version, full, (lists, decisions, endpoints, names))| Update {
        version,
        full,
        more: false,
        lists,
        decisions,
        endpoints,
        names,
    })
}

fn wire<T: Serialize + serde::de::DeserializeOwned>(message: &T) -> T {
    let frame = encode_within(message, FRAME_LIMIT).unwrap();
    let (prefix, body) = frame.split_at(4);
    assert_eq!(frame_length_within(prefix.try_into().unwrap(), FRAME_LIMIT).unwrap(), body.len());
    decode(body).unwrap()
}

fn applied(updates: impl IntoIterator<Item = Update>) -> Snapshot {
    let mut snapshot = Snapshot::default();
    updates.into_iter().for_each(|update| snapshot.apply(update));
    snapshot
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn an_update_goes_over_the_wire_in_bounded_parts(update in update()) {
        let parts = update.clone().parts();
        let (last, others) = parts.split_last().unwrap();
        prop_assert!(!last.more && others.iter().all(|part| part.more));
        prop_assert!(parts.iter().skip(1).all(|part| !part.full));
        let mut whole = Update { version: update.version, full: update.full, ..Update::default() };
        for part in &parts {
            let part = wire(&FromPolicyd::Update(Box::new(part.clone())));
            let FromPolicyd::Update(part) = part else { panic!("{part:?}") };
            whole.extend(Update { full: false, more: false, ..*part });
        }
        prop_assert_eq!(whole, update);
    }

    #[test]
    fn one_update_or_its_parts_or_a_snapshot_of_it_lead_to_the_same(first in update(), second in update()) {
        let end = applied([first.clone(), second.clone()]);
        let mut both = first.clone();
        both.extend(second.clone());
        prop_assert_eq!(&applied([both]), &end);
        let parts = first.parts().into_iter().chain(second.parts());
        prop_assert_eq!(&applied(parts), &end);
        prop_assert_eq!(&applied([end.full()]), &end);
        prop_assert_eq!(&wire(&end), &end);
    }

    #[test]
    fn garbage_is_an_error(bytes in vec(any::<u8>(), 0..200)) {
        // Only that nothing panics is of interest: by chance the bytes may be a message.
        drop(decode::<FromPolicyd>(&bytes));
        drop(decode::<FromProxy>(&bytes));
    }

    #[test]
    fn a_message_of_which_some_bytes_are_others_never_panics(update in update(), at in any::<prop::sample::Index>(), byte: u8) {
        let mut frame = encode_within(&FromPolicyd::Update(Box::new(update)), FRAME_LIMIT).unwrap().split_off(4);
        let at = at.index(frame.len());
        if let Some(place) = frame.get_mut(at) {
            *place = byte;
        }
        if let Ok(FromPolicyd::Update(update)) = decode(&frame) {
            drop(applied([*update]));
        }
    }
}

#[test]
fn a_large_update_is_taken_apart() {
    let list = |number: u32| {
        let rule = HttpRule { path: Some(format!("/{number}/{}", "x".repeat(1000))), ..HttpRule::default() };
        Some(List { rule: "a".to_owned(), application: Application::Http(vec![rule]) })
    };
    let update =
        Update { version: 1, lists: (0..1000).map(|number| (number, list(number))).collect(), ..Update::default() };
    let parts = update.parts();
    assert!(parts.len() >= 4, "{}", parts.len());
    for part in &parts {
        let frame = encode_within(part, FRAME_LIMIT).unwrap();
        assert!(frame.len() < 2 * PART, "{}", frame.len());
    }
}

#[test]
fn a_frame_over_the_limit_is_neither_sent_nor_read() {
    let resolved = FromProxy::Resolved(Vec::new());
    assert!(matches!(encode_within(&resolved, 4), Err(FrameError::TooLong { limit: 4, .. })));
    assert!(matches!(frame_length_within([1, 0, 0, 1], FRAME_LIMIT), Err(FrameError::TooLong { .. })));
}

#[test]
fn what_a_newer_side_adds_is_passed_over() {
    let update: Update = serde_json::from_str(r#"{"version": 7, "colour": "red"}"#).unwrap();
    assert_eq!(update, Update { version: 7, ..Update::default() });
    let decision = serde_json::from_str::<Decision>(r#"{"passes": false, "reason": "x", "size": 1}"#).unwrap();
    assert_eq!(decision.audit, None);
}
