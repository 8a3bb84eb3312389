use std::sync::Arc;

use super::{Edit, HeaderMatchSpec, HttpRule, HttpRuleSpec, HttpRules, MismatchAction, Outcome};
use crate::l7::http::{Field, RawRequest, Request, Version};

fn spec(path: &str, method: &str, host: &str) -> HttpRuleSpec {
    let text = |text: &str| Some(text.to_owned());
    HttpRuleSpec { path: text(path), method: text(method), host: text(host), ..HttpRuleSpec::default() }
}

fn rule(spec: &HttpRuleSpec) -> HttpRule {
    HttpRule::new(spec.clone()).unwrap()
}

/// Whether a request passes; `GET host/path`.
fn passes(rule: &HttpRule, line: &str, headers: &[(&str, &str)]) -> bool {
    with(line, headers, |request| matches!(rule.matches(request), Outcome::Pass(_)))
}

fn with<T>(line: &str, headers: &[(&str, &str)], look: impl FnOnce(&Request<'_>) -> T) -> T {
    let (method, url) = line.split_once(' ').unwrap();
    let (host, _) = url.split_once('/').unwrap();
    let mut fields = vec![Field { name: b"Host", value: host.as_bytes() }];
    fields.extend(headers.iter().map(|(name, value)| Field { name: name.as_bytes(), value: value.as_bytes() }));
    let raw = RawRequest {
        version: Version::Http11,
        method: method.as_bytes(),
        target: &url.as_bytes()[host.len()..],
        authority: None,
        fields: &fields,
    };
    look(&Request::new(raw).unwrap())
}

/// PortRuleHTTP in pkg/policy/api/http.go: every condition has to hold; an absent or empty one does.
#[test]
fn all_conditions_of_a_rule_have_to_hold() {
    let every = rule(&HttpRuleSpec::default());
    assert!(passes(&every, "GET a/", &[]));
    assert!(passes(&rule(&spec("", "", "")), "PURGE a:1/x?y", &[]));
    let all = rule(&HttpRuleSpec { headers: vec!["X-Key: 1".into()], ..spec("/a/[0-9]+", "GET|PUT", r"b\.example") });
    for (line, header, pass) in [
        ("GET b.example/a/1", "1", true),
        ("PUT B.Example/x/../a/12", "1", true),
        ("POST b.example/a/1", "1", false),
        ("get b.example/a/1", "1", false),
        ("GET b.example/a/x", "1", false),
        ("GET c.example/a/1", "1", false),
        ("GET b.example/a/1", "2", false),
    ] {
        assert_eq!(passes(&all, line, &[("x-key", header)]), pass, "{line} {header}");
    }
}

/// Cilium matches `:path` and `:authority`: with the query, and with the port.
#[test]
fn a_path_has_its_query_and_a_host_its_port() {
    let path = rule(&HttpRuleSpec { path: Some("/public".into()), ..HttpRuleSpec::default() });
    assert!(passes(&path, "GET a/public", &[]));
    assert!(!passes(&path, "GET a/public?x=1", &[]));
    assert!(!passes(&path, "GET a/public/", &[]));
    let host = rule(&HttpRuleSpec { host: Some("a.example".into()), ..HttpRuleSpec::default() });
    assert!(passes(&host, "GET a.example/", &[]));
    assert!(passes(&host, "GET abexample/", &[]), "a dot is any character");
    assert!(!passes(&host, "GET a.example:80/", &[]));
    // Hosts have no capitals, whoever writes some: the client, or the rule's author.
    for written in
        ["API.Example.com", r"API\.example\.com", "A.*ple.COM", "(API|www)[.]Example.com", "(?:A)pi.example.com"]
    {
        let host = rule(&HttpRuleSpec { host: Some(written.into()), ..HttpRuleSpec::default() });
        for asked in ["api.example.com", "API.EXAMPLE.COM"] {
            assert!(passes(&host, &format!("GET {asked}/"), &[]), "{written} {asked}");
        }
        assert!(!passes(&host, "GET api.example.org/", &[]), "{written}");
    }
    assert!(!passes(&host, "GET xa.example/", &[]));
}

#[test]
fn what_is_matched_is_what_the_server_will_resolve() {
    let public = rule(&HttpRuleSpec { path: Some("/public/.*".into()), ..HttpRuleSpec::default() });
    assert!(passes(&public, "GET a/public/./x", &[]));
    assert!(passes(&public, "GET a//p%75blic/x", &[]));
    assert!(!passes(&public, "GET a/public/../admin", &[]), "CVE-2019-9901");
    assert!(!passes(&public, "GET a/public/%2e%2E/admin", &[]), "CVE-2019-9901");
}

#[test]
fn a_rule_for_paths_or_hosts_has_no_request_without() {
    let path = rule(&HttpRuleSpec { path: Some(".*".into()), ..HttpRuleSpec::default() });
    let host = rule(&HttpRuleSpec { host: Some(".*".into()), ..HttpRuleSpec::default() });
    let fields = [Field { name: b"host", value: b"a:443" }];
    let connect =
        RawRequest { version: Version::Http11, method: b"CONNECT", target: b"a:443", authority: None, fields: &fields };
    let old = RawRequest { version: Version::Http10, method: b"GET", target: b"/", authority: None, fields: &[] };
    assert_eq!(path.matches(&Request::new(connect).unwrap()), Outcome::No);
    assert!(matches!(host.matches(&Request::new(connect).unwrap()), Outcome::Pass(_)));
    assert_eq!(host.matches(&Request::new(old).unwrap()), Outcome::No);
    assert!(matches!(path.matches(&Request::new(old).unwrap()), Outcome::Pass(_)));
}

#[test]
fn headers_are_there_or_exactly_so() {
    for (header, given, pass) in [
        ("X-A", &[("x-a", "")][..], true),
        ("X-A", &[("x-a", "1"), ("x-a", "2")], true),
        ("X-A", &[("x-b", "1")], false),
        ("X-A: 1", &[("x-a", "1")], true),
        ("X-A: 1", &[("X-A", " 1\t")], true),
        ("X-A:1", &[("x-a", "1")], true),
        ("X-A 1", &[("x-a", "1")], true),
        ("X-A: a: b", &[("x-a", "a: b")], true),
        ("X-A: 1", &[("x-a", "11")], false),
        ("X-A: a", &[("x-a", "A")], false),
        ("X-A: 1", &[], false),
        // CVE-2020-25017: the server may take the other one.
        ("X-A: 1", &[("x-a", "1"), ("x-a", "2")], false),
        ("X-A: 1", &[("x-a", "2"), ("X-A", "1")], false),
        ("X-A: 1", &[("x-a", "1"), ("x-a", "1")], false),
        ("X-A: 1", &[("x-a", "1, 2")], false),
        ("Host: a", &[], true),
        ("Host: b", &[], false),
    ] {
        let rule = rule(&HttpRuleSpec { headers: vec![header.into()], ..HttpRuleSpec::default() });
        assert_eq!(passes(&rule, "GET a/", given), pass, "{header} {given:?}");
    }
}

fn header_match(value: Option<&str>, mismatch: MismatchAction) -> HttpRule {
    let header = HeaderMatchSpec { name: "X-A".into(), value: value.map(str::to_owned), mismatch };
    rule(&HttpRuleSpec { header_matches: vec![header], ..HttpRuleSpec::default() })
}

/// MismatchAction in pkg/policy/api/http.go.
#[test]
fn mismatch_actions_let_pass_and_change() {
    let add = Edit::Add { name: "X-A", value: "1" };
    let delete = Edit::Delete { name: "X-A" };
    let replace = Edit::Replace { name: "X-A", value: "1" };
    let (some, none) = (Some("1"), None);
    for (value, mismatch, given, pass, log, edit) in [
        (some, MismatchAction::Refuse, Some("1"), true, false, None),
        (some, MismatchAction::Refuse, Some("2"), false, false, None),
        (some, MismatchAction::Refuse, None, false, false, None),
        (none, MismatchAction::Refuse, Some("2"), true, false, None),
        (none, MismatchAction::Refuse, None, false, false, None),
        (some, MismatchAction::Log, Some("1"), true, false, None),
        (some, MismatchAction::Log, Some("2"), true, true, None),
        (some, MismatchAction::Log, None, true, true, None),
        (none, MismatchAction::Log, None, true, true, None),
        (some, MismatchAction::Add, Some("1"), true, false, None),
        (some, MismatchAction::Add, Some("2"), true, true, Some(add)),
        (some, MismatchAction::Add, None, true, true, Some(add)),
        (some, MismatchAction::Delete, Some("1"), true, false, None),
        (some, MismatchAction::Delete, Some("2"), true, true, Some(delete)),
        (some, MismatchAction::Delete, None, true, false, None),
        (none, MismatchAction::Delete, None, true, false, None),
        (some, MismatchAction::Replace, Some("1"), true, false, None),
        (some, MismatchAction::Replace, Some("2"), true, true, Some(replace)),
        (some, MismatchAction::Replace, None, true, true, Some(replace)),
    ] {
        let rule = header_match(value, mismatch);
        let headers: Vec<_> = given.iter().map(|given| ("x-a", *given)).collect();
        let case = format!("{value:?} {mismatch:?} {given:?}");
        with("GET a/", &headers, |request| match rule.matches(request) {
            Outcome::No => assert!(!pass, "{case}"),
            Outcome::Pass(found) => {
                assert!(pass, "{case}");
                assert_eq!(found.log(), log, "{case}");
                assert_eq!(found.mismatched().count(), usize::from(log), "{case}");
                assert_eq!(found.edits().collect::<Vec<_>>(), edit.into_iter().collect::<Vec<_>>(), "{case}");
            }
        });
    }
}

#[test]
fn the_first_rule_that_matches_is_named_and_all_change_headers() {
    let path = |path: &str| Arc::new(rule(&HttpRuleSpec { path: Some(path.into()), ..HttpRuleSpec::default() }));
    let rules: HttpRules = [
        path("/a"),
        path("/b.*"),
        Arc::new(header_match(Some("1"), MismatchAction::Replace)),
        path("/.*"),
        Arc::new(header_match(Some("2"), MismatchAction::Refuse)),
    ]
    .into_iter()
    .collect();
    for (line, index, edits) in [("GET a/a", 0, 1), ("GET a/bc", 1, 1), ("GET a/c", 2, 1)] {
        with(line, &[], |request| {
            let found = rules.first_match(request).unwrap();
            assert_eq!(found.index, index, "{line}");
            assert_eq!(found.passes(request).flat_map(|pass| pass.edits()).count(), edits, "{line}");
        });
    }
    with("GET a/", &[], |request| assert_eq!(HttpRules::default().first_match(request), None));
}

#[test]
fn errors_name_the_field() {
    let header = |name: &str, value: Option<&str>, mismatch| HttpRuleSpec {
        header_matches: vec![
            HeaderMatchSpec { name: "ok".into(), ..HeaderMatchSpec::default() },
            HeaderMatchSpec { name: name.into(), value: value.map(str::to_owned), mismatch },
        ],
        ..HttpRuleSpec::default()
    };
    let headers = |text: &str| HttpRuleSpec { headers: vec!["ok".into(), text.into()], ..HttpRuleSpec::default() };
    for (spec, field) in [
        (spec("(", "", ""), "path"),
        (spec("", "[", ""), "method"),
        (spec("", "", "(?=a)"), "host"),
        (spec("(a{1000}){1000}", "", ""), "path"),
        (headers(""), "headers[1]"),
        (headers("a b c\n"), "headers[1]"),
        (headers("X-A:"), "headers[1]"),
        (headers("X-A: "), "headers[1]"),
        (headers(":path: /a"), "headers[1]"),
        (headers("Ü: a"), "headers[1]"),
        (header("", None, MismatchAction::Refuse), "headerMatches[1].name"),
        (header("X A", None, MismatchAction::Refuse), "headerMatches[1].name"),
        (header("X", Some("a\r\nB: c"), MismatchAction::Add), "headerMatches[1].value"),
        (header("X", Some(" a"), MismatchAction::Refuse), "headerMatches[1].value"),
        (header("X", None, MismatchAction::Add), "headerMatches[1].value"),
        (header("X", Some(""), MismatchAction::Replace), "headerMatches[1].value"),
        (header("Host", Some("b"), MismatchAction::Replace), "headerMatches[1].mismatch"),
        (header("content-length", Some("0"), MismatchAction::Add), "headerMatches[1].mismatch"),
        (header("Transfer-Encoding", Some("x"), MismatchAction::Delete), "headerMatches[1].mismatch"),
        (HttpRuleSpec { headers: vec!["a".into(); 65], ..HttpRuleSpec::default() }, "headers"),
    ] {
        let error = HttpRule::new(spec).unwrap_err();
        assert_eq!(error.field, field, "{error}");
        assert!(error.to_string().starts_with(&format!("{field}: ")), "{error}");
    }
    assert!(HttpRule::new(HttpRuleSpec { headers: vec!["a".into(); 64], ..HttpRuleSpec::default() }).is_ok());
}

#[test]
fn rules_are_equal_if_the_same_was_written() {
    assert_eq!(rule(&spec("/a", "GET", "")), rule(&spec("/a", "GET", "")));
    assert_ne!(rule(&spec("/a", "GET", "")), rule(&spec("/a", "(GET)", "")));
    assert_eq!(rule(&spec("/a", "GET", "")).spec(), &spec("/a", "GET", ""));
}
