//! Random lives: pods come and go, calls fail or lose their answers, the daemon is killed, others take addresses. The
//! invariants hold after each step (`Life` checks them), and once it is quiet the pool settles and agrees with EC2.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use sluice_ipamd_core::arrivals::Band;
use sluice_ipamd_core::checkpoint::Checkpoint;
use sluice_ipamd_core::cloud::{CloudErrorKind, InstanceLimits};
use sluice_ipamd_core::ipv6::Families;
use sluice_ipamd_core::plan::{Targets, WarmMode};
use sluice_ipamd_core::state::Event;

use crate::life::{Fate, Life, owner, subnet_id};

#[derive(Debug, Clone)]
enum Step {
    Add(u8),
    /// Pods with an interface on each network card.
    AddOnEveryCard(u8),
    Del(u8),
    /// A pod dies, and its DEL is lost.
    Die(u8),
    Run(u32),
    Fates(Vec<Fate>),
    Crash {
        effects: u8,
        keeps_checkpoint: bool,
    },
    Look,
    Imds {
        late: bool,
    },
    /// Others take or free a part of the subnet.
    Others(bool, u8),
    /// Prefixes are switched on or off, as by a restart with another setting.
    Toggle,
    /// Further network cards are used or not, as by a restart with another setting.
    Cards(bool),
    /// So many pods are bound to the node and will ask next.
    Bound(u8),
}

fn fate() -> impl Strategy<Value = Fate> {
    use CloudErrorKind::{
        Conflict, Denied, InsufficientAddresses, InsufficientPrefixes, Other, Throttled, Unavailable,
    };
    prop_oneof![
        2 => Just(Fate::Done),
        2 => Just(Fate::Lost),
        3 => Just(Fate::Late),
        4 => prop::sample::select(vec![
            Conflict, Denied, InsufficientAddresses, InsufficientPrefixes, Other, Throttled, Unavailable,
        ]).prop_map(Fate::Refused),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..12u8).prop_map(Step::Add),
        2 => (1..6u8).prop_map(Step::AddOnEveryCard),
        5 => any::<u8>().prop_map(Step::Del),
        1 => any::<u8>().prop_map(Step::Die),
        8 => prop_oneof![1..500u32, 500..20_000u32, 20_000..120_000u32].prop_map(Step::Run),
        2 => prop::collection::vec(fate(), 1..8).prop_map(Step::Fates),
        1 => (any::<u8>(), prop::bool::weighted(0.8)).prop_map(|(effects, keeps_checkpoint)| Step::Crash { effects, keeps_checkpoint }),
        1 => Just(Step::Look),
        1 => any::<bool>().prop_map(|late| Step::Imds { late }),
        1 => (any::<bool>(), any::<u8>()).prop_map(|(take, which)| Step::Others(take, which)),
        1 => Just(Step::Toggle),
        1 => prop::bool::weighted(0.7).prop_map(Step::Cards),
        1 => (0..12u8).prop_map(Step::Bound),
    ]
}

fn targets() -> impl Strategy<Value = Targets> {
    let warm = prop_oneof![
        Just((1, 1, 0, 0)),
        Just((0, 0, 0, 0)),
        Just((2, 3, 0, 0)),
        (0..6u32, 0..12u32).prop_map(|(warm, minimum)| (1, 1, warm, minimum)),
    ];
    let mode = prop_oneof![3 => Just(WarmMode::Static), 1 => Just(WarmMode::Adaptive(Band::default()))];
    (warm, any::<bool>(), prop::option::weighted(0.2, 1..4u32), 6..60u32, mode).prop_map(
        |((warm_enis, warm_prefixes, warm_ips, minimum_ips), prefixes, max_enis, max_pods, mode)| Targets {
            prefixes,
            mode,
            warm_enis,
            warm_prefixes,
            warm_ips,
            minimum_ips,
            max_enis,
            max_pods,
            ..Targets::default()
        },
    )
}

fn limits() -> impl Strategy<Value = InstanceLimits> {
    let further = prop_oneof![3 => Just(Vec::new()), 1 => prop::collection::vec(1..4u32, 1..3)];
    (2..5u32, further, 3..11u32).prop_map(|(enis, further_cards, ipv4_per_eni)| InstanceLimits {
        enis,
        further_cards,
        ipv4_per_eni,
        prefixes: true,
    })
}

fn pick(life: &Life, which: u8) -> Option<String> {
    let held = life.pods.keys().map(|attachment| attachment.container.to_string());
    let waiting = life.queue.waiters().map(|waiter| waiter.owner.attachment.container.to_string());
    let all: Vec<String> = held.chain(waiting).collect();
    all.get(usize::from(which) % all.len().max(1)).cloned()
}

fn live(life: &mut Life, steps: &[Step]) {
    let fates: Rc<RefCell<VecDeque<Fate>>> = Rc::default();
    let next = Rc::clone(&fates);
    life.fates = Box::new(move |_| next.borrow_mut().pop_front().unwrap_or(Fate::Done));
    let mut pods = 0;
    for step in steps {
        match step {
            Step::Add(count) => {
                for _ in 0..*count {
                    pods += 1;
                    life.add(&format!("pod{pods}"));
                }
                life.pump();
            }
            Step::AddOnEveryCard(count) => {
                for _ in 0..*count {
                    pods += 1;
                    life.add_on_every_card(&format!("pod{pods}"));
                }
                life.pump();
            }
            Step::Del(which) => {
                if let Some(name) = pick(life, *which) {
                    life.del(&name);
                    life.pump();
                }
            }
            Step::Die(which) => {
                let dead = life.pods.keys().nth(usize::from(*which) % life.pods.len().max(1)).cloned();
                if let Some(dead) = dead {
                    life.die(dead.container.as_str());
                }
            }
            Step::Run(millis) => life.run(Duration::from_millis(u64::from(*millis))),
            Step::Fates(new) => fates.borrow_mut().extend(new),
            Step::Crash { effects, keeps_checkpoint } => {
                let mut bits = *effects;
                let has_effect = move || {
                    bits = bits.rotate_left(1);
                    bits & 1 == 1
                };
                drop(life.crash(has_effect, *keeps_checkpoint));
                life.pump();
            }
            Step::Toggle => {
                life.targets.prefixes = !life.targets.prefixes;
                life.pump();
            }
            Step::Cards(used) => {
                life.use_further_cards(*used);
                life.pump();
            }
            Step::Bound(count) => {
                let coming = pods + 1..=pods + u32::from(*count);
                life.apply(Event::PodsBound(coming.map(|pod| owner(&format!("pod{pod}")).pod.clone()).collect()));
                life.pump();
            }
            Step::Look => drop(life.look()),
            Step::Imds { late: true } => life.hear_late_imds(),
            Step::Imds { late: false } => life.hear_imds(),
            Step::Others(take, which) => {
                let free = life.ec2.free(&subnet_id(1));
                let others = &mut life.ec2.subnets.get_mut(&subnet_id(1)).unwrap().others;
                if *take {
                    others.extend(free.into_iter().skip(usize::from(which % 7)).step_by(usize::from(which % 5) + 1));
                } else {
                    others.clear();
                }
            }
        }
    }
    fates.borrow_mut().clear();
}

/// Nothing is lost, and nothing is left behind.
fn agrees_with_ec2(life: &Life) {
    let ledger = life.state.ledger();
    for eni in life.ec2.enis.values() {
        let known = ledger.eni(&eni.eni).unwrap_or_else(|| panic!("{} is leaked\n{}", eni.eni, life.log.join("\n")));
        let pool = eni.secondary_ips.iter().map(|a| Ipv4Net::from(*a)).chain(eni.prefixes.iter().copied());
        let blocks: BTreeSet<IpNet> = match life.families {
            Families::V4 | Families::Dual => pool.map(IpNet::V4).collect(),
            Families::V6 => known.ipv6.map(|ipv6| IpNet::V6(ipv6.net)).into_iter().collect(),
        };
        assert_eq!(known.blocks.keys().copied().collect::<BTreeSet<_>>(), blocks, "{}", eni.eni);
        let delegated = life.families.has_v6() && !known.closed;
        assert_eq!(known.ipv6.is_some(), delegated, "{}", eni.eni);
        assert!(known.ipv6.is_none_or(|ipv6| eni.ipv6_prefixes.contains(&ipv6.net)), "{}", eni.eni);
        let at = eni.attachment.as_ref().map(|attachment| (attachment.card, attachment.device));
        assert_eq!(known.device.map(|device| (known.card, device)), at, "{}", eni.eni);
    }
    assert_eq!(ledger.enis().count(), life.ec2.enis.len());
    assert!(life.state.intents().is_empty() && life.state.flights().is_empty());
    for eni in life.ec2.enis.values() {
        assert!(eni.attachment.as_ref().is_some_and(|attachment| attachment.delete_on_termination), "{}", eni.eni);
    }
}

/// The same lives in every run, unless `PROPTEST_RNG_SEED` asks for others; `PROPTEST_CASES` asks for more.
fn config() -> ProptestConfig {
    let asked = ProptestConfig::default();
    let rng_seed = if asked.rng_seed == RngSeed::Random { RngSeed::Fixed(0x51_u64) } else { asked.rng_seed };
    ProptestConfig { cases: 4 * asked.cases, failure_persistence: None, rng_seed, ..asked }
}

/// Whatever happens in it, a life keeps the invariants, and ends well.
fn keeps_its_promises(mut life: Life, steps: &[Step]) {
    live(&mut life, steps);
    life.use_further_cards(true);
    // Nobody is awaited any more.
    life.apply(Event::PodsBound(BTreeSet::new()));
    // What others hold is theirs for good, but whoever waits is answered, and dead pods are found.
    life.run(Duration::from_secs(300));
    life.look();
    life.run(Duration::from_secs(60));
    life.look();
    life.ec2.subnets.get_mut(&subnet_id(1)).unwrap().others.clear();
    life.settle();
    assert_eq!(life.queue.waiting(), 0);
    // Who is told of the past may ask for too much, and is refused by EC2.
    let misled = steps.iter().any(|step| matches!(step, Step::Fates(fates) if fates.contains(&Fate::Late)));
    assert!(misled || life.ec2.blunders.is_empty(), "{:?}", life.ec2.blunders);
    agrees_with_ec2(&life);
    let document = Checkpoint::of(&life.state, life.now).to_json().unwrap();
    let read = Checkpoint::from_json(&document).unwrap();
    assert_eq!(&read, &Checkpoint::of(&life.state, life.now));
    let again = read.into_state(life.now).unwrap();
    assert_eq!(again.ledger(), life.state.ledger());
    // Without pods, all goes back but what the targets keep.
    for name in life.pods.keys().map(|attachment| attachment.container.to_string()).collect::<Vec<_>>() {
        life.del(&name);
    }
    life.look();
    life.settle();
    agrees_with_ec2(&life);
    let tally = life.state.ledger().tally(life.now);
    assert_eq!(tally.assigned + tally.cooling + tally.quarantined, 0);
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_node_keeps_its_promises(
        limits in limits(),
        targets in targets(),
        families in prop::sample::select(vec![Families::V4, Families::Dual]),
        custom in prop::bool::weighted(0.3),
        subnet in 20..28u8,
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let cidr = format!("10.0.0.0/{subnet}").parse().unwrap();
        let mut life = Life::with_families(limits, targets, cidr, families);
        if custom {
            life = life.with_custom_networking("100.64.0.0/20".parse().unwrap());
        }
        keeps_its_promises(life, &steps);
    }
}

proptest! {
    // The checks go through the whole window of a /80 after each step.
    #![proptest_config(ProptestConfig { cases: config().cases / 32, ..config() })]

    #[test]
    fn a_node_of_ipv6_alone_keeps_its_promises(limits in limits(), steps in prop::collection::vec(step(), 1..30)) {
        let cidr = "10.0.0.0/24".parse().unwrap();
        keeps_its_promises(Life::with_families(limits, Targets::default(), cidr, Families::V6), &steps);
    }
}

/// The first description after the start is late, and shows an address that the daemon had given back.
#[test]
fn without_a_checkpoint_one_late_description_gives_out_nothing() {
    let limits = InstanceLimits { enis: 3, further_cards: Vec::new(), ipv4_per_eni: 5, prefixes: true };
    let targets = Targets { warm_ips: 1, max_pods: 11, ..Targets::default() };
    let mut life = Life::new(limits, targets);
    live(
        &mut life,
        &[
            Step::Add(2),
            Step::Add(7),
            Step::Run(3900),
            Step::Add(2),
            Step::Add(1),
            Step::Fates(vec![Fate::Lost, Fate::Done, Fate::Done, Fate::Late]),
            Step::Run(500),
            Step::Del(160),
            Step::Del(0),
            Step::Run(1),
            Step::Del(223),
            Step::Run(35399),
            Step::Crash { effects: 0, keeps_checkpoint: false },
            Step::Add(1),
        ],
    );
    life.settle();
    assert_eq!(life.queue.waiting(), 0);
    agrees_with_ec2(&life);
}

/// A create loses its answer and is refused at its repetition, so that what it made has to be looked for; the daemon is
/// killed, and the look after the start is late.
#[test]
fn an_eni_whose_create_was_given_up_is_found_after_a_crash_too() {
    let targets = Targets { warm_enis: 2, max_pods: 6, ..Targets::default() };
    let mut life =
        Life::new(InstanceLimits { enis: 2, further_cards: Vec::new(), ipv4_per_eni: 3, prefixes: true }, targets);
    live(
        &mut life,
        &[
            Step::Fates(vec![Fate::Done, Fate::Late, Fate::Late, Fate::Lost, Fate::Refused(CloudErrorKind::Conflict)]),
            Step::Run(3700),
            Step::Fates(vec![Fate::Late]),
            Step::Crash { effects: 0, keeps_checkpoint: true },
        ],
    );
    life.settle();
    agrees_with_ec2(&life);
}

/// A delete loses its answer, and EC2 gives the addresses of the ENI that is gone to new ones.
#[test]
fn addresses_of_an_eni_whose_delete_lost_its_answer_may_come_again() {
    let targets = Targets { max_pods: 7, ..Targets::default() };
    let mut life =
        Life::new(InstanceLimits { enis: 4, further_cards: Vec::new(), ipv4_per_eni: 4, prefixes: true }, targets);
    live(
        &mut life,
        &[
            Step::Run(400),
            Step::Add(1),
            Step::Fates(vec![Fate::Done, Fate::Lost, Fate::Refused(CloudErrorKind::Denied), Fate::Lost]),
            Step::Add(2),
            Step::Del(0),
            Step::Add(2),
            Step::Run(79_900),
            Step::Fates(vec![Fate::Refused(CloudErrorKind::InsufficientAddresses), Fate::Lost]),
            Step::Run(20_000),
            Step::Add(4),
        ],
    );
    life.settle();
    assert_eq!(life.queue.waiting(), 0);
    agrees_with_ec2(&life);
}

/// The checkpoint is lost, and EC2 shows an ENI with live pods as it was before it was attached: there is no place for it.
#[test]
fn an_eni_with_pods_that_is_shown_late_is_not_freed() {
    let targets = Targets { prefixes: true, max_pods: 33, ..Targets::default() };
    let mut life =
        Life::new(InstanceLimits { enis: 2, further_cards: Vec::new(), ipv4_per_eni: 3, prefixes: true }, targets);
    let (lost, refused) = (Fate::Lost, Fate::Refused);
    live(
        &mut life,
        &[
            Step::Add(10),
            Step::Fates(vec![
                lost,
                lost,
                refused(CloudErrorKind::Other),
                Fate::Done,
                refused(CloudErrorKind::InsufficientAddresses),
                Fate::Done,
                Fate::Late,
            ]),
            Step::Add(7),
            Step::Run(15_300),
            Step::Crash { effects: 128, keeps_checkpoint: false },
        ],
    );
    life.settle();
    agrees_with_ec2(&life);
}

/// The checkpoint is lost while single addresses make room for a prefix, and the first description is late: it shows
/// addresses that have gone, the second one what has come in their places.
#[test]
fn what_a_late_description_showed_makes_room_for_what_has_come() {
    let targets = Targets { prefixes: true, warm_enis: 2, warm_prefixes: 3, max_pods: 9, ..Targets::default() };
    let limits = InstanceLimits { enis: 3, further_cards: Vec::new(), ipv4_per_eni: 10, prefixes: true };
    let mut life = Life::with_subnet(limits, targets, "10.0.0.0/27".parse().unwrap());
    live(
        &mut life,
        &[
            Step::Others(true, 195),
            Step::Fates(vec![Fate::Done]),
            Step::Run(63_836),
            Step::Add(2),
            Step::Others(false, 0),
            Step::Run(7241),
            Step::Run(30_558),
            Step::Run(101_365),
            Step::Fates(vec![Fate::Late]),
            Step::Add(1),
            Step::Crash { effects: 96, keeps_checkpoint: false },
        ],
    );
    life.settle();
    assert_eq!(life.queue.waiting(), 0);
    agrees_with_ec2(&life);
}

/// The same, and pods live on addresses that have moved from one ENI to another.
#[test]
fn a_pod_is_where_the_newest_description_has_its_address() {
    let targets = Targets { prefixes: true, warm_enis: 2, warm_prefixes: 3, max_pods: 9, ..Targets::default() };
    let limits = InstanceLimits { enis: 3, further_cards: Vec::new(), ipv4_per_eni: 10, prefixes: true };
    let mut life = Life::with_subnet(limits, targets, "10.0.0.0/27".parse().unwrap());
    live(
        &mut life,
        &[
            Step::Others(true, 195),
            Step::Fates(vec![Fate::Done]),
            Step::Run(64_236),
            Step::Add(6),
            Step::Others(false, 0),
            Step::Run(7241),
            Step::Run(30_558),
            Step::Run(101_365),
            Step::Fates(vec![Fate::Late]),
            Step::Add(2),
            Step::Crash { effects: 0, keeps_checkpoint: false },
        ],
    );
    life.settle();
    assert_eq!(life.queue.waiting(), 0);
    agrees_with_ec2(&life);
    for address in life.pods.values() {
        let on = life.ec2.holder(*address).map(|eni| &eni.eni);
        assert_eq!(life.state.ledger().eni_of(*address).map(|eni| &eni.id), on, "{address}");
    }
}

/// An ENI is freed just before the checkpoint is lost, and the first description shows the ENI as it was before.
/// The node wants more addresses than it can have, so nothing is ever given back.
#[test]
fn an_eni_that_turns_out_to_be_unattached_is_attached_again() {
    let targets = Targets { prefixes: true, max_pods: 35, ..Targets::default() };
    let mut life =
        Life::new(InstanceLimits { enis: 3, further_cards: Vec::new(), ipv4_per_eni: 3, prefixes: true }, targets);
    let (done, late) = (Fate::Done, Fate::Late);
    live(
        &mut life,
        &[
            Step::Run(16),
            Step::Add(5),
            Step::Run(384),
            Step::Fates(vec![done]),
            Step::Add(3),
            Step::Die(0),
            Step::Add(9),
            Step::Crash { effects: 0, keeps_checkpoint: true },
            Step::Run(4000),
            Step::Crash { effects: 0, keeps_checkpoint: false },
            Step::Fates(vec![late, Fate::Refused(CloudErrorKind::InsufficientAddresses), late, done, late]),
            Step::Fates(vec![done, done, late, late]),
            Step::Run(8692),
            Step::Run(16_436),
            Step::Run(68_972),
            Step::Fates(vec![done, done, done, late]),
            Step::Add(2),
            Step::Crash { effects: 128, keeps_checkpoint: false },
            Step::Look,
            Step::Crash { effects: 0, keeps_checkpoint: false },
            Step::Run(100),
            Step::Add(1),
        ],
    );
    life.settle();
    agrees_with_ec2(&life);
}
