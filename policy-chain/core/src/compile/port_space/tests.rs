//! Sets of ports, and covers: right, and as short as can be.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::compile::row::Row;
use crate::model::port::PortMatch;

fn spans(protocol: Protocol, decisions: &[(u16, u32)]) -> Spans {
    Spans { protocol, decisions: decisions.to_vec() }
}

fn text(entries: &[(PortPrefix, u32)]) -> Vec<String> {
    let one = |(prefix, decision): &(PortPrefix, u32)| match prefix.protocol {
        None => format!("* {decision}"),
        Some(protocol) => format!("{protocol} {}/{} {decision}", prefix.port, prefix.bits),
    };
    entries.iter().map(one).collect()
}

#[test]
fn one_decision_is_one_entry() {
    assert_eq!(text(&cover(3, &[])), ["* 3"]);
    assert_eq!(text(&cover(3, &[spans(Protocol::TCP, &[(0, 3)])])), ["* 3"]);
    assert_eq!(text(&cover(3, &[spans(Protocol::TCP, &[(0, 1)])])), ["* 3", "TCP 0/0 1"]);
}

#[test]
fn a_port_is_one_entry_and_the_last_port_too() {
    let tcp = spans(Protocol::TCP, &[(0, 0), (80, 1), (81, 0), (65535, 2)]);
    assert_eq!(text(&cover(0, &[tcp])), ["* 0", "TCP 80/16 1", "TCP 65535/16 2"]);
}

#[test]
fn a_range_is_covered_from_outside_where_that_is_shorter() {
    // All but port 0: one entry for the protocol and one for the port, not sixteen.
    let tcp = spans(Protocol::TCP, &[(0, 0), (1, 1)]);
    assert_eq!(text(&cover(0, &[tcp])), ["* 0", "TCP 0/0 1", "TCP 0/16 0"]);
    let udp = spans(Protocol::UDP, &[(0, 0), (1024, 1), (2048, 0)]);
    assert_eq!(text(&cover(0, &[udp])), ["* 0", "UDP 1024/6 1"]);
}

#[test]
fn the_entry_for_every_packet_is_that_of_most_protocols() {
    let all: Vec<Spans> =
        (0..=u8::MAX).map(|number| spans(Protocol(number), &[(0, u32::from(number % 2 == 0))])).collect();
    // No protocol is left that the rules do not name, and both serve 128 of them.
    assert_eq!(cover(9, &all).len(), 129);
    assert_eq!(text(&cover(1, &all))[0], "* 1");
    let most: Vec<Spans> = (0..200).map(|number| spans(Protocol(number), &[(0, 5)])).collect();
    let entries = cover(9, &most);
    assert_eq!(entries.len(), 57);
    assert_eq!(entries[0], (PortPrefix::ANY, 5));
    assert_eq!(Row { entries }.get(Protocol(255), 7), Some(&9));
}

#[test]
fn sets_join_what_overlaps_or_touches() {
    let range = |first, last| PortMatch { protocol: ProtocolMatch::Transport, port: PortTarget::Range(first, last) };
    let of = |list: Vec<PortMatch>| PortSet::new([&Ports::Of(list)], None);
    let joined = of(vec![range(10, 20), range(21, 30), range(5, 12), range(40, 40), range(65535, 65535)]);
    let tcp: Vec<_> = joined.ranges.iter().filter(|range| range.protocol == Protocol::TCP).collect();
    assert_eq!(
        tcp.iter().map(|range| (range.first, range.last)).collect::<Vec<_>>(),
        [(5, 30), (40, 40), (65535, 65535)]
    );
    assert_eq!(joined.ranges.len(), 9);
    assert_eq!(of(vec![range(1, 65535), range(0, 0)]), of(vec![range(0, 65535)]));
    assert!(of(vec![]).is_empty());
    assert!(of(vec![range(9, 8)]).is_empty());
    let every = PortSet::new([&Ports::Of(vec![range(1, 1)]), &Ports::Any], None);
    assert!(every.every && every.ranges.is_empty());
    let tcp = every.within(&[Protocol::TCP]);
    assert_eq!(tcp.ranges, [PortRange { protocol: Protocol::TCP, first: 0, last: 65535 }]);
    assert!(!tcp.every);
}

type Known = BTreeMap<(u32, u32, u32), usize>;

/// The fewest entries that any table can have below an entry with decision `above`, by trying all decisions at each node.
fn fewest(spans: &[(u16, u32)], first: u32, bits: u32, above: u32, known: &mut Known) -> usize {
    if let Some(count) = known.get(&(first, bits, above)) {
        return *count;
    }
    let size = 1 << (16 - bits);
    let uniform = !spans.iter().any(|(from, _)| (first + 1..first + size).contains(&u32::from(*from)));
    let mut best = usize::MAX;
    for here in 0..3 {
        let own = usize::from(here != above);
        let below = if uniform {
            if decision(spans, first) == here { 0 } else { usize::MAX }
        } else {
            fewest(spans, first, bits + 1, here, known) + fewest(spans, first + size / 2, bits + 1, here, known)
        };
        best = best.min(below.saturating_add(own));
    }
    known.insert((first, bits, above), best);
    best
}

/// Changes near each other, so that tables are small enough to try everything.
fn some_spans() -> impl Strategy<Value = Vec<(u16, u32)>> {
    let edge = prop_oneof![0..40_u16, 65500..=65535_u16, select(vec![1024, 32767, 32768])];
    (vec((edge, 0..3_u32), 0..8), 0..3_u32).prop_map(|(changes, first)| {
        let ports: BTreeMap<u16, u32> = [(0, first)].into_iter().chain(changes).collect();
        let mut spans: Vec<(u16, u32)> = ports.into_iter().collect();
        spans.dedup_by(|next, span| next.1 == span.1);
        spans
    })
}

fn decision(spans: &[(u16, u32)], port: u32) -> u32 {
    spans.iter().rev().find(|(from, _)| u32::from(*from) <= port).unwrap().1
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_cover_says_what_the_spans_say(tcp in some_spans(), udp in some_spans(), other in 0..3_u32) {
        let entries = cover(other, &[spans(Protocol::TCP, &tcp), spans(Protocol::UDP, &udp)]);
        prop_assert!(entries.windows(2).all(|pair| pair[0].0 < pair[1].0));
        for (prefix, _) in &entries {
            let free = 16 - u32::from(prefix.bits);
            prop_assert_eq!(u32::from(prefix.port) & ((1 << free) - 1), 0);
        }
        let row = Row { entries };
        let near = |edge: u16| [edge.saturating_sub(1), edge, edge.saturating_add(1)];
        for port in tcp.iter().chain(&udp).flat_map(|(from, _)| near(*from)).chain([0, 65535]) {
            prop_assert_eq!(row.get(Protocol::TCP, port), Some(&decision(&tcp, u32::from(port))));
            prop_assert_eq!(row.get(Protocol::UDP, port), Some(&decision(&udp, u32::from(port))));
            prop_assert_eq!(row.get(Protocol::SCTP, port), Some(&other));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_table_is_shorter(tcp in some_spans(), other in 0..3_u32) {
        let entries = cover(other, &[spans(Protocol::TCP, &tcp)]);
        let least = fewest(&tcp, 0, 0, other, &mut Known::new());
        prop_assert_eq!(entries.len(), least + 1);
    }
}
