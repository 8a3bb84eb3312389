use std::sync::Arc;

use proptest::prelude::*;

use super::super::rule::{HttpRuleSpec, Outcome};
use super::super::{Field, RawRequest, Version};
use super::*;

fn rule(path: Option<&str>, method: Option<&str>, host: Option<&str>) -> HttpRule {
    let spec = HttpRuleSpec {
        path: path.map(str::to_owned),
        method: method.map(str::to_owned),
        host: host.map(str::to_owned),
        ..HttpRuleSpec::default()
    };
    HttpRule::new(spec).unwrap()
}

fn with_request<T>(target: &str, host: &str, then: impl FnOnce(&Request<'_>) -> T) -> T {
    let fields = [Field { name: b"Host", value: host.as_bytes() }];
    let raw = RawRequest {
        version: Version::Http11,
        method: b"GET",
        target: target.as_bytes(),
        authority: None,
        fields: &fields,
    };
    then(&Request::new(raw).unwrap())
}

/// `b+{0,2}` is there so often or not at all.
#[test]
fn what_is_repeated_and_repeated_again_may_be_absent() {
    for path in ["/b+{0,2}", "/b+*", "/b+?*"] {
        let rule = HttpRule::new(HttpRuleSpec { path: Some(path.to_owned()), ..HttpRuleSpec::default() }).unwrap();
        let index = Index::new([&rule]);
        with_request("/", "a", |request| {
            assert_ne!(rule.matches(request), Outcome::No, "{path}");
            assert_eq!(index.candidates(request), [0], "{path}");
        });
    }
}

#[test]
fn only_rules_that_may_match_are_asked() {
    let mut rules: Vec<HttpRule> =
        (0..1_000).map(|number| rule(Some(&format!("/items/{number}")), None, None)).collect();
    rules.push(rule(Some("/static/.*"), None, None));
    rules.push(rule(Some("/orders/[0-9]+"), None, None));
    rules.push(rule(None, Some("GET"), Some("Shop")));
    rules.push(rule(Some(".*\\.png"), None, None));
    let index = Index::new(&rules);
    let of = |target: &str, host: &str| with_request(target, host, |request| index.candidates(request));
    assert_eq!(of("/items/7", "a"), [7, 1_003]);
    assert_eq!(of("/static/7", "shop"), [1_000, 1_002, 1_003]);
    assert_eq!(of("/orders/7", "a"), [1_001, 1_003]);
    assert_eq!(of("/other", "a"), [1_003]);
}

#[test]
fn what_an_expression_begins_with_is_what_all_its_texts_begin_with() {
    for (expression, head) in [
        ("/a/[0-9]+", "/a/"),
        ("^/a/[0-9]+", "/a/"),
        ("/ab?c", "/a"),
        ("/ab*(c)", "/a"),
        ("/ab{0,1}(c)", "/a"),
        ("/ab+(c)", "/ab"),
        ("/a\\.b[c]", "/a.b"),
        ("/a\\d", "/a"),
        ("/a(b|c)", "/a"),
        ("/a[b]|/c", ""),
        ("/a(b)|/c", ""),
        ("/a[(]|/c", ""),
        ("/a(?i)b|/c", ""),
        ("/a\\(b(c)|/d", ""),
        ("(?i)/a", ""),
        ("[/]a", ""),
    ] {
        let rule = rule(Some(expression), None, None);
        assert_eq!(rule.keys().0, Key::Head(head), "{expression}");
    }
}

/// Pieces of expressions, put together in any order; most of what comes out compiles.
fn expression() -> impl Strategy<Value = Option<String>> {
    let piece = prop::sample::select(vec![
        "/", "a", "b", "B", "ab", ".*", ".", "a?", "b+", "a*", "(a|b)", "|", "[ab]", "\\.", "(", ")", "^", "$",
        "{0,2}", "[(]", "(?i)A", "\\d", "(?:a)",
    ]);
    prop::option::of(prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat()))
}

proptest! {
    #[test]
    fn every_rule_that_matches_is_found(
        specs in prop::collection::vec((expression(), expression()), 1..20),
        targets in prop::collection::vec("/[ab]{0,3}(/[ab]{0,2}|[.][ab])?", 1..20),
        hosts in prop::collection::vec("[ab]{1,3}", 1..4),
    ) {
        let rules: Vec<Arc<HttpRule>> = specs
            .into_iter()
            .filter_map(|(path, host)| HttpRule::new(HttpRuleSpec { path, host, ..HttpRuleSpec::default() }).ok())
            .map(Arc::new)
            .collect();
        let index = Index::new(rules.iter().map(AsRef::as_ref));
        for (target, host) in targets.iter().flat_map(|target| hosts.iter().map(move |host| (target, host))) {
            with_request(target, host, |request| {
                let candidates = index.candidates(request);
                prop_assert!(candidates.is_sorted_by(|one, next| one < next), "{candidates:?}");
                for (number, rule) in rules.iter().enumerate() {
                    if rule.matches(request) != Outcome::No {
                        prop_assert!(candidates.contains(&number), "{:?} and {target} at {host}", rule.spec());
                    }
                }
                Ok(())
            })?;
        }
    }
}
