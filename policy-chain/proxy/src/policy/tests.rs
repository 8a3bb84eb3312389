use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use sluice_policy_core::l7::dns::{Name, NamePattern};
use sluice_policy_core::l7::http::{
    Edit, Field, HeaderMatchSpec, HttpRule, HttpRuleSpec, MismatchAction, RawRequest, Request, Version,
};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::*;
use crate::flow::Direction;

fn http(rule: &str, specs: impl IntoIterator<Item = HttpRuleSpec>) -> RuleList {
    let rules = specs.into_iter().map(|spec| Arc::new(HttpRule::new(spec).unwrap())).collect();
    RuleList::new(rule.into(), Application::Http(rules))
}

fn method(method: &str) -> HttpRuleSpec {
    HttpRuleSpec { method: Some(method.to_owned()), ..HttpRuleSpec::default() }
}

fn adds(name: &str, value: &str) -> HttpRuleSpec {
    let header =
        HeaderMatchSpec { name: name.to_owned(), value: Some(value.to_owned()), mismatch: MismatchAction::Add };
    HttpRuleSpec { header_matches: vec![header], ..HttpRuleSpec::default() }
}

fn pod() -> PodKey {
    PodKey { namespace: "shop".into(), name: "db".into() }
}

fn rules(lists: Vec<RuleList>, passes: bool) -> Rules {
    let looks = lists.iter().fold(Looks::Nothing, |looks, list| looks.and(Looks::of(&list.application)));
    let otherwise = Outcome { passes, reason: "otherwise".into() };
    let lists = lists.into_iter().map(Arc::new).collect();
    Rules { pod: pod(), lists, otherwise, audit: None, looks }
}

fn with_request<T>(method: &str, then: impl FnOnce(&Message<'_>) -> T) -> T {
    let fields = [Field { name: b"Host", value: b"shop" }];
    let raw = RawRequest {
        version: Version::Http11,
        method: method.as_bytes(),
        target: b"/",
        authority: None,
        fields: &fields,
    };
    then(&Message::Http(Request::new(raw).unwrap()))
}

#[test]
fn the_first_list_that_has_a_request_is_named() {
    let rules = rules(vec![http("a", [method("GET")]), http("b", [method("GET|PUT")])], false);
    for (method, rule) in [("GET", Some("a")), ("PUT", Some("b")), ("POST", None)] {
        with_request(method, |message| {
            let ruling = rules.judge(message);
            assert_eq!((ruling.rule.map(|rule| &**rule), ruling.passes), (rule, rule.is_some()), "{method}");
            assert_eq!(&**ruling.reason, rule.unwrap_or("otherwise"));
            assert_eq!(ruling.would_pass, None);
        });
    }
}

#[test]
fn what_no_list_has_passes_where_lists_only_make_it_seen() {
    let rules = rules(vec![http("a", [method("GET")])], true);
    with_request("POST", |message| assert!(rules.judge(message).passes));
    assert!(rules.judge_unread().passes);
}

#[test]
fn headers_are_changed_by_all_lists_that_have_the_request_wherever_they_stand() {
    let lists = vec![
        http("a", [method("GET"), adds("x-a", "1")]),
        http("b", [HttpRuleSpec { method: Some("POST".to_owned()), ..adds("x-no", "1") }]),
        http("c", [adds("x-c", "2")]),
    ];
    for lists in [lists.clone(), lists.into_iter().rev().collect()] {
        let rules = rules(lists, false);
        with_request("GET", |message| {
            let ruling = rules.judge(message);
            let mut edits: Vec<Edit<'_>> = ruling.edits().collect();
            edits.sort_by_key(|edit| format!("{edit:?}"));
            let add = |name, value| Edit::Add { name, value };
            assert_eq!(edits, [add("x-a", "1"), add("x-c", "2")]);
            assert_eq!(ruling.mismatched().count(), 2);
        });
    }
}

#[test]
fn rules_of_one_protocol_let_nothing_of_another_pass() {
    let names = Application::Dns([NamePattern::name("example.com").unwrap()].into());
    let rules = rules(vec![RuleList::new("names".into(), names)], false);
    with_request("GET", |message| assert!(!rules.judge(message).passes));
    let question = |name| Message::Dns { name: Name::new(name).unwrap(), qtype: 1 };
    assert!(rules.judge(&question("EXAMPLE.com.")).passes);
    assert!(!rules.judge(&question("example.org")).passes);
    assert!(!rules.judge_unread().passes);
}

#[test]
fn a_dry_run_is_told_beside_the_verdict() {
    let audit = Arc::new(rules(vec![http("b", [method("PUT")])], false));
    let rules = Rules { audit: Some(audit), ..rules(vec![http("a", [method("GET")])], false) };
    for (method, passes, would) in [("GET", true, false), ("PUT", false, true), ("POST", false, false)] {
        with_request(method, |message| {
            let ruling = rules.judge(message);
            assert_eq!((ruling.passes, ruling.would_pass), (passes, Some(would)), "{method}");
        });
    }
    assert_eq!(rules.judge_unread().would_pass, Some(false));
}

#[test]
fn looks_join_to_what_sees_both() {
    use Looks::{Dns, Http, HttpOrTls, Nothing, Tls};
    for (a, b, both) in [
        (Nothing, Nothing, Nothing),
        (Nothing, Http, Http),
        (Tls, Tls, Tls),
        (Tls, Http, HttpOrTls),
        (HttpOrTls, Tls, HttpOrTls),
        (Dns, HttpOrTls, Dns),
    ] {
        assert_eq!((a.and(b), b.and(a)), (both, both), "{a:?} {b:?}");
    }
}

/// A policy that knows the decision from its second version on.
struct Late {
    version: AtomicU64,
    changed: Notify,
    refusal: Refused,
}

impl Late {
    fn new(refusal: Refused) -> Arc<Self> {
        Arc::new(Self { version: AtomicU64::new(0), changed: Notify::new(), refusal })
    }

    fn step(&self) {
        self.version.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_waiters();
    }
}

impl Policy for Late {
    fn rules(&self, _: &Flow, _: Protocol, _: SocketAddr) -> Result<Arc<Rules>, Refused> {
        if self.version() < 2 { Err(self.refusal.clone()) } else { Ok(Arc::new(rules(Vec::new(), true))) }
    }

    fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }

    async fn changed(&self, version: u64) {
        let mut changed = Box::pin(self.changed.notified());
        changed.as_mut().enable();
        if self.version() == version {
            changed.await;
        }
    }
}

fn flow() -> Flow {
    let at = |text: &str| text.parse().unwrap();
    Flow { direction: Direction::Egress, client: at("10.0.0.7:40000"), server: at("10.0.1.9:80") }
}

async fn settled(policy: &Late) -> Result<Arc<Rules>, Refused> {
    policy.settled(&flow(), Protocol::TCP, flow().server).await
}

#[tokio::test(start_paused = true)]
async fn a_decision_on_its_way_is_waited_for() {
    let policy = Late::new(Refused::NoDecision(7));
    let asked = tokio::spawn({
        let policy = Arc::clone(&policy);
        async move { settled(&policy).await }
    });
    for _ in 0..2 {
        tokio::time::sleep(SETTLING / 4).await;
        assert!(!asked.is_finished());
        policy.step();
    }
    assert!(asked.await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_decision_that_never_comes_is_refused_and_a_denial_at_once() {
    let start = Instant::now();
    assert_eq!(settled(&Late::new(Refused::NoDecision(7))).await, Err(Refused::NoDecision(7)));
    assert_eq!(start.elapsed(), SETTLING);
    let denied = Refused::Denied("by a rule".into());
    assert_eq!(settled(&Late::new(denied.clone())).await, Err(denied));
    assert_eq!(start.elapsed(), SETTLING);
}

/// A rule of the few that random lists are made of.
fn some_rule() -> impl Strategy<Value = HttpRuleSpec> {
    let text = |texts: &[&'static str]| {
        prop::option::of(prop::sample::select(texts.to_vec())).prop_map(|text| text.map(str::to_owned))
    };
    let paths = text(&["/a", "/a|/b", "/a/.*", "/a/[0-9]+", "/.*", ".*"]);
    let headers = prop::option::of(prop::sample::select(vec!["x-a", "x-b"]));
    (paths, text(&["GET", "GET|PUT"]), text(&["shop", "shop|store", "s.*"]), headers).prop_map(
        |(path, method, host, header)| {
            let spec = header.map(|name| adds(name, "1")).unwrap_or_default();
            HttpRuleSpec { path, method, host, ..spec }
        },
    )
}

proptest! {
    #[test]
    fn an_index_says_what_all_rules_say(
        lists in prop::collection::vec(prop::collection::vec(some_rule(), 1..8), 1..8),
        targets in prop::collection::vec("/(a|b|a/7|a/b|c)", 1..6),
    ) {
        let lists = lists.into_iter().enumerate().map(|(number, specs)| {
            let made = specs.into_iter().map(|spec| Arc::new(HttpRule::new(spec).unwrap())).collect();
            RuleList::new(number.to_string().into(), Application::Http(made))
        });
        let rules = rules(lists.collect(), false);
        for target in &targets {
            for (method, host) in [("GET", "shop"), ("PUT", "store"), ("POST", "other")] {
                let fields = [Field { name: b"Host", value: host.as_bytes() }];
                let raw = RawRequest {
                    version: Version::Http11,
                    method: method.as_bytes(),
                    target: target.as_bytes(),
                    authority: None,
                    fields: &fields,
                };
                let message = Message::Http(Request::new(raw).unwrap());
                let mut asked = rules.unread();
                rules.ask_all(&message, &mut asked);
                let judged = rules.judge(&message);
                prop_assert_eq!(judged.passes, asked.passes);
                prop_assert_eq!(judged.rule, asked.rule);
                prop_assert_eq!(judged.edits().collect::<Vec<_>>(), asked.edits().collect::<Vec<_>>());
            }
        }
    }
}
