//! S-10: requests by way of the proxy, beside nothing in between, and beside a plain relay, HAProxy and nginx in its place.
//!
//! Every arm is a machine of its own with a client, a server and, but for the first, gates that redirect what the client asks.
//! The client has the first CPU, the server the second, and what stands in between has a worker on each. In each round each arm
//! has its turn; figures are medians over the rounds of what is compared within one.

mod between;
mod load;
mod server;

use std::net::SocketAddrV4;

use serde_json::{Value, json};
use sluice_hostnet::netns::{Namespace, NamespaceThread};
use sluice_policy_core::vector::schema::Suite;

use super::machine::{self, CPUS, Machine, SERVER, SERVER_CPU, Who};
use super::report::{Part, Report};
use super::stats::median;
use super::{BenchError, Say};
use between::Between;
use load::{Load, Measured};

/// The number of the promise.
pub const ID: &str = "S-10";
/// What is measured, in one line.
pub const ABOUT: &str = "HTTP by way of the proxy, beside none, a plain relay, HAProxy and nginx in its place";

/// The server's port.
const PORT: u16 = 8081;
/// Rounds; in each, each arm has a turn of so many seconds for each load.
const ROUNDS: usize = 9;
const SECONDS: u32 = 1;
/// Rules of the many.
const MANY: usize = 1_000;

/// The promises, as the time of a request by that of another's: 85 % of the relay's requests, on kept connections and on new ones
/// (ADR 11), 95 % of HAProxy's, more than nginx's.
const RELAY: f64 = 1.0 / 0.85;
const HAPROXY: f64 = 1.0 / 0.95;
const NGINX: f64 = 1.0;

/// What stands in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Nothing,
    Relay,
    Proxy,
    Haproxy,
    Nginx,
}

/// The arms, in the order of a round: name, what it is, and how many rules the client has.
const ARMS: [(&str, Kind, usize); 7] = [
    ("nothing", Kind::Nothing, 1),
    ("relay", Kind::Relay, 1),
    ("proxy, 1 rule", Kind::Proxy, 1),
    ("proxy, 1,000 rules", Kind::Proxy, MANY),
    ("HAProxy", Kind::Haproxy, 1),
    ("nginx", Kind::Nginx, 1),
    ("proxy, 1 rule, again", Kind::Proxy, 1),
];
const NOTHING: usize = 0;
const RELAYED: usize = 1;
const ONE: usize = 2;
const ALL: usize = 3;
const BY_HAPROXY: usize = 4;
const BY_NGINX: usize = 5;
const AGAIN: usize = 6;

/// One arm.
#[derive(Debug)]
struct Arm<'a> {
    name: &'static str,
    kind: Kind,
    client: Namespace,
    /// What takes the flows, if it is not the product's proxy.
    _between: Option<Between>,
    who: Who,
    _server: NamespaceThread,
    machine: Machine<'a>,
}

impl<'a> Arm<'a> {
    async fn up(name: &'static str, kind: Kind, suite: &'a Suite) -> Result<Self, BenchError> {
        let mut machine =
            if kind == Kind::Nothing { Machine::open(suite).await? } else { Machine::gated(suite).await? };
        let server = machine.thread("server", SERVER_CPU).await?;
        let served = server.run(|| server::serve(SocketAddrV4::new(SERVER, PORT).into())).await;
        let served = served.map_err(BenchError::setup("the server has ended"))?;
        served.map_err(BenchError::setup("the server does not begin"))?;
        let between = match kind {
            Kind::Nothing => None,
            Kind::Proxy => {
                machine.start_proxy(&CPUS).await?;
                None
            }
            Kind::Relay => Some(between::relay(&machine).await?),
            Kind::Haproxy => Some(between::haproxy(&machine).await?),
            Kind::Nginx => Some(between::nginx(&machine).await?),
        };
        let who = match (&between, machine.proxy()) {
            (Some(between), _) => between.who.clone(),
            (None, Some(proxy)) => Who::Process(proxy.pid().await.ok_or(BenchError::Incomplete)?),
            (None, None) => Who::Nobody,
        };
        Ok(Self { name, kind, client: machine.pod("client")?, _between: between, who, _server: server, machine })
    }

    fn turn(&self, load: Load) -> Result<Measured, BenchError> {
        let before = self.who.cpu()?;
        let measured = load.run(&self.client, SocketAddrV4::new(SERVER, PORT), SECONDS);
        let measured = measured.map_err(|error| {
            let last = self.machine.last_words();
            BenchError::setup(format!("{} by way of {} is not measured; {last}", load.name(), self.name))(error)
        })?;
        let spent = self.who.cpu()?.saturating_sub(before);
        // The peers' failures are told, ours are none.
        if measured.failed > 0.0 && !matches!(self.kind, Kind::Haproxy | Kind::Nginx) {
            let what = format!("{} of {} requests failed, {}", measured.failed, measured.requests, load.name());
            return Err(BenchError::setup("what is measured does not work")(what));
        }
        Ok(Measured { cpu: spent.as_secs_f64() * 1e6 / measured.requests, ..measured })
    }

    /// What of the product has no figure for its requests was never asked.
    async fn check(&self) -> Result<(), BenchError> {
        let Some(proxy) = self.machine.proxy() else { return Ok(()) };
        let records = proxy.records().await?;
        let passed = |record: &Value| record.get("verdict").and_then(Value::as_str) == Some("passed");
        if records.iter().any(passed) {
            return Ok(());
        }
        Err(BenchError::setup("the proxy was not asked")(format!("its records: {records:?}")))
    }
}

/// A policy of so many rules, the last of which has what is asked for.
fn policy(rules: usize) -> Value {
    let mut http: Vec<Value> = (1..rules)
        .map(|number| match number % 4 {
            0 => json!({ "method": "GET", "path": format!("/api/v1/items/{number}") }),
            1 => json!({ "method": "GET|HEAD", "path": format!("/static/{number}/.*") }),
            2 => json!({ "method": "POST", "path": format!("/api/v2/orders/{number}/[0-9]+") }),
            _ => json!({ "host": format!("shop-{number}\\.example\\.com"), "path": "/.*" }),
        })
        .collect();
    http.push(json!({ "method": "GET", "path": format!("/|/new|{}", server::LARGE) }));
    json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "metadata": { "name": "egress", "namespace": "x" },
        "spec": {
            "endpointSelector": { "matchLabels": { "app": "client" } },
            "egress": [{
                "toEntities": ["all"],
                "toPorts": [{ "ports": [{ "port": PORT.to_string(), "protocol": "TCP" }], "rules": { "http": http } }],
            }],
        },
    })
}

/// Measures and reports.
///
/// # Errors
/// [`BenchError`]: what could not be set up, or requests that fail.
pub async fn run(say: Say) -> Result<Report, BenchError> {
    let (one, many) = (machine::cluster(&policy(1))?, machine::cluster(&policy(MANY))?);
    let mut arms = Vec::new();
    for (name, kind, rules) in ARMS {
        say(&format!("setting up: {name}"));
        arms.push(Arm::up(name, kind, if rules == MANY { &many } else { &one }).await?);
    }
    say("once, to warm up");
    for arm in &arms {
        arm.turn(Load::KeepAlive)?;
    }
    for arm in &arms {
        arm.check().await?;
    }
    let mut turns: Vec<Vec<Vec<Measured>>> = Load::ALL.map(|_| ARMS.map(|_| Vec::new()).into()).into();
    for round in 0..ROUNDS {
        say(&format!("round {} of {ROUNDS}", round + 1));
        for turn in 0..arms.len() {
            let at = (round + turn) % arms.len();
            for (load, turns) in Load::ALL.into_iter().zip(&mut turns) {
                if let (Some(arm), Some(turns)) = (arms.get(at), turns.get_mut(at)) {
                    turns.push(arm.turn(load)?);
                }
            }
        }
    }
    Ok(report(&turns))
}

/// The median over the rounds of what `compare` makes of two arms' turns of one round.
fn paired(turns: &[Vec<Measured>], one: usize, other: usize, compare: impl Fn(&Measured, &Measured) -> f64) -> f64 {
    let of = |arm: usize| turns.get(arm).into_iter().flatten();
    let values: Vec<f64> = of(one).zip(of(other)).map(|(one, other)| compare(one, other)).collect();
    median(&values)
}

/// The time of a request by that of another's.
fn slower(one: &Measured, other: &Measured) -> f64 {
    other.rate / one.rate
}

fn report(turns: &[Vec<Vec<Measured>>]) -> Report {
    let of = |load: Load| {
        let at = Load::ALL.iter().position(|other| *other == load).unwrap_or_default();
        turns.get(at).map(Vec::as_slice).unwrap_or_default()
    };
    let (kept, new) = (of(Load::KeepAlive), of(Load::Connections));
    let mut parts = Vec::new();
    for (arm, name) in [(ONE, "1 rule"), (ALL, "1,000 rules")] {
        let mut part = |what: &str, turns, other, limit| {
            let figure = paired(turns, arm, other, slower);
            parts.push(Part { what: format!("{what}, {name}"), figure, limit, unit: "" });
        };
        part("time of a request, kept connections, by the relay's", kept, RELAYED, RELAY);
        part("the same by HAProxy's", kept, BY_HAPROXY, HAPROXY);
        part("the same by nginx's", kept, BY_NGINX, NGINX);
        part("time of a new connection with a request, by the relay's", new, RELAYED, RELAY);
    }
    let mut rows = Vec::new();
    for load in Load::ALL {
        let turns = of(load);
        let head = [load.name(), "requests/s", "of nothing", "p50", "p99", "p50 added", "p99 added", "CPU", "failed"];
        rows.push(head.map(str::to_owned).to_vec());
        for (at, (name, ..)) in ARMS.iter().enumerate() {
            let all = |what: fn(&Measured) -> f64| {
                median(&turns.get(at).into_iter().flatten().map(what).collect::<Vec<f64>>())
            };
            let added = |what: fn(&Measured) -> f64| {
                format!("{:+.0} us", paired(turns, at, NOTHING, |one, other| what(one) - what(other)))
            };
            rows.push(vec![
                format!("  {name}"),
                format!("{:.0}", all(|turn| turn.rate)),
                format!("{:.2}", paired(turns, at, NOTHING, |one, other| one.rate / other.rate)),
                format!("{:.0} us", all(|turn| turn.p50)),
                format!("{:.0} us", all(|turn| turn.p99)),
                added(|turn| turn.p50),
                added(|turn| turn.p99),
                format!("{:.1} us", all(|turn| turn.cpu)),
                format!("{:.0}", turns.get(at).into_iter().flatten().map(|turn| turn.failed).sum::<f64>()),
            ]);
        }
    }
    let same = |turns| paired(turns, AGAIN, ONE, slower);
    let notes = vec![
        format!(
            "A/A, the proxy again by the proxy: kept connections {:.3}, new connections {:.3}, bodies {:.3}",
            same(kept),
            same(new),
            same(of(Load::Bulk))
        ),
        "records are kept; CPU is that of what stands in between, for a request".into(),
    ];
    let rate = |arm: usize| median(&kept.get(arm).into_iter().flatten().map(|turn| turn.rate).collect::<Vec<f64>>());
    Report {
        id: ID,
        figure: rate(ONE),
        unit: "requests/s",
        peer: Some(rate(RELAYED)),
        ratio: Some(1.0 / paired(kept, ONE, RELAYED, slower)),
        parts,
        rows,
        notes,
    }
}
