//! S-11: questions to a DNS server by way of the proxy, beside none, and beside dnsmasq.
//!
//! The client may ask for names of 100 patterns, and reach what they resolve to, so that every answer is learned from. Every
//! arm is a machine of its own. The client has the first CPU, the server and what stands in between the second: one worker,
//! one process. In each round each arm has its turn; figures are medians over the rounds of what is compared within one. The
//! server shares the CPU with what stands in between, and what waits there waits for both: times are promised beside dnsmasq's,
//! the work of a question by itself (ADR 14).

mod load;

use std::net::{SocketAddr, UdpSocket};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_policy_core::vector::schema::Suite;
use tokio::process::Child;

use super::machine::{self, CLIENT, MIDDLE, Machine, SERVER, SERVER_CPU, Who};
use super::report::{Part, Report};
use super::stats::median;
use super::{BenchError, Say};
use load::{Measured, PORT, Pace, Server, ZONES};

/// The number of the promise.
pub const ID: &str = "S-11";
/// What is measured, in one line.
pub const ABOUT: &str = "DNS by way of the proxy, 100 patterns and learning, one thread, beside none and dnsmasq";

/// Rounds; in each, each arm has a turn of so long at each pace.
const ROUNDS: usize = 7;
const LASTS: Duration = Duration::from_secs(2);
/// Questions a second that one thread has to forward if it has a CPU of its own, and half of that.
const RATE: f64 = 30_000.0;
const HALF: Pace = Pace::Rate(15_000);
/// The time of a question by dnsmasq's, as many as are answered.
const BESIDE: f64 = 0.75;
/// What may be added at half of the rate where the server has the same CPU, in microseconds: half of the questions, and 99 of
/// 100 beside dnsmasq.
const ADDED: f64 = 250.0;
const LATER: f64 = 0.0;

/// What stands in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Nothing,
    Proxy,
    Dnsmasq,
}

/// The arms, in the order of a round.
const ARMS: [(&str, Kind); 4] =
    [("nothing", Kind::Nothing), ("proxy", Kind::Proxy), ("dnsmasq", Kind::Dnsmasq), ("proxy, again", Kind::Proxy)];
const NOTHING: usize = 0;
const PROXY: usize = 1;
const DNSMASQ: usize = 2;
const AGAIN: usize = 3;

/// One arm.
#[derive(Debug)]
struct Arm<'a> {
    name: &'static str,
    kind: Kind,
    sockets: Vec<UdpSocket>,
    who: Who,
    _dnsmasq: Option<Child>,
    _server: Server,
    machine: Machine<'a>,
}

impl<'a> Arm<'a> {
    async fn up(name: &'static str, kind: Kind, suite: &'a Suite) -> Result<Self, BenchError> {
        let mut machine = if kind == Kind::Proxy { Machine::gated(suite).await? } else { Machine::open(suite).await? };
        let entered = BenchError::setup::<sluice_hostnet::netns::NamespaceError>;
        let bound = machine.pod("server")?.run(|| UdpSocket::bind((SERVER, PORT)));
        let server = bound.map_err(entered("the server cannot be entered"))?.and_then(Server::start);
        let server = server.map_err(BenchError::setup("the server does not begin"))?;
        let (mut who, mut dnsmasq, mut asked) = (Who::Nobody, None, SERVER);
        match kind {
            Kind::Nothing => {}
            Kind::Proxy => {
                machine.start_proxy(&[SERVER_CPU]).await?;
                let proxy = machine.proxy().ok_or(BenchError::Incomplete)?;
                who = Who::Process(proxy.pid().await.ok_or(BenchError::Incomplete)?);
            }
            Kind::Dnsmasq => {
                let words = format!(
                    "exec dnsmasq --keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --user=root --pid-file \
                     --bind-interfaces --listen-address={MIDDLE} --server={SERVER} --cache-size=0 --dns-forward-max=10000"
                );
                let net = machine.pod_path("middle")?;
                let cpu = SERVER_CPU.to_string();
                let child = machine.start(&net, &cpu, &words, Stdio::null(), Stdio::null()).await?;
                who = child.id().map_or(Who::Nobody, Who::Process);
                (dnsmasq, asked) = (Some(child), MIDDLE);
            }
        }
        let to = SocketAddr::from((asked, PORT));
        let sockets = machine.pod("client")?.run(|| load::sockets(CLIENT, to));
        let sockets = sockets.map_err(entered("the client cannot be entered"))?;
        let sockets = sockets.map_err(BenchError::setup("the client has no sockets"))?;
        Ok(Self { name, kind, sockets, who, _dnsmasq: dnsmasq, _server: server, machine })
    }

    fn turn(&self, pace: Pace) -> Result<Measured, BenchError> {
        let before = self.who.cpu()?;
        let loaded = std::thread::scope(|scope| scope.spawn(|| load::load(&self.sockets, pace, LASTS)).join());
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            let last = self.machine.last_words();
            BenchError::setup(format!("{}: what is measured does not work; {last}", self.name))(error)
        };
        let measured = loaded.map_err(|_panic| failed("the client has panicked".into()))?;
        let measured = measured.map_err(|error| failed(error.into()))?;
        if measured.answered < 1.0 {
            return Err(failed("there is no answer".into()));
        }
        let spent = self.who.cpu()?.saturating_sub(before);
        Ok(Measured { cpu: spent.as_secs_f64() * 1e6 / measured.answered, ..measured })
    }

    /// That names are learned, and what was asked is on record.
    async fn check(&self) -> Result<(), BenchError> {
        if self.kind != Kind::Proxy {
            return Ok(());
        }
        let proxy = self.machine.proxy().ok_or(BenchError::Incomplete)?;
        let records = proxy.records().await?;
        let learned = self.machine.names().await?;
        if records.iter().any(|record| record.get("kind").and_then(Value::as_str) == Some("dns")) && learned > 0 {
            return Ok(());
        }
        Err(BenchError::setup("nothing is learned")(format!("{learned} names; records: {records:?}")))
    }
}

/// Names of the zones may be asked for, and what they resolve to be reached.
fn policy() -> Value {
    let patterns: Vec<Value> =
        (0..ZONES).map(|zone| json!({ "matchPattern": format!("*.zone-{zone}.example.com") })).collect();
    let port = |port: &str, protocol: &str| json!([{ "port": port, "protocol": protocol }]);
    json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "metadata": { "name": "egress", "namespace": "x" },
        "spec": {
            "endpointSelector": { "matchLabels": { "app": "client" } },
            "egress": [
                {
                    "toEntities": ["all"],
                    "toPorts": [{ "ports": port(&PORT.to_string(), "UDP"), "rules": { "dns": patterns } }],
                },
                { "toFQDNs": patterns, "toPorts": [{ "ports": port("443", "TCP") }] },
            ],
        },
    })
}

/// Measures and reports.
///
/// # Errors
/// [`BenchError`]: what could not be set up, or nobody answers.
pub async fn run(say: Say) -> Result<Report, BenchError> {
    let suite = machine::cluster(&policy())?;
    let mut arms = Vec::new();
    for (name, kind) in ARMS {
        say(&format!("setting up: {name}"));
        arms.push(Arm::up(name, kind, &suite).await?);
    }
    say("once, to warm up and to learn");
    for arm in &arms {
        arm.turn(HALF)?;
        arm.check().await?;
    }
    let mut turns: [Vec<Vec<Measured>>; 2] = [ARMS.map(|_| Vec::new()).into(), ARMS.map(|_| Vec::new()).into()];
    for round in 0..ROUNDS {
        say(&format!("round {} of {ROUNDS}", round + 1));
        for turn in 0..arms.len() {
            let at = (round + turn) % arms.len();
            for (pace, turns) in [Pace::Full, HALF].into_iter().zip(&mut turns) {
                if let (Some(arm), Some(turns)) = (arms.get(at), turns.get_mut(at)) {
                    turns.push(arm.turn(pace)?);
                }
            }
        }
    }
    let [full, half] = &turns;
    Ok(report(full, half))
}

/// The median over the rounds of what `compare` makes of two arms' turns of one round.
fn paired(turns: &[Vec<Measured>], one: usize, other: usize, compare: impl Fn(&Measured, &Measured) -> f64) -> f64 {
    let of = |arm: usize| turns.get(arm).into_iter().flatten();
    let values: Vec<f64> = of(one).zip(of(other)).map(|(one, other)| compare(one, other)).collect();
    median(&values)
}

fn report(full: &[Vec<Measured>], half: &[Vec<Measured>]) -> Report {
    let all = |turns: &[Vec<Measured>], arm: usize, what: fn(&Measured) -> f64| {
        median(&turns.get(arm).into_iter().flatten().map(what).collect::<Vec<f64>>())
    };
    let lost = |arm: usize| {
        [full, half].iter().filter_map(|turns| turns.get(arm)).flatten().map(|turn| turn.lost).sum::<f64>()
    };
    // Both arms of the proxy are the same.
    let both = |turns: &[Vec<Measured>], other, compare: fn(&Measured, &Measured) -> f64| {
        median(&[PROXY, AGAIN].map(|arm| paired(turns, arm, other, compare)))
    };
    let rate = all(full, PROXY, |turn| turn.rate);
    let work = median(&[PROXY, AGAIN].map(|arm| all(full, arm, |turn| turn.cpu)));
    let part = |what: &str, figure, limit, unit| Part { what: what.into(), figure, limit, unit };
    let parts = vec![
        part("CPU of a question, as many as are answered", work, 1e6 / RATE, "us"),
        part("time of a question by dnsmasq's", both(full, DNSMASQ, |one, other| other.rate / one.rate), BESIDE, ""),
        part("questions without an answer", lost(PROXY) + lost(AGAIN), 0.0, ""),
        part("p50 added at 15,000 a second", both(half, NOTHING, |one, other| one.p50 - other.p50), ADDED, "us"),
        part("p99 later than dnsmasq's", both(half, DNSMASQ, |one, other| one.p99 - other.p99), LATER, "us"),
    ];
    let mut rows = Vec::new();
    for (title, turns) in [("as many as are answered", full), ("15,000 a second", half)] {
        let head = [title, "answers/s", "p50", "p99", "p50 added", "p99 added", "CPU", "lost"];
        rows.push(head.map(str::to_owned).to_vec());
        for (at, (name, _)) in ARMS.iter().enumerate() {
            let added = |what: fn(&Measured) -> f64| {
                format!("{:+.0} us", paired(turns, at, NOTHING, |one, other| what(one) - what(other)))
            };
            rows.push(vec![
                format!("  {name}"),
                format!("{:.0}", all(turns, at, |turn| turn.rate)),
                format!("{:.0} us", all(turns, at, |turn| turn.p50)),
                format!("{:.0} us", all(turns, at, |turn| turn.p99)),
                added(|turn| turn.p50),
                added(|turn| turn.p99),
                format!("{:.1} us", all(turns, at, |turn| turn.cpu)),
                format!("{:.0}", turns.get(at).into_iter().flatten().map(|turn| turn.lost).sum::<f64>()),
            ]);
        }
    }
    let same = paired(full, AGAIN, PROXY, |one, other| other.rate / one.rate);
    let ahead = paired(full, PROXY, DNSMASQ, |one, other| one.rate / other.rate);
    let notes = vec![
        format!("A/A, the proxy again by the proxy: time of a question {same:.3}"),
        "dnsmasq forwards without a cache, in its own name; CPU is that of what stands in between, for a question"
            .into(),
    ];
    let peer = Some(all(full, DNSMASQ, |turn| turn.rate));
    Report { id: ID, figure: rate, unit: "questions/s", peer, ratio: Some(ahead), parts, rows, notes }
}
