use proptest::prelude::*;

use super::{Budget, Case, MAX_PROGRAM, MAX_PROGRAMS, Pattern, SIZES, compile};

fn compiled(expression: &str) -> Result<Pattern, String> {
    Pattern::within(expression, Case::Exact, &mut Budget::default())
}

#[test]
fn the_expressions_of_an_object_have_a_budget() {
    let mut budget = Budget::default();
    let fits = (0..10_000)
        .take_while(|number| Pattern::within(&format!("[a-z]{number}"), Case::Exact, &mut budget).is_ok())
        .count();
    assert_eq!(fits, MAX_PROGRAMS / SIZES[0]);
    assert!(Pattern::within("[a-z]", Case::Exact, &mut budget).unwrap_err().contains("split"));
    assert!(Pattern::within("/texts/.*", Case::Exact, &mut budget).is_ok(), "a text needs no program");
    // What is too large is not tried for ever.
    let mut budget = Budget::default();
    let reasons = (0..10_000).map(|_| Pattern::within("((a{99}){99}){99}", Case::Exact, &mut budget).unwrap_err());
    assert_eq!(reasons.filter(|reason| reason.contains("its program")).count(), MAX_PROGRAMS / MAX_PROGRAM);
}

#[test]
fn an_expression_matches_a_whole_text() {
    for (expression, matching, other) in [
        ("/public", &["/public"][..], &["/public/", "x/public", "/publi", ""][..]),
        ("GET|HEAD", &["GET", "HEAD"], &["GETHEAD", "GE", "get", "GET|HEAD"]),
        ("/public/.*", &["/public/", "/public/a?b=c"], &["/public", "x/public/"]),
        (".*", &["", "a"], &[]),
        ("a.c", &["abc", "a.c"], &["ac", "abcd"]),
        (r"a\.c", &["a.c"], &["abc"]),
        (r".*\.example\.com", &["a.example.com", ".example.com"], &["example.com", "a.example.com:80"]),
        ("/a/.*/b/.*c", &["/a//b/c", "/a/x/b/y/b/c"], &["/a/b/c", "/a/x/b/y"]),
        ("a.*b.*b", &["abb", "axbxb"], &["ab", "axb"]),
        ("a|", &["a", ""], &["b"]),
        // Parentheses and anchors of the author's stay within ours.
        ("a|b.*", &["a", "b", "bc"], &["ac", "xb"]),
        ("^/a$", &["/a"], &["/ab", "x/a"]),
        ("^/a|b$", &["/a", "b"], &["/ab", "xb", "/ax"]),
        ("(?i)/Admin", &["/admin", "/ADMIN"], &["/admin/"]),
        ("(?m)^a$", &["a"], &["a\nb"]),
        ("[[:alpha:]]+", &["abc"], &["a1", ""]),
        (r"\d{2,3}", &["12", "123"], &["1", "1234"]),
        (r"\pL+", &["abc"], &["1"]),
        (
            r"/v[0-9]+/(users|groups)/[^/?]+(\?.*)?",
            &["/v1/users/a", "/v20/groups/b?x"],
            &["/v1/users/a/b", "/v/users/a"],
        ),
        ("/a%2Fb", &["/a%2Fb"], &["/a/b"]),
    ] {
        let pattern = compiled(expression).unwrap();
        for text in matching {
            assert!(pattern.matches(text), "{expression} {text}");
        }
        for text in other {
            assert!(!pattern.matches(text), "{expression} {text}");
        }
    }
}

/// A parenthesis in the text that closes ours would leave the anchors.
#[test]
fn what_does_not_stand_alone_is_refused() {
    for expression in
        ["a)|(b", ")", "(", "[", "*a", "a**b(", r"\", "a{2", r"(?P<", r"\Q", r"(a)\1", "(?=a)", "(?x) a # b"]
    {
        assert!(compiled(expression).is_err(), "{expression}");
    }
}

#[test]
fn large_programs_are_refused_with_a_reason() {
    for expression in ["(((a{100}){100}){100}){100}", "((.*){1000}){1000}", "(?:a?){60000}", r"[\pL\pN]{1000}"] {
        let reason = compiled(expression).unwrap_err();
        assert!(reason.contains("larger than 131072 bytes"), "{expression}: {reason}");
    }
    let deep = format!("{}{}", "(".repeat(4000), ")".repeat(4000));
    assert!(compiled(&deep).is_err());
    let reason = compiled(&"a".repeat(8193)).unwrap_err();
    assert!(reason.contains("8192"), "{reason}");
}

/// Cilium refuses what RE2 makes more than 100 instructions of, and with it the endpoint's whole policy (#41314).
#[test]
fn programs_beyond_re2s_limit_are_no_problem() {
    let hosts: Vec<_> = (0..60).map(|number| format!("host-{number}[.]example[.]com(:443)?")).collect();
    let pattern = compiled(&hosts.join("|")).unwrap();
    assert!(pattern.matches("host-59.example.com:443"));
    assert!(!pattern.matches("host-60.example.com"));
}

/// Backtracking would take longer than the universe has.
#[test]
fn hostile_expressions_take_linear_time() {
    let text = "a".repeat(20_000);
    for expression in ["(a+)+b", "(a|a)*b", "(a*)*b", ".*a.*a.*a.*a.*a.*a.*b", "(.*a){12}b", "(?:a?){50}a{50}b"] {
        assert!(!compiled(expression).unwrap().matches(&text), "{expression}");
    }
}

/// Texts of which some parts mean something in an expression.
fn expressions() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        "a", "b", "/", "|", ".*", ".*", ".", "*", "+", "?", r"\.", r"\*", r"\a", "(", ")", "^", "#", "-",
    ]);
    prop::collection::vec(part, 0..8).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn what_needs_no_automaton_means_the_same(expression in expressions(), texts in prop::collection::vec("[ab/.*#-]{0,6}", 8)) {
        if let Some(simple) = Pattern::simple(&expression) {
            let regex = compile(&format!(r"\A(?:{expression})\z"), Case::Exact, MAX_PROGRAM);
            prop_assert!(regex.is_ok(), "{} is no expression", expression);
            let regex = regex.unwrap();
            for text in texts.iter().chain([&expression, &expression.replace(".*", "ab"), &expression.replace('\\', "")]) {
                prop_assert_eq!(simple.matches(text), regex.is_match(text.as_bytes()), "{} {}", expression, text);
            }
        }
    }

    #[test]
    fn nothing_panics(expression in "\\PC{0,40}|[ -~]{0,40}", text in "[ -~]{0,40}") {
        if let Ok(pattern) = compiled(&expression) {
            std::hint::black_box(pattern.matches(&text));
        }
    }
}
