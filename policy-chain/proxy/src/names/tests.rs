use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;

use super::alone::Maps;
use super::*;

fn pod() -> PodKey {
    PodKey { namespace: "web".into(), name: "client".into() }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn address(last: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, last])
}

fn patterns(texts: &[&str]) -> Vec<NamePattern> {
    texts.iter().map(|text| NamePattern::cilium(text).unwrap()).collect()
}

fn wanted(texts: &[&str]) -> Wanted {
    Wanted { patterns: patterns(texts), least: Duration::from_secs(60), classes: Vec::new() }
}

fn learner(texts: &[&str]) -> (Learner, Link) {
    let (names, link) = Names::new(None);
    link.wanted.send(Arc::new(wanted(texts))).unwrap();
    (Learner::new(names), link)
}

#[tokio::test(start_paused = true)]
async fn what_is_known_is_told_again_halfway_and_waited_for_at_the_end() {
    let (mut learner, mut link) = learner(&["*.example.com"]);
    let of = name("a.example.com");
    assert!(learner.learn(&pod(), &name("example.org"), &[address(1)], 5).is_none());
    assert!(learner.learn(&pod(), &of, &[], 5).is_none());
    let held = learner.learn(&pod(), &of, &[address(1)], 5).unwrap();
    let ask = link.asks.try_recv().unwrap();
    assert_eq!(ask.resolution.ttl, 5);
    // Whoever asks meanwhile waits for the same reply.
    let other = learner.learn(&pod(), &of, &[address(1)], 5).unwrap();
    assert!(link.asks.try_recv().is_err());
    ask.done.send(true).unwrap();
    for held in [held, other] {
        let (resolution, learned) = held.settle(Duration::from_secs(1)).await;
        assert_eq!(learned, Learned::Known);
        learner.settled(&resolution, learned);
    }
    assert!(learner.learn(&pod(), &of, &[address(1)], 5).is_none());
    assert!(link.asks.try_recv().is_err());
    // A second address has to be made known; the first is.
    let held = learner.learn(&pod(), &of, &[address(1), address(2)], 5).unwrap();
    link.asks.try_recv().unwrap().done.send(true).unwrap();
    let (resolution, learned) = held.settle(Duration::from_secs(1)).await;
    learner.settled(&resolution, learned);
    tokio::time::advance(Duration::from_secs(31)).await;
    assert!(learner.learn(&pod(), &of, &[address(1)], 5).is_none(), "known, and told once more");
    assert!(link.asks.try_recv().unwrap().done.is_closed(), "nobody waits for it");
    assert!(learner.learn(&pod(), &of, &[address(1)], 5).is_none());
    assert!(link.asks.try_recv().is_err());
    tokio::time::advance(Duration::from_secs(61)).await;
    assert!(learner.learn(&pod(), &of, &[address(1)], 5).is_some(), "forgotten by now");
    assert!(link.asks.try_recv().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_is_late_is_not_waited_for_and_one_that_says_no_is_asked_again() {
    let (mut learner, mut link) = learner(&["*"]);
    let of = name("a.example.com");
    let held = learner.learn(&pod(), &of, &[address(1)], 5).unwrap();
    let (resolution, learned) = held.settle(Duration::from_millis(100)).await;
    assert_eq!(learned, Learned::Late);
    learner.settled(&resolution, learned);
    let held = learner.learn(&pod(), &of, &[address(1)], 5).unwrap();
    link.asks.try_recv().unwrap().done.send(false).unwrap();
    let (resolution, learned) = held.settle(Duration::from_millis(100)).await;
    assert_eq!(learned, Learned::Unknown);
    learner.settled(&resolution, learned);
    assert!(learner.learn(&pod(), &of, &[address(1)], 5).is_none(), "asked a moment ago");
    tokio::time::advance(AGAIN + Duration::from_millis(1)).await;
    assert!(learner.learn(&pod(), &of, &[address(1)], 5).is_some());
    assert!(link.asks.try_recv().is_ok());
}

#[tokio::test]
async fn rules_that_come_later_are_asked_for_names_of_before() {
    let (mut learner, mut link) = learner(&[]);
    let of = name("a.example.com");
    assert!(learner.learn(&pod(), &of, &[address(1)], 5).is_none());
    link.wanted.send(Arc::new(wanted(&["a.*.com"]))).unwrap();
    assert!(learner.learn(&pod(), &of, &[address(1)], 5).is_some());
    assert!(link.asks.try_recv().is_ok());
}

#[tokio::test]
async fn what_there_is_no_room_for_is_counted_and_goes() {
    let (mut learner, link) = learner(&["*"]);
    let mut held = 0;
    for number in 0..ASKS + 5 {
        held += usize::from(learner.learn(&pod(), &name(&format!("n{number}")), &[address(1)], 5).is_some());
    }
    assert_eq!(held, ASKS);
    let full = |learner: &Learner| {
        learner.names.counters.each().into_iter().find(|(name, ..)| name.ends_with("overflowed")).unwrap().2
    };
    assert_eq!(full(&learner), 5);
    drop(link);
}

#[tokio::test]
async fn what_is_remembered_is_bounded() {
    let (mut learner, mut link) = learner(&["*"]);
    for number in 0..REMEMBERED + 100 {
        let of = name(&format!("n{number}"));
        assert!(learner.learn(&pod(), &of, &[address(1)], 5).is_some());
        link.asks.try_recv().unwrap();
        assert!(learner.meant.len() <= REMEMBERED);
    }
    learner.names.told.run_pending_tasks();
    assert!(learner.names.told.entry_count() <= REMEMBERED as u64);
}

/// What one thread has told no other waits for; and names that nobody asks for twice do not drive out one that is used.
#[tokio::test]
async fn what_a_thread_has_told_is_known_to_all_and_stays_while_it_is_used() {
    let (mut learner, mut link) = learner(&["*"]);
    let mut other = Learner::new(learner.names.clone());
    let of = name("a.example.com");
    let held = learner.learn(&pod(), &of, &[address(1)], 5).unwrap();
    assert!(other.learn(&pod(), &of, &[address(1)], 5).is_some(), "it waits for the same reply");
    link.asks.try_recv().unwrap().done.send(true).unwrap();
    let (resolution, learned) = held.settle(Duration::from_secs(1)).await;
    learner.settled(&resolution, learned);
    assert!(other.learn(&pod(), &of, &[address(1)], 5).is_none());
    for number in 0..3 * REMEMBERED {
        assert!(other.learn(&pod(), &name(&format!("n{number}")), &[address(2)], 5).is_some());
        assert_eq!(link.asks.try_recv().unwrap().resolution.addresses[..], [address(2)]);
        assert!(number % 16 > 0 || learner.learn(&pod(), &of, &[address(1)], 5).is_none(), "forgotten at {number}");
    }
}

/// The kernel's maps: everything is 300 in `ipcache`.
#[derive(Debug, Default, Clone)]
struct Model(Arc<Mutex<BTreeMap<IpAddr, u32>>>);

impl Maps for Model {
    fn identity(&self, address: IpAddr) -> Option<u32> {
        address.is_ipv4().then_some(300)
    }

    fn name(&self, address: IpAddr) -> Option<u32> {
        self.0.lock().unwrap().get(&address).copied()
    }

    fn set_name(&self, address: IpAddr, identity: u32) -> io::Result<()> {
        self.0.lock().unwrap().insert(address, identity);
        Ok(())
    }
}

/// Without policyd an address becomes what an address like it has become before, and nothing else.
#[tokio::test]
async fn names_go_on_without_policyd() {
    let directory = std::env::temp_dir().join(format!("sluice-names-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("names.alone");
    let model = Model::default();
    let (names, link) = Names::new(Some(Alone::new(Box::new(model.clone()), path.clone())));
    let known = patterns(&["*.example.com", "a.*.com"]);
    let class = |of: &[usize], identity| Class {
        base: 300,
        patterns: of.iter().map(|at| known[*at].clone()).collect(),
        identity,
    };
    let classes = vec![class(&[0], 400), class(&[0, 1], 401)];
    let told = Wanted { patterns: known.clone(), least: Duration::from_secs(60), classes };
    link.wanted.send(Arc::new(told)).unwrap();
    let mut learner = Learner::new(names);
    let Link { asks, wanted: _wanted } = link;
    drop(asks);
    let mut learn = async |of: &str, addresses: &[IpAddr]| {
        let held = learner.learn(&pod(), &name(of), addresses, 30).unwrap();
        let (resolution, learned) = held.settle(Duration::from_secs(1)).await;
        learner.settled(&resolution, learned);
        learned
    };
    assert_eq!(learn("b.example.com", &[address(1)]).await, Learned::Known);
    assert_eq!(model.name(address(1)), Some(400));
    assert_eq!(learn("a.example.com", &[address(2)]).await, Learned::Known);
    assert_eq!(model.name(address(2)), Some(401));
    // Only the second pattern: policyd has given no identity for that.
    assert_eq!(learn("a.example-x.com", &[address(3)]).await, Learned::Unknown);
    assert_eq!(model.name(address(3)), None);
    // It stays what it was by its other names, and becomes what it is by all of them.
    assert_eq!(learn("a.other.com", &[address(1)]).await, Learned::Known);
    assert_eq!(model.name(address(1)), Some(401));
    // Of an identity that policyd has not told of nothing is known.
    model.set_name(address(4), 999).unwrap();
    assert_eq!(learn("c.example.com", &[address(4), address(5)]).await, Learned::Unknown);
    assert_eq!((model.name(address(4)), model.name(address(5))), (Some(999), Some(400)));
    assert_eq!(learn("d.example.com", &["2001:db8::1".parse().unwrap()]).await, Learned::Unknown);
    let noted = std::fs::read_to_string(&path).unwrap();
    let noted: Vec<sluice_contract::names::Resolved> =
        noted.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let seen: Vec<(&str, usize)> = noted.iter().map(|one| (one.name.as_str(), one.addresses.len())).collect();
    assert_eq!(seen, [("b.example.com", 1), ("a.example.com", 1), ("a.other.com", 1), ("c.example.com", 1)]);
    // policyd takes the file; the next is a new one.
    std::fs::remove_file(&path).unwrap();
    assert_eq!(learn("e.example.com", &[address(6)]).await, Learned::Known);
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1);
    std::fs::remove_dir_all(&directory).unwrap();
}
