//! The life of a node in virtual time: the daemon's loop without the daemon, on the model of EC2.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use sluice_contract::id::{Attachment, ContainerId, EniId, IfName, MacAddr, NetworkName, PodRef, SubnetId, VpcId};
use sluice_contract::node::nic;
use sluice_contract::rpc::Refusal;
use sluice_ipamd_core::check::check;
use sluice_ipamd_core::checkpoint::{Checkpoint, CheckpointError, Writer};
use sluice_ipamd_core::cloud::{
    CloudError, CloudErrorKind, Ec2Eni, EniConfig, ImdsEni, InstanceIdentity, InstanceLimits,
};
use sluice_ipamd_core::ipv6::Families;
use sluice_ipamd_core::ledger::{Owner, Stage};
use sluice_ipamd_core::op::{Failure, Op, Outcome};
use sluice_ipamd_core::plan::{Demand, Plan, Targets, plan};
use sluice_ipamd_core::queue::{Queue, Token};
use sluice_ipamd_core::recover::{Finding, KernelView, reconcile, recover};
use sluice_ipamd_core::serve::serve;
use sluice_ipamd_core::state::{Event, Node, State, tag};
use sluice_ipamd_core::time::Timestamp;

use crate::ec2::{Ec2, Subnet, error};

pub(crate) const COOLDOWN: Duration = Duration::from_secs(30);
/// How long an ADD waits.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// What becomes of a call, decided when it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Done,
    /// Refused before it had an effect.
    Refused(CloudErrorKind),
    /// It has its effect, and no answer comes.
    Lost,
    /// A description shows what was up to ten seconds ago.
    Late,
}

pub(crate) struct Flight {
    pub(crate) op: Op,
    pub(crate) ends: Timestamp,
    fate: Fate,
}

pub(crate) struct Life {
    pub(crate) now: Timestamp,
    pub(crate) state: State,
    /// Writes a checkpoint after each event, as the daemon does.
    writer: Writer,
    pub(crate) queue: Queue,
    pub(crate) targets: Targets,
    pub(crate) ec2: Ec2,
    pub(crate) flights: Vec<Flight>,
    /// Live pods.
    pub(crate) pods: BTreeMap<Attachment, IpAddr>,
    /// The IPv6 addresses of pods that have both.
    pub(crate) companions: BTreeMap<Attachment, Ipv6Addr>,
    pub(crate) families: Families,
    pub(crate) custom: bool,
    /// `ENABLE_MULTI_NIC`.
    multi_nic: bool,
    pub(crate) refused: Vec<Refusal>,
    /// When an address was last released.
    released: BTreeMap<IpAddr, Timestamp>,
    tokens: u64,
    starts: u64,
    /// What EC2 held before each change.
    past: VecDeque<(Timestamp, BTreeMap<EniId, Ec2Eni>)>,
    /// Each call with its reason, if someone wants to read them.
    pub(crate) log: Vec<String>,
    pub(crate) last_op: Timestamp,
    /// What becomes of the next calls; all others are done.
    pub(crate) fates: Box<dyn FnMut(&Op) -> Fate>,
    pub(crate) plan: Plan,
}

pub(crate) fn subnet_id(n: u32) -> SubnetId {
    SubnetId::new(format!("subnet-{n:08x}")).unwrap()
}

pub(crate) fn owner(name: &str) -> Arc<Owner> {
    Arc::new(Owner {
        attachment: Attachment {
            container: ContainerId::new(name).unwrap(),
            ifname: IfName::new("eth0").unwrap(),
            network: NetworkName::new("sluice").unwrap(),
        },
        pod: PodRef { namespace: "default".to_owned(), name: name.to_owned(), uid: None },
        host_ifname: IfName::new(format!("eni{:.11}", name)).unwrap(),
        netns: format!("/run/netns/{name}"),
    })
}

/// The `index`-th interface of a pod.
fn interface(name: &str, index: u8) -> Arc<Owner> {
    let first = owner(name);
    let attachment = nic::attachment(&first.attachment, index).unwrap();
    let host_ifname = match index {
        0 => first.host_ifname.clone(),
        _ => IfName::new(format!("e{index}{:.11}", name)).unwrap(),
    };
    Arc::new(Owner { attachment, host_ifname, ..Owner::clone(&first) })
}

impl Life {
    /// A node on which the daemon starts for the first time.
    pub(crate) fn new(limits: InstanceLimits, targets: Targets) -> Self {
        Self::with_subnet(limits, targets, "10.0.0.0/20".parse().unwrap())
    }

    pub(crate) fn with_subnet(limits: InstanceLimits, targets: Targets, cidr: Ipv4Net) -> Self {
        Self::with_families(limits, targets, cidr, Families::V4)
    }

    pub(crate) fn with_families(limits: InstanceLimits, targets: Targets, cidr: Ipv4Net, families: Families) -> Self {
        let mut ec2 = Ec2::new(limits);
        ec2.subnets.insert(subnet_id(1), Subnet { cidr, tags: BTreeMap::new(), others: BTreeSet::new() });
        ec2.launch(&subnet_id(1));
        let mut life = Self {
            now: Timestamp::from_millis(1_000_000_000_000),
            state: State::new(7),
            writer: Writer::default(),
            queue: Queue::default(),
            targets,
            ec2,
            flights: Vec::new(),
            pods: BTreeMap::new(),
            companions: BTreeMap::new(),
            families,
            custom: false,
            multi_nic: true,
            refused: Vec::new(),
            released: BTreeMap::new(),
            tokens: 0,
            starts: 0,
            past: VecDeque::new(),
            log: Vec::new(),
            last_op: Timestamp::default(),
            fates: Box::new(|_| Fate::Done),
            plan: Plan::default(),
        };
        life.apply(Event::NodeKnown(life.node()));
        life.hear_imds();
        life
    }

    /// Custom networking in a subnet of its own, from the first start on.
    pub(crate) fn with_custom_networking(mut self, cidr: Ipv4Net) -> Self {
        self.ec2.subnets.insert(subnet_id(2), Subnet { cidr, tags: BTreeMap::new(), others: BTreeSet::new() });
        self.custom = true;
        self.state = State::new(7);
        self.apply(Event::NodeKnown(self.node()));
        let config = EniConfig { name: "zone".to_owned(), subnet: subnet_id(2), security_groups: Vec::new() };
        self.apply(Event::EniConfigKnown(Some(config)));
        self.hear_imds();
        self
    }

    fn node(&self) -> Node {
        Node {
            identity: InstanceIdentity {
                instance: self.ec2.instance.clone(),
                instance_type: "model".to_owned(),
                availability_zone: "xx-1a".to_owned(),
                region: "xx-1".to_owned(),
                primary_mac: MacAddr([2, 0, 0, 0, 0, 1]),
                vpc: VpcId::new("vpc-00000001").unwrap(),
            },
            limits: self.ec2.limits.clone(),
            vpc_cidrs: vec!["10.0.0.0/16".parse().unwrap()],
            security_groups: Vec::new(),
            tags: BTreeMap::from([(tag::INSTANCE.to_owned(), self.ec2.instance.to_string())]),
            manage_untagged_enis: true,
            families: self.families,
            custom_networking: self.custom,
            subnet_discovery: true,
            imds_only: false,
            multi_nic: self.multi_nic,
        }
    }

    /// Switches pods' interfaces on further network cards on or off, as by a restart with another setting.
    pub(crate) fn use_further_cards(&mut self, multi_nic: bool) {
        self.multi_nic = multi_nic;
        self.apply(Event::NodeKnown(self.node()));
    }

    /// What EC2 held ten seconds ago.
    fn past_enis(&self) -> BTreeMap<EniId, Ec2Eni> {
        self.past.front().map_or_else(|| self.ec2.enis.clone(), |(_, enis)| enis.clone())
    }

    /// What IMDS showed ten seconds ago.
    pub(crate) fn hear_late_imds(&mut self) {
        let enis = self.past_enis();
        self.apply(Event::ImdsSeen(self.imds(&enis)));
    }

    /// IMDS leaves an ENI out.
    pub(crate) fn hear_imds_without(&mut self, device: u32) {
        let mut enis = self.imds(&self.ec2.enis);
        enis.retain(|eni| eni.device != device);
        self.apply(Event::ImdsSeen(enis));
    }

    fn imds(&self, enis: &BTreeMap<EniId, Ec2Eni>) -> Vec<ImdsEni> {
        let attached = enis.values().filter(|eni| eni.attachment.is_some());
        attached
            .map(|eni| ImdsEni {
                eni: eni.eni.clone(),
                mac: eni.mac,
                device: eni.attachment.as_ref().unwrap().device,
                card: eni.attachment.as_ref().unwrap().card,
                subnet: eni.subnet.clone(),
                subnet_cidr: self.ec2.subnets[&eni.subnet].cidr,
                primary_ip: eni.primary_ip,
                secondary_ips: eni.secondary_ips.clone(),
                prefixes: eni.prefixes.clone(),
                ipv6_prefixes: eni.ipv6_prefixes.clone(),
                security_groups: Vec::new(),
            })
            .collect()
    }

    pub(crate) fn hear_imds(&mut self) {
        self.apply(Event::ImdsSeen(self.imds(&self.ec2.enis)));
    }

    pub(crate) fn apply(&mut self, event: Event) {
        let what = format!("{event:?}");
        if let Err(error) = self.state.apply(event, self.now) {
            panic!("{what}: {error}");
        }
        self.check(&what);
        let written = self.writer.write(&self.state, self.now).unwrap();
        assert!(
            written == Checkpoint::of(&self.state, self.now).to_json().unwrap(),
            "after {what}, what is written is of before"
        );
    }

    fn check(&self, after: &str) {
        let violations = check(&self.state, self.now);
        assert!(violations.is_empty(), "after {after}: {violations:?}\n{}", self.log.join("\n"));
    }

    pub(crate) fn add(&mut self, name: &str) {
        self.tokens += 1;
        let owner = owner(name);
        if !self.queue.waits(&owner.attachment) {
            self.apply(Event::Arrived);
        }
        self.queue.join(Token(self.tokens), owner, None, self.now + DEADLINE, self.now).unwrap();
    }

    /// A pod with an interface on each network card.
    pub(crate) fn add_on_every_card(&mut self, name: &str) {
        self.tokens += 1;
        self.apply(Event::Arrived);
        for (index, card) in (0..).zip(self.state.cards()) {
            let owner = interface(name, index);
            self.queue.join(Token(self.tokens), owner, Some(card), self.now + DEADLINE, self.now).unwrap();
        }
    }

    /// The interfaces that a pod has or waits for.
    fn interfaces(&self, name: &str) -> Vec<Attachment> {
        let held = self.state.ledger().owners().map(|(attachment, _)| attachment).chain(self.pods.keys());
        let all = held.chain(self.queue.waiters().map(|waiter| &waiter.owner.attachment));
        let all: BTreeSet<&Attachment> = all.filter(|attachment| attachment.container.as_str() == name).collect();
        all.into_iter().cloned().collect()
    }

    /// Takes back what a pod was given that could not be given all: it never ran.
    fn give_back(&mut self, name: &str) {
        for attachment in self.interfaces(name) {
            self.pods.remove(&attachment);
            self.companions.remove(&attachment);
            if self.state.ledger().address_of(&attachment).is_some() {
                self.apply(Event::Release(attachment, Duration::ZERO));
            }
        }
    }

    pub(crate) fn del(&mut self, name: &str) {
        for attachment in self.interfaces(name) {
            self.queue.remove(&attachment);
            self.released.extend(self.pods.remove(&attachment).map(|address| (address, self.now)));
            self.companions.remove(&attachment);
            if let Some(address) = self.state.ledger().address_of(&attachment) {
                self.released.insert(address, self.now);
                self.apply(Event::Release(attachment, COOLDOWN));
            }
        }
    }

    /// A pod dies, and its DEL is lost.
    pub(crate) fn die(&mut self, name: &str) {
        self.pods.retain(|attachment, _| attachment.container.as_str() != name);
        self.companions.retain(|attachment, _| attachment.container.as_str() != name);
    }

    /// Serves and plans until nothing more happens at this time.
    pub(crate) fn pump(&mut self) {
        for round in 0.. {
            assert!(round < 200, "no end of plans at {}: {:?}", self.now, self.plan);
            self.plan = plan(&self.state, &self.targets, &Demand::of(&self.state, &self.queue), self.now);
            let serving = serve(&self.state, &self.queue, &self.plan, self.now);
            let mut quiet = self.plan.ops.is_empty() && serving.grants.is_empty() && serving.refused.is_empty();
            for grant in serving.grants {
                if let Some(at) = self.released.get(&grant.address) {
                    assert!(*at + COOLDOWN <= self.now, "{} was reused within its cooldown", grant.address);
                }
                let on =
                    self.ec2.holder(grant.address).filter(|eni| eni.attachment.is_some()).map(|eni| eni.eni.clone());
                assert!(on.is_some(), "{} is not ours in EC2\n{}", grant.address, self.log.join("\n"));
                assert!(self.pods.values().all(|held| *held != grant.address), "{} is held by two", grant.address);
                self.apply(Event::Assign(grant.address, Arc::clone(&grant.owner)));
                let at = self.ec2.enis[on.as_ref().unwrap()].attachment.as_ref().unwrap();
                if let Some(card) = self.queue.waiters().find(|w| w.owner == grant.owner).and_then(|w| w.card) {
                    assert_eq!(at.card, card, "{} of {}", grant.address, grant.owner.attachment);
                }
                let on_primary = (at.card, at.device) == (0, 0);
                assert!(!(self.custom && on_primary), "{} is the node's own ENI's", grant.address);
                let companion = self.state.ledger().companion_of(grant.address);
                assert_eq!(companion.is_some(), self.families == Families::Dual, "{}", grant.address);
                if let Some(companion) = companion {
                    let carries = self.ec2.holder(companion.into()).map(|eni| eni.eni.clone());
                    assert_eq!(carries, on, "{companion} of {}\n{}", grant.address, self.log.join("\n"));
                    assert!(self.companions.values().all(|held| *held != companion), "{companion} is held by two");
                    self.companions.insert(grant.owner.attachment.clone(), companion);
                }
                self.pods.insert(grant.owner.attachment.clone(), grant.address);
                assert!(!self.queue.remove(&grant.owner.attachment).is_empty());
            }
            for refused in serving.refused {
                assert!(!refused.refusal.message.contains("failed to assign"));
                for token in refused.tokens {
                    // One refusal is enough for all that a pod asked for.
                    if self.queue.withdraw(token) {
                        self.refused.push(refused.refusal.clone());
                        self.give_back(refused.attachment.container.as_str());
                    }
                }
            }
            // The plan was made before the grants, as in a daemon that plans and serves at once.
            for planned in self.plan.ops.clone() {
                match self.state.apply(Event::Begin(planned.op.clone()), self.now) {
                    Ok(()) => {}
                    // A grant has taken what was to be given back.
                    Err(_) if !self.queue_is_stale(&planned.op) => continue,
                    Err(error) => panic!("{error}"),
                }
                self.check(&planned.op.to_string());
                let fate = (self.fates)(&planned.op);
                let outcome = if fate == Fate::Done { String::new() } else { format!(" [{fate:?}]") };
                self.log.push(format!("{}{outcome} -- {}", planned.op, planned.reason));
                self.last_op = self.now;
                let ends = self.now + latency(&planned.op);
                self.flights.push(Flight { op: planned.op, ends, fate });
                quiet = false;
            }
            if quiet {
                return;
            }
        }
    }

    fn queue_is_stale(&self, op: &Op) -> bool {
        !matches!(op, Op::Unassign { .. } | Op::Detach { .. } | Op::Delete { .. })
    }

    /// When something happens next.
    fn next(&self) -> Option<Timestamp> {
        let serving = serve(&self.state, &self.queue, &self.plan, self.now);
        self.flights.iter().map(|flight| flight.ends).chain(self.plan.wake_at).chain(serving.wake_at).min()
    }

    pub(crate) fn run(&mut self, time: Duration) {
        let until = self.now + time;
        self.pump();
        while let Some(next) = self.next().filter(|next| *next <= until) {
            assert!(next > self.now, "time stands still at {}: {:?}", self.now, self.plan);
            self.now = next;
            self.end_flights();
            self.pump();
        }
        self.now = until;
        self.end_flights();
        self.pump();
    }

    /// Runs until nothing has been asked of EC2 for a while. A subnet without addresses is tried again every five minutes.
    pub(crate) fn settle(&mut self) {
        for _ in 0..200 {
            self.run(Duration::from_secs(60));
            if self.now.since(self.last_op) > Duration::from_secs(200) && self.flights.is_empty() {
                return;
            }
        }
        panic!("it does not settle: {:?}\n{}", self.plan, self.log[self.log.len().saturating_sub(12)..].join("\n"));
    }

    fn end_flights(&mut self) {
        let (ended, going) = std::mem::take(&mut self.flights).into_iter().partition(|flight| flight.ends <= self.now);
        self.flights = going;
        for flight in ended {
            let Flight { op, fate, .. } = flight;
            self.past.push_back((self.now, self.ec2.enis.clone()));
            self.past.retain(|(at, _)| self.now.since(*at) <= Duration::from_secs(10));
            let result: Result<Outcome, CloudError> = match fate {
                Fate::Refused(kind) => Err(error(op.api(), kind, "Refused")),
                Fate::Late => {
                    let past = self.past_enis();
                    let now = std::mem::replace(&mut self.ec2.enis, past);
                    let result = match &op {
                        Op::Inspect { .. } | Op::Survey { .. } => self.ec2.call(&op),
                        _ => Err(error(op.api(), CloudErrorKind::Unavailable, "InternalError")),
                    };
                    self.ec2.enis = now;
                    result
                }
                Fate::Done => self.ec2.call(&op),
                Fate::Lost => {
                    drop(self.ec2.call(&op));
                    Err(error(op.api(), CloudErrorKind::Timeout, "Timeout"))
                }
            };
            let retry_after = Duration::from_secs(5);
            self.apply(Event::End(op, result.map_err(|error| Failure { error, retry_after })));
        }
        // The host sets ENIs up as soon as their links show.
        let attached: Vec<EniId> = self
            .state
            .ledger()
            .enis()
            .filter(|eni| eni.stage == Stage::Attached && eni.carries_pods() && eni.is_subnet_known())
            .filter(|eni| self.ec2.enis.get(&eni.id).is_some_and(|eni| eni.attachment.is_some()))
            .map(|eni| eni.id.clone())
            .collect();
        for eni in attached {
            self.apply(Event::EniReady(eni));
        }
    }

    fn kernel(&self) -> KernelView {
        let dev = |attachment: &Attachment| {
            interface(attachment.container.as_str(), nic::index(&attachment.ifname)).host_ifname.clone()
        };
        let companions = self.companions.iter().filter(|(attachment, _)| self.pods.contains_key(*attachment));
        let companions = companions.map(|(attachment, ip)| (IpAddr::V6(*ip), dev(attachment)));
        KernelView { pods: self.pods.iter().map(|(a, ip)| (*ip, dev(a))).chain(companions).collect() }
    }

    /// kill -9 and start: what is under way has its effect or not; the queue is gone.
    pub(crate) fn crash(&mut self, mut has_effect: impl FnMut() -> bool, checkpoint: bool) -> Vec<Finding> {
        for flight in std::mem::take(&mut self.flights) {
            if has_effect() {
                drop(self.ec2.call(&flight.op));
            }
        }
        self.queue = Queue::default();
        self.starts += 1;
        let owners: Vec<(Attachment, IpAddr)> =
            self.state.ledger().owners().map(|(attachment, address)| (attachment.clone(), address)).collect();
        let document = Checkpoint::of(&self.state, self.now).to_json().unwrap();
        let read =
            if checkpoint { Checkpoint::from_json(&document) } else { Err(CheckpointError::Version("?".into())) };
        let recovered = recover(Some(read), &self.kernel(), self.starts, COOLDOWN, self.now);
        self.state = recovered.state;
        self.check("recovery");
        if checkpoint {
            for (attachment, address) in owners.iter().filter(|(owner, _)| self.pods.contains_key(owner)) {
                assert_eq!(self.state.ledger().address_of(attachment), Some(*address));
            }
        }
        self.apply(Event::NodeKnown(self.node()));
        if self.custom && !checkpoint {
            let config = EniConfig { name: "zone".to_owned(), subnet: subnet_id(2), security_groups: Vec::new() };
            self.apply(Event::EniConfigKnown(Some(config)));
        }
        self.hear_imds();
        recovered.findings
    }

    /// The daemon's look at the kernel.
    pub(crate) fn look(&mut self) -> Vec<Finding> {
        let kernel = self.kernel();
        let before: BTreeMap<Attachment, IpAddr> =
            self.state.ledger().owners().map(|(attachment, address)| (attachment.clone(), address)).collect();
        let findings = reconcile(&mut self.state, &kernel, COOLDOWN, self.now);
        for (attachment, address) in before {
            if self.state.ledger().address_of(&attachment).is_none() {
                self.released.insert(address, self.now);
            }
        }
        self.check("a look at the kernel");
        findings
    }

    /// Addresses of each ENI, by card and device, without ENIs' own.
    pub(crate) fn held(&self) -> Vec<u32> {
        let mut enis: Vec<_> = self.state.ledger().enis().filter(|eni| eni.stage == Stage::InService).collect();
        enis.sort_by_key(|eni| (eni.card, eni.device));
        enis.iter().map(|eni| eni.places_taken()).collect()
    }
}

fn latency(op: &Op) -> Duration {
    Duration::from_millis(match op {
        Op::Create(_) => 800,
        Op::Attach { .. } => 3000,
        Op::Assign { .. } | Op::AssignIpv6 { .. } | Op::Unassign { .. } => 400,
        Op::Detach { .. } => 2000,
        _ => 100,
    })
}
