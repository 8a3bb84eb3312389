use std::net::{IpAddr, SocketAddr};

use sluice_contract::proxy::{self as plain, Application, Decision, HttpRule, List, Pod, Verdict as PlainVerdict};
use sluice_policy_bpf::layout::Verdict;
use tokio::net::UnixListener;

use super::*;
use crate::flow::{Direction, Flow, Protocol};
use crate::policy::{Entry, Judged, Policy, Refused};

/// A kernel in which every flow goes by one decision, with this verdict.
#[derive(Debug)]
struct Kernel(u32, Verdict);

impl Kernel {
    const fn redirects(decision: u32) -> Self {
        Self(decision, Verdict::Redirect)
    }
}

impl Gates for Kernel {
    fn flow(&self, _: &Flow, _: Protocol) -> Result<Option<Entry>, Unreadable> {
        let judged = Judged { verdict: self.1, decision: Some(self.0) };
        Ok(Some(Entry { endpoint: 1, audit: false, locked: false, judged }))
    }

    fn judge_backend(&self, _: IpAddr, _: Protocol, backend: SocketAddr) -> Result<Option<Judged>, Unreadable> {
        Ok(match backend.port() {
            1 => Some(Judged { verdict: Verdict::Deny, decision: Some(9) }),
            2 => Some(Judged { verdict: Verdict::Allow, decision: None }),
            3 => Some(Judged { verdict: Verdict::Redirect, decision: Some(self.0) }),
            _ => None,
        })
    }
}

fn flow() -> Flow {
    let at = |text: &str| text.parse().unwrap();
    Flow { direction: Direction::Egress, client: at("10.0.0.7:40000"), server: at("10.0.1.9:80") }
}

fn list(path: &str) -> List {
    let rule = HttpRule { path: Some(path.to_owned()), ..HttpRule::default() };
    List { rule: format!("rule {path}"), application: Application::Http(vec![rule]) }
}

fn decision(lists: &[u32]) -> Decision {
    let verdict = PlainVerdict { lists: lists.to_vec(), see: None, passes: false, reason: "isolated".to_owned() };
    Decision { verdict, audit: None }
}

fn update(version: u64) -> Update {
    Update {
        version,
        lists: [(4, Some(list("/a")))].into(),
        decisions: [(7, Some(decision(&[4])))].into(),
        endpoints: [(1, Some(Pod { namespace: "shop".to_owned(), name: "web".to_owned() }))].into(),
        ..Update::default()
    }
}

fn ask(policy: &Pushed<Kernel>) -> Result<Arc<crate::policy::Rules>, Refused> {
    policy.rules(&flow(), Protocol::TCP, flow().server)
}

fn to(policy: &Pushed<Kernel>, port: u16) -> Result<bool, Refused> {
    let backend = SocketAddr::new(flow().server.ip(), port);
    policy.rules(&flow(), Protocol::TCP, backend).map(|rules| rules.otherwise.passes)
}

fn link() -> Link {
    crate::names::Names::new(None).1
}

struct Socket(PathBuf);

impl Socket {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("sluice-proxy-{name}-{}.sock", std::process::id())))
    }

    fn listen(&self) -> UnixListener {
        let _old = std::fs::remove_file(&self.0);
        UnixListener::bind(&self.0).unwrap()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _removed = std::fs::remove_file(&self.0);
    }
}

async fn accept(listener: &UnixListener) -> UnixStream {
    let (mut stream, _) = listener.accept().await.unwrap();
    let theirs: Hello = frame::read(&mut stream, FRAME_LIMIT).await.unwrap();
    assert_eq!(theirs.protocol, PROTOCOL);
    frame::write(&mut stream, &hello("policyd"), FRAME_LIMIT).await.unwrap();
    stream
}

async fn tell(stream: &mut UnixStream, update: Update) {
    for part in update.parts() {
        frame::write(stream, &FromPolicyd::Update(Box::new(part)), FRAME_LIMIT).await.unwrap();
    }
}

async fn acknowledged(stream: &mut UnixStream) -> u64 {
    match frame::read(stream, FRAME_LIMIT).await.unwrap() {
        FromProxy::Ack { version } => version,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_not_known_is_refused() {
    let policy = Pushed::<Kernel>::new(&Snapshot::default());
    assert_eq!(ask(&policy), Err(Refused::NoMaps));
    policy.set_gates(Arc::new(Kernel::redirects(7)));
    assert_eq!(ask(&policy), Err(Refused::NoPod(1)));
    policy.apply(&Update { decisions: [(7, None)].into(), ..update(1) });
    assert_eq!(ask(&policy), Err(Refused::NoDecision(7)));
    policy.apply(&update(2));
    assert_eq!(&*ask(&policy).unwrap().lists[0].rule, "rule /a");
    policy.apply(&Update { version: 3, full: true, ..Update::default() });
    assert_eq!(ask(&policy), Err(Refused::NoPod(1)));
}

#[test]
fn a_decision_with_rules_that_cannot_be_used_is_refused_and_counted() {
    let policy = Pushed::<Kernel>::new(&Snapshot::default());
    policy.set_gates(Arc::new(Kernel::redirects(7)));
    policy.apply(&Update { lists: [(4, Some(list("(")))].into(), ..update(1) });
    assert_eq!((ask(&policy), policy.faults()), (Err(Refused::NoDecision(7)), 2));
}

#[test]
fn a_services_flow_is_judged_by_its_backend() {
    let policy = Pushed::<Kernel>::new(&Snapshot::default());
    policy.set_gates(Arc::new(Kernel::redirects(7)));
    policy.apply(&update(1));
    assert!(matches!(to(&policy, 1), Err(Refused::Denied(_))));
    assert_eq!(to(&policy, 2), Ok(true));
    assert_eq!(to(&policy, 3), Ok(false));
    assert!(matches!(to(&policy, 4), Err(Refused::Denied(_))));
}

#[test]
fn a_dry_run_of_a_policy_is_told_beside() {
    let policy = Pushed::<Kernel>::new(&Snapshot::default());
    policy.set_gates(Arc::new(Kernel::redirects(7)));
    let audit = PlainVerdict { see: Some(plain::Protocol::Tls), ..decision(&[]).verdict };
    let decision = Decision { audit: Some(audit), ..decision(&[4]) };
    policy.apply(&Update { decisions: [(7, Some(decision))].into(), ..update(1) });
    let rules = ask(&policy).unwrap();
    assert_eq!(rules.looks, crate::policy::Looks::HttpOrTls);
    assert_eq!(rules.judge_unread().would_pass, Some(false));
}

/// DESIGN 6.12: what passes without the dry runs comes here so that their rules see it, and passes.
#[test]
fn what_only_a_dry_run_has_rules_for_passes_and_is_looked_at() {
    for verdict in [Verdict::Allow, Verdict::Defer] {
        let policy = Pushed::<Kernel>::new(&Snapshot::default());
        policy.set_gates(Arc::new(Kernel(7, verdict)));
        policy.apply(&update(1));
        // What the number meant before: the gate says that it passes.
        let rules = ask(&policy).unwrap();
        assert!(rules.otherwise.passes && rules.lists.is_empty());
        let passes = PlainVerdict { passes: true, ..decision(&[]).verdict };
        let decision = Decision { verdict: passes, audit: Some(decision(&[4]).verdict) };
        policy.apply(&Update { decisions: [(7, Some(decision))].into(), ..update(2) });
        let rules = ask(&policy).unwrap();
        let unread = rules.judge_unread();
        assert_eq!((rules.looks, unread.passes), (crate::policy::Looks::Http, true));
        assert_eq!(unread.would_pass, Some(false));
    }
}

#[tokio::test]
async fn an_update_in_parts_is_in_force_when_it_is_acknowledged_and_stays_when_policyd_goes() {
    let socket = Socket::new("parts");
    let listener = socket.listen();
    let policy = Arc::new(Pushed::new(&Snapshot::default()));
    let policyd = Policyd::new(socket.0.clone(), Arc::clone(&policy), || Ok(Kernel::redirects(7)), link());
    let status = policyd.status();
    let following = tokio::spawn(policyd.follow());
    let mut stream = accept(&listener).await;
    let many = (100..160).map(|number| (number, Some(list(&format!("/{}", "x".repeat(8000))))));
    let mut first = update(5);
    first.full = true;
    first.lists.extend(many);
    assert!(first.clone().parts().len() > 1);
    tell(&mut stream, first).await;
    assert_eq!(acknowledged(&mut stream).await, 5);
    assert!(ask(&policy).is_ok());
    assert_eq!(policy.sizes().lists, 61);
    let version = policy.version();
    tell(&mut stream, Update { version: 6, lists: [(100, None)].into(), ..Update::default() }).await;
    assert_eq!(acknowledged(&mut stream).await, 6);
    assert!(policy.version() > version);
    assert_eq!((policy.sizes().lists, status.version(), status.connected()), (60, 6, true));
    drop(stream);
    let mut stream = accept(&listener).await;
    assert!(ask(&policy).is_ok(), "what was told stays in force");
    tell(&mut stream, Update { full: true, ..update(9) }).await;
    assert_eq!(acknowledged(&mut stream).await, 9);
    assert_eq!((policy.sizes().lists, status.connections()), (1, 2));
    following.abort();
}

#[tokio::test]
async fn one_that_speaks_another_version_is_left() {
    let socket = Socket::new("skew");
    let listener = socket.listen();
    let policy = Arc::new(Pushed::new(&Snapshot::default()));
    let following =
        tokio::spawn(Policyd::new(socket.0.clone(), Arc::clone(&policy), || Ok(Kernel::redirects(7)), link()).follow());
    let (mut stream, _) = listener.accept().await.unwrap();
    let _theirs: Hello = frame::read(&mut stream, FRAME_LIMIT).await.unwrap();
    let other = sluice_contract::rpc::ProtocolRange { min: 900, max: 901 };
    let greeting = Hello { protocol: other, ..hello("policyd") };
    frame::write(&mut stream, &greeting, FRAME_LIMIT).await.unwrap();
    let end = frame::read::<FromProxy>(&mut stream, FRAME_LIMIT).await;
    assert!(matches!(end, Err(FrameError::Closed)), "{end:?}");
    following.abort();
}

#[test]
fn a_snapshot_is_read_and_a_broken_one_is_none() {
    let path = std::env::temp_dir().join(format!("sluice-proxy-snapshot-{}.json", std::process::id()));
    assert_eq!(snapshot(&path), Snapshot::default());
    let mut whole = Snapshot::default();
    whole.apply(update(3));
    std::fs::write(&path, serde_json::to_vec(&whole).unwrap()).unwrap();
    assert_eq!(snapshot(&path), whole);
    let policy = Pushed::new(&snapshot(&path));
    policy.set_gates(Arc::new(Kernel::redirects(7)));
    assert!(ask(&policy).is_ok());
    std::fs::write(&path, b"{").unwrap();
    assert_eq!(snapshot(&path), Snapshot::default());
    std::fs::remove_file(&path).unwrap();
}
