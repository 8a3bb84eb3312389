//! S-11: how many DNS queries a second one thread of the engine forwards, with 100 patterns and learning on.
//!
//! `cargo bench -p sluice-proxy --bench dns [-- SECONDS]`. A client with 8 ports and 32 queries under way on each, the engine, and a
//! server that answers at once, over loopback. Beside the rate it says what a query costs the engine's thread, which does not
//! depend on what else the machine does; the rate without the engine is the ceiling.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a benchmark says its figures, and ends when something fails"
)]

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use sluice_policy_core::cluster::PodKey;
use sluice_policy_core::l7::dns::NamePattern;
use sluice_policy_core::model::cilium::Application;
use sluice_proxy::dns::{Dns, Limits, Sockets};
use sluice_proxy::flow::{Flow, Protocol};
use sluice_proxy::names::{Names, Wanted};
use sluice_proxy::policy::{Looks, Outcome, Policy, Refused, RuleList, Rules};
use sluice_proxy::record::{Record, Recorder};

const PORTS: usize = 8;
const WINDOW: usize = 32;
const NAMES: usize = 1_000;
const PATTERNS: usize = 100;

#[derive(Debug)]
struct Fixed(Arc<Rules>);

impl Policy for Fixed {
    fn rules(&self, _: &Flow, _: Protocol, _: SocketAddr) -> Result<Arc<Rules>, Refused> {
        Ok(Arc::clone(&self.0))
    }

    fn version(&self) -> u64 {
        1
    }

    async fn changed(&self, _: u64) {
        std::future::pending().await
    }
}

/// Records are made, and forgotten.
#[derive(Debug)]
struct Forget;

impl Recorder for Forget {
    fn record(&self, record: Record) {
        std::hint::black_box(record);
    }
}

#[derive(Debug)]
struct Loopback {
    server: SocketAddr,
    listener: UdpSocket,
}

impl Sockets for Loopback {
    fn upstream(&self, _: SocketAddr, _: SocketAddr) -> io::Result<UdpSocket> {
        let socket = bind();
        socket.connect(self.server)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }

    fn reply(&self, _: SocketAddr) -> io::Result<UdpSocket> {
        self.listener.try_clone()
    }
}

fn bind() -> UdpSocket {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}

fn query(id: u16, name: usize) -> Vec<u8> {
    let mut message = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    message[..2].copy_from_slice(&id.to_be_bytes());
    for label in [format!("host-{name}"), format!("zone-{}", name % PATTERNS), "example".into(), "com".into()] {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    message
}

/// Answers every query with two addresses, until it is told to stop.
fn serve(socket: &UdpSocket, stop: &AtomicBool) {
    let mut message = [0; 512];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, client)) = socket.recv_from(&mut message) else { continue };
        let mut answer = message[..length].to_vec();
        answer[2] = 0x81;
        answer[7] = 2;
        for last in [1, 2] {
            answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 1, 0, 0, 4, 192, 0, 2, last]);
        }
        socket.send_to(&answer, client).unwrap();
    }
}

/// Queries answered in a time, and lost.
fn load(to: SocketAddr, seconds: u64) -> (u64, u64) {
    let clients: Vec<UdpSocket> = (0..PORTS).map(|_| bind()).collect();
    let (mut next, mut answered, mut lost) = (0_usize, 0_u64, 0_u64);
    let mut message = [0; 512];
    for client in &clients {
        client.connect(to).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    }
    let mut ask = |client: &UdpSocket| {
        next += 1;
        client.send(&query(u16::try_from(next % 65_536).unwrap(), next % NAMES)).unwrap();
    };
    for client in &clients {
        (0..WINDOW).for_each(|_| ask(client));
    }
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        for client in &clients {
            // Half of what is under way comes back, and as much is asked again.
            for _ in 0..WINDOW / 2 {
                match client.recv(&mut message) {
                    Ok(_) => answered += 1,
                    Err(_) => lost += 1,
                }
                ask(client);
            }
        }
    }
    for client in &clients {
        for _ in 0..WINDOW {
            match client.recv(&mut message) {
                Ok(_) => answered += 1,
                Err(_) => lost += 1,
            }
        }
    }
    (answered, lost)
}

fn engine(listener: UdpSocket, server: SocketAddr, stop: &AtomicBool) -> Duration {
    let pattern = |at: usize| NamePattern::cilium(&format!("*.zone-{at}.example.com")).unwrap();
    let patterns: Vec<NamePattern> = (0..PATTERNS).map(pattern).collect();
    let rules = Rules {
        pod: PodKey { namespace: "bench".into(), name: "client".into() },
        lists: vec![Arc::new(RuleList::new("rule".into(), Application::Dns(patterns.clone().into())))].into(),
        otherwise: Outcome { passes: false, reason: "no".into() },
        audit: None,
        looks: Looks::Dns,
    };
    let (names, mut link) = Names::new(None);
    let least = Duration::from_secs(60);
    link.wanted.send(Arc::new(Wanted { patterns, least, classes: Vec::new() })).unwrap();
    let dns = Dns::new(Arc::new(Fixed(Arc::new(rules))), Arc::new(Forget), names, Limits::default());
    let sockets = Loopback { server, listener: listener.try_clone().unwrap() };
    listener.set_nonblocking(true).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stopped = async {
            while !stop.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let telling = async {
            while let Some(ask) = link.asks.recv().await {
                let _told = ask.done.send(true);
            }
        };
        tokio::select! {
            served = dns.serve_datagrams(vec![listener], sockets) => served.unwrap(),
            () = telling => {}
            () = stopped => {}
        }
    });
    let known = dns.counters().each().map(|(name, _, count)| format!("{name} {count}")).collect::<Vec<_>>();
    println!("{}", known.join(", "));
    Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap())
}

fn main() {
    let seconds = std::env::args().filter_map(|argument| argument.parse().ok()).next().unwrap_or(5);
    let stop = Arc::new(AtomicBool::new(false));
    let server = bind();
    server.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let at = server.local_addr().unwrap();
    assert_eq!(at.ip(), IpAddr::V4(Ipv4Addr::LOCALHOST));
    let serving = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || serve(&server, &stop))
    };
    let (direct, _) = load(at, seconds);
    let listener = bind();
    let proxy = listener.local_addr().unwrap();
    let running = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || engine(listener, at, &stop))
    };
    let (answered, lost) = load(proxy, seconds);
    stop.store(true, Ordering::Relaxed);
    let cpu = running.join().unwrap();
    serving.join().unwrap();
    let cost = cpu.as_secs_f64() * 1e6 / answered as f64;
    println!("direct: {} queries/s", direct / seconds);
    println!(
        "engine: {} queries/s, {lost} lost; {cost:.2} us of its thread a query: {:.0} a second at most",
        answered / seconds,
        1e6 / cost
    );
}
