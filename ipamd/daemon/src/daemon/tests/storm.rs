//! Random lives: pods come and go, EC2 fails in every way it knows, the daemon is killed. Afterwards everything agrees.

use sluice_vpcsim::model::{Fault, FaultEffect};

use super::*;
use crate::executor::Random;

struct Storm {
    world: World,
    node: Option<Node>,
    random: Random,
    /// Pods that run.
    pods: BTreeMap<String, PodAddress>,
    next: u32,
}

impl Storm {
    async fn new(seed: u64) -> Self {
        let settings = Settings { seed, ..Settings::aws() };
        let mut world = World::with(settings, "m5.large", "10.0.0.0/22");
        world.set("IP_COOLDOWN_PERIOD", "10");
        if seed % 2 == 1 {
            world.set("ENABLE_PREFIX_DELEGATION", "true");
        }
        let node = Some(world.start().await);
        Self { world, node, random: Random::new(seed), pods: BTreeMap::new(), next: 0 }
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
        let mut replies = Vec::new();
        for name in &names {
            let call = Call::Add(add_request(name));
            replies.push(self.node().handle.ask(call, Instant::now() + patience).await.1);
        }
        if let Some(after) = killed_after {
            tokio::time::sleep(after).await;
            self.restart().await;
        }
        for (name, reply) in names.into_iter().zip(replies) {
            match reply.await.map(|answer| answer.reply) {
                Ok(Reply::Done(Outcome::Add(mut reply))) => {
                    let address = reply.addresses.remove(0);
                    self.world.pod_runs(&name, v4(&address));
                    self.pods.insert(name, address);
                }
                Ok(Reply::Refused(refusal)) => {
                    assert!(refusal.code.is_retriable(), "{refusal:?}");
                    self.node().del(&name).await;
                }
                Ok(other) => panic!("{name}: {other:?}"),
                Err(_killed) => drop(self.node().del(&name).await),
            }
        }
    }

    async fn del(&mut self) {
        let count = self.below(1 + self.pods.len() as u64);
        for _ in 0..count {
            let Some(name) = self.pods.keys().next().cloned() else { return };
            let address = self.pods.remove(&name).unwrap();
            self.world.pod_ends(v4(&address));
            assert_eq!(self.node().del(&name).await, [address]);
        }
    }

    async fn restart(&mut self) {
        self.node.take().unwrap().kill().await;
        self.node = Some(self.world.start().await);
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
        let effect = match self.below(5) {
            0 => FaultEffect::TimeoutBeforeEffect,
            1 => FaultEffect::TimeoutAfterEffect,
            2 => FaultEffect::PartialEffect,
            3 => FaultEffect::Slow { millis: 3000 },
            _ => FaultEffect::Error {
                code: "RequestLimitExceeded".into(),
                message: "slow down".into(),
                status: Some(503),
            },
        };
        let action = ACTIONS.get(usize::try_from(self.below(7)).unwrap()).map(|action| (*action).to_owned());
        let count = Some(u32::try_from(1 + self.below(3)).unwrap());
        self.world.cloud.model().add_fault(Fault { action, effect, count, of_million: None }).unwrap();
    }

    async fn step(&mut self) {
        match self.below(10) {
            0..=3 => self.add().await,
            4..=5 => self.del().await,
            6..=7 => self.fault(),
            8 => self.restart().await,
            _ => self.world.cloud.model().clear_faults(),
        }
        let pause = Duration::from_millis(self.random.next() % 20_000);
        tokio::time::sleep(pause).await;
        let view = self.node().view().await;
        assert_eq!(view.pool.violations, 0);
        assert!(view.pool.assigned as usize >= self.pods.len(), "{view:#?}");
    }
}

#[tokio::test(start_paused = true)]
async fn s05_random_lives_end_in_agreement() {
    let seeds = if std::env::var_os("SLUICE_TEST_ALL").is_some() { 0..60 } else { 0..6 };
    for seed in seeds {
        println!("seed {seed}");
        let mut storm = Storm::new(seed).await;
        for _ in 0..50 {
            storm.step().await;
        }
        storm.world.cloud.model().clear_faults();
        storm.node().wait("a settled pool", View::is_settled).await;
        // What an ENI has left on the host is found when the kernel is looked at.
        tokio::time::sleep(Duration::from_secs(61)).await;
        for (name, address) in storm.pods.clone() {
            assert_eq!(storm.node().add(&name).await, Ok(address), "{name} has kept its address");
        }
        storm.world.agrees(storm.node()).await;
        let pods = storm.pods.len();
        let view = storm.node().wait("only what runs", |view| view.pool.assigned as usize == pods).await;
        assert_eq!(view.pool.quarantined, 0);
    }
}
