//! Random lives, each from a seed: pods come and go, EC2 fails in every way it knows and tells of the past, IMDS lies, calls
//! arrive twice, IAM denies them for a while, the daemon is killed at any time and at any call, prefixes are switched on and off,
//! a second subnet is there or not. No address is given before it has cooled; after each step no rule of the ledger is broken; at
//! the end every pod that could be served is, and ledger, EC2 and host agree.
//!
//! A life that fails prints its seed and what happened in it; `SLUICE_TEST_SEED=N` lives that one again, `SLUICE_TEST_SEED=N..M` those from N to M - 1.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use sluice_ipamd_core::checkpoint::Checkpoint;
use sluice_vpcsim::model::api::CreateSubnet;
use sluice_vpcsim::model::{Fault, FaultEffect};

use super::families::V6;
use super::sim::Crash;
use super::*;
use crate::executor::Random;
use crate::inbox::Answer;

/// What has happened, for whoever has to find out why.
type Trace = Arc<Mutex<Vec<String>>>;

/// How long an address is nobody's after its pod has gone.
const COOLDOWN: Duration = Duration::from_secs(10);

/// An answer to an ADD, and when it came; none from a daemon that was killed.
type Answered = JoinHandle<(Option<Reply>, Instant)>;

/// Hears an answer at the time at which it comes, whatever the life does meanwhile.
fn heard(reply: oneshot::Receiver<Answer>) -> Answered {
    tokio::spawn(async move {
        let answer = reply.await.ok();
        (answer.map(|answer| answer.reply), Instant::now())
    })
}

struct Storm {
    world: World,
    node: Option<Node>,
    random: Random,
    /// Pods that run.
    pods: BTreeMap<String, PodAddress>,
    /// When the last DEL of an address was asked for.
    gone: BTreeMap<IpAddr, Instant>,
    next: u32,
    trace: Trace,
}

impl Storm {
    async fn new(seed: u64, trace: Trace) -> Self {
        let settings = Settings { seed, ..Settings::aws() };
        let mut world =
            World::with(settings, "m5.large", if seed.is_multiple_of(5) { "10.0.0.0/25" } else { "10.0.0.0/22" });
        world.set("IP_COOLDOWN_PERIOD", &COOLDOWN.as_secs().to_string());
        if seed.is_multiple_of(3) {
            second_subnet(&world);
        }
        world.set("ENABLE_PREFIX_DELEGATION", if seed % 2 == 1 { "true" } else { "false" });
        match seed % 4 {
            2 => world.set("SLUICE_WARM_MODE", "adaptive"),
            3 => world.set("WARM_IP_TARGET", "3"),
            _ => {}
        }
        match seed % 5 {
            1 | 3 => world.set("ENABLE_IPv6", "true"),
            4 => V6.iter().for_each(|(name, value)| world.set(name, value)),
            _ => {}
        }
        let node = Some(world.start().await);
        Self { world, node, random: Random::new(seed), pods: BTreeMap::new(), gone: BTreeMap::new(), next: 0, trace }
    }

    fn say(&self, what: impl std::fmt::Display) {
        self.trace.lock().unwrap().push(format!("{:>9.3} s  {what}", self.world.cloud.now().as_secs_f64()));
    }

    fn node(&self) -> &Node {
        self.node.as_ref().unwrap()
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random.next() % limit
    }

    /// Some pods at once. The runtime undoes what has failed; the daemon may be killed while they wait.
    async fn add(&mut self) {
        let count = self.below(8) + 1;
        let patience = Duration::from_secs(self.below(20) + 1);
        let killed_after = (self.below(4) == 0).then(|| Duration::from_millis(self.random.next() % 4000));
        let names: Vec<String> = (0..count)
            .map(|_| {
                self.next += 1;
                format!("c{}", self.next)
            })
            .collect();
        self.say(format!("ADD {names:?} within {patience:?}, killed after {killed_after:?}"));
        let mut replies = Vec::new();
        for name in &names {
            let call = Call::Add(add_request(name));
            replies.push(heard(self.node().handle.ask(call, Instant::now() + patience).await.1));
        }
        if let Some(after) = killed_after {
            tokio::time::sleep(after).await;
            self.restart().await;
        }
        for (name, reply) in names.into_iter().zip(replies) {
            self.answered(name, reply).await;
        }
    }

    /// Takes in what came of an ADD.
    async fn answered(&mut self, name: String, reply: Answered) {
        let (reply, at) = reply.await.unwrap();
        match reply {
            Some(Reply::Done(Outcome::Add(mut reply))) => {
                self.have_cooled(&name, &reply.addresses, at);
                let address = reply.addresses.remove(0);
                self.say(format!("{name} has {}", address.ip));
                self.world.pod_runs(&name, address.ip);
                self.pods.insert(name, address);
            }
            Some(Reply::Refused(refusal)) => {
                self.say(format!("{name} is refused: {}", refusal.message));
                assert!(refusal.code.is_retriable(), "{refusal:?}");
                self.del_named(&name).await;
            }
            Some(other) => panic!("{name}: {other:?}"),
            // It was killed, and may have given an address: the runtime undoes that.
            None => drop(self.del_named(&name).await),
        }
    }

    /// No address is given while it cools, whoever has been killed meanwhile and whatever EC2 has said.
    fn have_cooled(&self, name: &str, addresses: &[PodAddress], at: Instant) {
        for PodAddress { ip, .. } in addresses {
            let rested = self.gone.get(ip).map(|gone| at.duration_since(*gone));
            // Time on record is in whole milliseconds.
            let enough = rested.is_none_or(|rested| rested + Duration::from_millis(1) >= COOLDOWN);
            assert!(enough, "{name} is given {ip}, {rested:?} after its last pod went");
        }
    }

    /// A DEL, and when it was asked for.
    async fn del_named(&mut self, name: &str) -> Vec<PodAddress> {
        let asked = Instant::now();
        let addresses = self.node().del(name).await;
        self.gone.extend(addresses.iter().map(|address| (address.ip, asked)));
        addresses
    }

    async fn del(&mut self) {
        let count = self.below(1 + self.pods.len() as u64);
        for _ in 0..count {
            self.del_first().await;
        }
    }

    async fn del_first(&mut self) {
        let Some(name) = self.pods.keys().next().cloned() else { return };
        let address = self.pods.remove(&name).unwrap();
        self.say(format!("DEL {name}, {}", address.ip));
        self.world.pod_ends(address.ip);
        assert_eq!(self.del_named(&name).await.first(), Some(&address));
    }

    async fn restart(&mut self) {
        self.say("kill -9, start");
        self.node.take().unwrap().kill().await;
        let path = self.world.config().checkpoint();
        let left = std::fs::read(&path).unwrap_or_default();
        self.node = Some(self.world.start().await);
        // What a daemon has written is what the next one can use, wherever it has died.
        let aside = std::fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name());
        let aside: Vec<_> = aside.filter(|name| name.to_string_lossy().contains("corrupt")).collect();
        if !aside.is_empty() {
            self.tell_calls();
        }
        let why = || Checkpoint::from_json(&left).and_then(|read| read.into_state(self.world.clock.now())).err();
        assert!(aside.is_empty(), "{aside:?}: {:?}\n{}", why(), String::from_utf8_lossy(&left));
    }

    /// The daemon is killed at its n-th call of EC2 from here, before or after its effect, or after a minute.
    async fn die_at_a_call(&mut self) {
        let number = 1 + self.below(4);
        let crash = if self.below(2) == 0 { Crash::BeforeCall(number) } else { Crash::AfterCall(number) };
        self.say(format!("{crash:?}"));
        self.world.cloud.crash_at(Some(crash));
        let cloud = self.world.cloud.clone();
        let pods = self.below(12);
        let mut replies = Vec::new();
        for _ in 0..pods {
            self.next += 1;
            let name = format!("c{}", self.next);
            let call = Call::Add(add_request(&name));
            replies.push((name, heard(self.node().handle.ask(call, Instant::now() + Duration::from_secs(60)).await.1)));
        }
        let died = tokio::time::timeout(Duration::from_secs(60), cloud.crashed()).await.is_ok();
        self.say(if died { "it dies there" } else { "it has not called so often" });
        self.world.cloud.crash_at(None);
        self.restart().await;
        for (name, reply) in replies {
            self.answered(name, reply).await;
        }
    }

    /// A restart with the other form of addresses.
    async fn toggle(&mut self) {
        let on = self.world.environment["ENABLE_PREFIX_DELEGATION"] == "true";
        self.say(format!("ENABLE_PREFIX_DELEGATION={}", !on));
        self.world.set("ENABLE_PREFIX_DELEGATION", if on { "false" } else { "true" });
        self.restart().await;
    }

    fn fault(&mut self) {
        const ACTIONS: [&str; 6] = [
            "AssignPrivateIpAddresses",
            "AttachNetworkInterface",
            "CreateNetworkInterface",
            "DeleteNetworkInterface",
            "DetachNetworkInterface",
            "UnassignPrivateIpAddresses",
        ];
        let error = |code: &str, status| FaultEffect::Error {
            code: code.into(),
            message: "as told".into(),
            status: Some(status),
        };
        let effect = match self.below(9) {
            0 => FaultEffect::TimeoutBeforeEffect,
            1 => FaultEffect::TimeoutAfterEffect,
            2 => FaultEffect::PartialEffect,
            3 => FaultEffect::Slow { millis: 3000 },
            4 => error("InternalError", 500),
            5 => error("InsufficientFreeAddressesInSubnet", 400),
            6 => error("InsufficientCidrBlocks", 400),
            7 => error("UnauthorizedOperation", 403),
            _ => error("RequestLimitExceeded", 503),
        };
        let action = ACTIONS.get(usize::try_from(self.below(7)).unwrap()).map(|action| (*action).to_owned());
        let count = Some(u32::try_from(1 + self.below(3)).unwrap());
        self.say(format!("{count:?} calls of {action:?}: {effect:?}"));
        self.world.cloud.model().add_fault(Fault { action, effect, count, of_million: None }).unwrap();
    }

    /// EC2 and IMDS tell of the past, or IMDS leaves an ENI out.
    fn lie(&mut self) {
        let describe = Duration::from_millis(self.random.next() % 8000);
        let imds = Duration::from_millis(self.random.next() % 90_000);
        let omitted = [None, Some(1), Some(2)][usize::try_from(self.random.next() % 3).unwrap()];
        let twice = u32::try_from(self.random.next() % 3).unwrap();
        self.say(format!(
            "EC2 tells what was {describe:?} ago, IMDS what was {imds:?} ago without device {omitted:?}; {twice} calls come twice"
        ));
        self.world.cloud.lag(describe, imds);
        self.world.cloud.omit(omitted);
        self.world.cloud.repeat(twice);
    }

    fn tell_the_truth(&self) {
        self.say("EC2 and IMDS are well again");
        self.world.cloud.model().clear_faults();
        let aws = Settings::aws();
        self.world.cloud.lag(aws.describe_lag, aws.imds_lag);
        self.world.cloud.omit(None);
        self.world.cloud.repeat(0);
    }

    async fn step(&mut self) {
        match self.below(16) {
            0..=4 => self.add().await,
            5..=6 => self.del().await,
            7..=9 => self.fault(),
            10 => self.restart().await,
            11 => self.die_at_a_call().await,
            12 => self.toggle().await,
            13..=14 => self.lie(),
            _ => self.tell_the_truth(),
        }
        let pause = Duration::from_millis(self.random.next() % 20_000);
        tokio::time::sleep(pause).await;
        let view = self.node().view().await;
        assert_eq!(view.pool.violations, 0);
        assert!(view.pool.assigned as usize >= self.pods.len(), "{view:#?}");
    }

    /// Every call of EC2, for whoever has to find out why.
    fn tell_calls(&self) {
        let model = self.world.cloud.model();
        let lines = model.log().records().map(|call| {
            let at = Duration::from_millis(call.at_millis).as_secs_f64();
            format!("{at:>9.3} s  {} {}: {}", call.action, call.parameters, call.outcome)
        });
        self.trace.lock().unwrap().extend(lines);
    }

    /// Everything is well again: whoever asks is served, and everything agrees.
    async fn end(mut self) {
        self.tell_the_truth();
        // A subnet that was said to have nothing is tried again after five minutes at most.
        tokio::time::sleep(Duration::from_secs(320)).await;
        self.node().wait("a settled pool", View::is_settled).await;
        // As many pods stay as leave room for more in any mix of addresses and prefixes.
        while self.pods.len() > 12 {
            self.del_first().await;
        }
        self.node().wait("what has cooled", |view| view.is_settled() && view.pool.cooling == 0).await;
        for _ in 0..4 {
            self.next += 1;
            let last = format!("c{}", self.next);
            let address = self.node().add(&last).await.expect("a pod that can be served is served");
            self.have_cooled(&last, std::slice::from_ref(&address), Instant::now());
            self.say(format!("{last} has {}", address.ip));
            self.world.pod_runs(&last, address.ip);
            self.pods.insert(last, address);
        }
        // What IMDS shows beyond the ledger is asked about five minutes after the last answer.
        tokio::time::sleep(Duration::from_secs(500)).await;
        self.node().wait("a settled pool", View::is_settled).await;
        // What ENIs have left on the host is found when the kernel is looked at.
        tokio::time::sleep(Duration::from_secs(61)).await;
        for (name, address) in self.pods.clone() {
            assert_eq!(self.node().add(&name).await, Ok(address), "{name} has kept its address");
        }
        // A shortage of prefixes ends at its own time: what a try has under way then is no disagreement.
        self.node().wait("a settled pool", View::is_settled).await;
        self.tell_calls();
        self.world.agrees(self.node()).await;
        let pods = self.pods.len();
        let view = self.node().wait("only what runs", |view| view.pool.assigned as usize == pods).await;
        assert_eq!(view.pool.quarantined, 0);
    }
}

/// A second subnet that ENIs may be made in, as small as what a zone has left.
fn second_subnet(world: &World) {
    let mut model = world.cloud.model();
    let create = CreateSubnet {
        vpc: model.state().vpcs.keys().next().unwrap().clone(),
        cidr: "10.0.16.0/26".parse().unwrap(),
        ipv6_cidr: Some("3fff:0:0:102::/64".parse().unwrap()),
        availability_zone: Some("us-east-1a".into()),
        tags: [("kubernetes.io/role/cni".to_owned(), "1".to_owned())].into(),
    };
    model.add_subnet(&create, false).unwrap();
}

/// One life.
fn live(seed: u64, trace: &Trace) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut storm = Storm::new(seed, Arc::clone(trace)).await;
        for _ in 0..24 {
            storm.step().await;
        }
        storm.end().await;
    });
}

/// A life that failed: its seed, what happened, and the panic.
type Failed = (u64, Trace, Box<dyn std::any::Any + Send>);

/// Lives of `seeds`, on all processors. The first that fails is printed.
fn live_all(seeds: std::ops::Range<u64>) {
    let next = AtomicU64::new(seeds.start);
    let failed: Mutex<Option<Failed>> = Mutex::new(None);
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || failed.lock().unwrap().is_some() {
                        return;
                    }
                    let trace = Trace::default();
                    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| live(seed, &trace))) {
                        failed.lock().unwrap().get_or_insert((seed, trace, panic));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    if let Some((seed, trace, panic)) = failed {
        println!("seed {seed} fails (SLUICE_TEST_SEED={seed} lives it again):");
        trace.lock().unwrap().iter().for_each(|line| println!("{line}"));
        resume_unwind(panic);
    }
}

#[test]
fn s05_random_lives_end_in_agreement() {
    let chosen = std::env::var_os("SLUICE_TEST_SEED").map(|seeds| seeds.to_string_lossy().into_owned());
    let seeds = match chosen.as_deref().map(|seeds| seeds.split_once("..").unwrap_or((seeds, ""))) {
        Some((one, "")) => one.parse().unwrap()..one.parse::<u64>().unwrap() + 1,
        Some((first, end)) => first.parse().unwrap()..end.parse().unwrap(),
        None if std::env::var_os("SLUICE_TEST_ALL").is_some() => 0..10_000,
        None => 0..1000,
    };
    let begun = std::time::Instant::now();
    live_all(seeds.clone());
    println!("{} lives in {:.0?}", seeds.end - seeds.start, begun.elapsed());
}

/// The same seed is the same life, call by call.
#[test]
fn a_seed_is_one_life() {
    let life = || {
        let trace = Trace::default();
        live(17, &trace);
        Arc::into_inner(trace).unwrap().into_inner().unwrap()
    };
    assert_eq!(life(), life());
}
