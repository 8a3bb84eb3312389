//! S-09: what the gate costs a packet, a round trip, a connection and a bulk transfer, beside no gate and beside a policy of as
//! many rules in nftables and iptables.
//!
//! Every arm is a machine of its own with two pods, which speak with each other over the machine. One thread has both ends of
//! a connection: the kernel delivers within the sender's system call, so that nothing has to wake up, and what is measured
//! is the way of the packets. In each round each arm has its turn; figures are medians over the rounds of what is
//! compared within one.

mod arm;
pub(crate) mod traffic;

use super::report::{Part, Report};
use super::stats::median;
use super::test_run::{Content, Judge, frame};
use super::{BenchError, Say};
use arm::{Arm, Kind};
use traffic::Turn;

/// The number of the promise.
pub const ID: &str = "S-09";
/// What is measured, in one line.
pub const ABOUT: &str =
    "packet, round trip, connection and bulk with the gate, without, and with 1,000 rules of netfilter";

/// Rounds; in each, each arm has a turn.
const ROUNDS: usize = 30;
/// Test runs of a packet: series, of which each asks both gates in turn, and packets of one.
const SERIES: usize = 15;
const PACKETS: u32 = 1_000_000;
/// Addresses that the large policy allows.
const MANY: u32 = 100_000;
/// Rules of netfilter.
const RULES: u32 = 1_000;

/// The promises, of one pod's gate: nanoseconds of an established packet, microseconds of a round trip, ratios.
const V4: f64 = 80.0;
const V6: f64 = 100.0;
const ROUND_TRIP: f64 = 0.5;
const CONNECTION: f64 = 1.10;
const BULK: f64 = 1.02;
/// What counts as the same.
const SAME: f64 = 1.10;

/// The arms, in the order of a round.
const ARMS: [(&str, Kind); 7] = [
    ("without", Kind::Open),
    ("gate, 1 address", Kind::Gate(1)),
    ("gate, 100,000 addresses", Kind::Gate(MANY)),
    ("nftables, 1,000 rules", Kind::Nftables(RULES)),
    ("iptables, 1,000 rules", Kind::Iptables(RULES)),
    ("without, again", Kind::Open),
    ("gate by filters, 1 address", Kind::Filters(1)),
];
const OPEN: usize = 0;
const ONE: usize = 1;
const ALL: usize = 2;
const NFTABLES: usize = 3;
const IPTABLES: usize = 4;
const AGAIN: usize = 5;
const FILTERS: usize = 6;
/// Gates on the way: both pods have one.
const GATES: f64 = 2.0;

/// Measures and reports.
///
/// # Errors
/// [`BenchError`]: what could not be set up, or packets that do not arrive.
pub async fn run(say: Say) -> Result<Report, BenchError> {
    let mut arms = Vec::new();
    for (number, (name, kind)) in ARMS.iter().enumerate() {
        say(&format!("setting up: {name}"));
        arms.push(Arm::up(number, *kind).await?);
    }
    let mut turns: Vec<Vec<Turn>> = ARMS.iter().map(|_| Vec::new()).collect();
    say(&format!("{ROUNDS} rounds"));
    for round in 0..ROUNDS {
        for turn in 0..arms.len() {
            let at = (round + turn) % arms.len();
            if let (Some(arm), Some(turns)) = (arms.get(at), turns.get_mut(at)) {
                turns.push(arm.turn()?);
            }
        }
    }
    let (Some(one), Some(all)) = (arms.get(ONE), arms.get(ALL)) else { return Err(BenchError::Incomplete) };
    say(&format!("{SERIES} times {PACKETS} packets each way, at 1 and at 100,000 addresses"));
    let mut packets = Vec::new();
    for _ in 0..SERIES {
        packets.push((packet_times(one).await?, packet_times(all).await?));
    }
    Ok(report(&turns, &packets))
}

/// The nanoseconds of a packet: IPv4 out of a pod and into it, then IPv6.
type PacketTimes = [f64; 4];

/// Packets of connections that are open meanwhile, so that the gate knows them.
async fn packet_times(arm: &Arm) -> Result<PacketTimes, BenchError> {
    let mut times = [0.0; 4];
    for (server, into) in [arm.server.v4(), arm.server.v6()].into_iter().zip(times.chunks_exact_mut(2)) {
        let open = arm.open(server)?;
        let (client, server) = (open.client_address()?, open.server_address()?);
        let (here, there) = (arm.client.index, arm.server.index);
        let measured = arm.node.run(move || {
            let of = |program: &str, frame: &[u8], from: u32| {
                let judged = Judge::open(program)?.run(frame, here, from, PACKETS)?;
                if !judged.passes {
                    return Err(BenchError::setup("the gate is not as it should be")(format!(
                        "{program} drops a packet of an open connection"
                    )));
                }
                Ok(judged.took.as_secs_f64() * 1e9)
            };
            let out = of("from_pod", &frame(client, server, Content::Ack), here)?;
            Ok::<_, BenchError>([out, of("to_pod", &frame(server, client, Content::Ack), there)?])
        });
        into.copy_from_slice(&measured.await??);
    }
    Ok(times)
}

/// The medians over the series.
fn medians(
    series: &[(PacketTimes, PacketTimes)],
    of: impl Fn(&PacketTimes, &PacketTimes, usize) -> Option<f64>,
) -> PacketTimes {
    std::array::from_fn(|at| median(&series.iter().filter_map(|(one, all)| of(one, all, at)).collect::<Vec<f64>>()))
}

/// The median over the rounds of what `compare` makes of two arms' turns of one round.
fn paired(turns: &[Vec<Turn>], one: usize, other: usize, compare: impl Fn(&Turn, &Turn) -> f64) -> f64 {
    let of = |arm: usize| turns.get(arm).into_iter().flatten();
    let values: Vec<f64> = of(one).zip(of(other)).map(|(one, other)| compare(one, other)).collect();
    median(&values)
}

fn report(turns: &[Vec<Turn>], packets: &[(PacketTimes, PacketTimes)]) -> Report {
    let later = |one: &Turn, other: &Turn| one.round_trip - other.round_trip;
    let connection = |one: &Turn, other: &Turn| one.connection / other.connection;
    let bulk = |one: &Turn, other: &Turn| one.bulk / other.bulk;
    // Of the two that are passed.
    let of_one = |ratio: f64| 1.0 + (ratio - 1.0) / GATES;
    let worst = |times: &[f64]| times.iter().copied().fold(0.0, f64::max);
    let one = medians(packets, |one, _, at| one.get(at).copied());
    let all = medians(packets, |_, all, at| all.get(at).copied());
    let [(one4, one6), (all4, all6)] = [one.split_at(2), all.split_at(2)];
    let (v4, v6) = (worst(&[one4, all4].concat()), worst(&[one6, all6].concat()));
    let growth = worst(&medians(packets, |one, all, at| Some(all.get(at)? / one.get(at)?)));
    let part = |what: &str, figure, limit, unit| Part { what: what.into(), figure, limit, unit };
    let mut parts = vec![
        part("an established packet, IPv4", v4, V4, "ns"),
        part("an established packet, IPv6", v6, V6, "ns"),
        part("the same at 100,000 addresses by that at 1", growth, SAME, ""),
    ];
    for (at, name) in [(ONE, "1 address"), (ALL, "100,000 addresses")] {
        let round_trip = paired(turns, at, OPEN, later) / GATES;
        parts.push(part(&format!("round trip above none, a gate, {name}"), round_trip, ROUND_TRIP, "us"));
        let connections = of_one(paired(turns, at, OPEN, connection));
        parts.push(part(&format!("connect, request, close by none, a gate, {name}"), connections, CONNECTION, ""));
        let bulks = of_one(paired(turns, at, OPEN, bulk));
        parts.push(part(&format!("bulk by none, a gate, {name}"), bulks, BULK, ""));
    }
    for (at, name) in [(NFTABLES, "nftables"), (IPTABLES, "iptables")] {
        parts.push(part(&format!("round trip above 1,000 rules of {name}"), paired(turns, ALL, at, later), 0.0, "us"));
        parts.push(part(
            &format!("connect, request, close by 1,000 rules of {name}"),
            paired(turns, ALL, at, connection),
            1.0,
            "",
        ));
    }
    let mut rows = vec![["", "round trip", "connect, request, close", "bulk"].map(str::to_owned).to_vec()];
    for ((name, _), turns) in ARMS.iter().zip(turns) {
        let of = |what: fn(&Turn) -> f64| median(&turns.iter().map(what).collect::<Vec<f64>>());
        rows.push(vec![
            (*name).to_owned(),
            format!("{:.2} us", of(|turn| turn.round_trip)),
            format!("{:.1} us", of(|turn| turn.connection)),
            format!("{:.2} Gbit/s", traffic::BULK_BITS / of(|turn| turn.bulk)),
        ]);
    }
    let mut notes: Vec<String> = [("1 address", one), ("100,000 addresses", all)]
        .map(|(name, [out4, into4, out6, into6])| {
            format!(
                "an established packet, {name}: IPv4 {out4:.0} ns out, {into4:.0} ns in; \
                 IPv6 {out6:.0} ns out, {into6:.0} ns in"
            )
        })
        .into();
    notes.push(format!(
        "A/A, without again by without: round trip {:+.2} us, connection {:.3}, bulk {:.3}",
        paired(turns, AGAIN, OPEN, later),
        paired(turns, AGAIN, OPEN, connection),
        paired(turns, AGAIN, OPEN, bulk)
    ));
    notes.push(
        "both pods are gated, so that a round trip passes four programs; half of what is above none is a gate's".into(),
    );
    for (at, name) in [(ONE, "by links"), (FILTERS, "by filters, as in a pod's first seconds")] {
        notes.push(format!(
            "both gates, 1 address, {name}: round trip {:+.2} us, connection {:.3}, bulk {:.3}",
            paired(turns, at, OPEN, later),
            paired(turns, at, OPEN, connection),
            paired(turns, at, OPEN, bulk)
        ));
    }
    Report { id: ID, figure: v4, unit: "ns", peer: None, ratio: None, parts, rows, notes }
}
