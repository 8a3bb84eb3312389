use std::collections::BTreeSet;

use proptest::prelude::*;

use super::{Name, NamePattern};

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

#[test]
fn names_are_read_by_the_limits_of_rfc_1035() {
    let label = "a".repeat(63);
    let longest = format!("{label}.{label}.{label}.{}", "a".repeat(61));
    assert_eq!(longest.len(), 253);
    for (text, read) in [
        ("Example.COM", "example.com"),
        ("example.com.", "example.com"),
        (".", "."),
        ("localhost", "localhost"),
        ("_dmarc.example.com", "_dmarc.example.com"),
        ("*.example.com", "*.example.com"),
        ("a/b@c.example", "a/b@c.example"),
        (longest.as_str(), longest.as_str()),
    ] {
        assert_eq!(Name::new(text).map(|name| name.to_string()), Ok(read.to_owned()), "{text}");
        assert_eq!(name(name(text).as_str()), name(text), "{text} comes back");
    }
    let too_long = format!("a{longest}");
    for text in [
        "",
        "..",
        "a..b",
        ".a",
        "a..",
        &format!("{label}a.com"),
        &too_long,
        &format!("{longest}.."),
        "exämple.com",
        "a b.com",
        "a\0b.com",
        "a\nb.com",
        r"a\.b.com",
    ] {
        assert!(Name::new(text).is_err(), "{text:?}");
    }
    assert_eq!(name(&format!("{longest}.")).as_str(), longest, "the final dot is not counted twice");
}

#[test]
fn a_label_with_a_dot_in_a_message_is_not_two_labels() {
    assert!(Name::from_labels([&b"evil.example"[..], b"com"]).is_err());
    assert_eq!(Name::from_labels([&b"WWW"[..], b"example"]).unwrap(), name("www.example"));
    assert_eq!(Name::from_labels([]).unwrap(), Name::root());
    assert!(Name::from_labels(std::iter::repeat_n(&b"a"[..], 1_000_000)).is_err());
}

/// `pkg/fqdn/matchpattern/matchpattern.go`, and cilium.io's policy language page for `matchName` and `matchPattern`.
#[test]
fn match_pattern_means_what_cilium_says() {
    for (pattern, matching, other) in [
        (
            "*.cilium.io",
            &["www.cilium.io", "WWW.cilium.io.", "a-b_c.cilium.io"][..],
            &["cilium.io", "a.b.cilium.io"][..],
        ),
        ("**.cilium.io", &["www.cilium.io", "a.b.cilium.io"], &["cilium.io", "xcilium.io", "cilium.io.evil", "."]),
        ("***.cilium.io", &["www.cilium.io", "a.b.cilium.io"], &["cilium.io"]),
        ("*cilium.io", &["cilium.io", "sub-cilium.io"], &["sub.cilium.io"]),
        ("**cilium.io", &["cilium.io", "sub-cilium.io"], &["sub.cilium.io"]),
        ("sub*.cilium.io", &["sub.cilium.io", "subdomain.cilium.io"], &["sub.sub.cilium.io", "xsub.cilium.io"]),
        ("a.*.io", &["a.b.io", "a.-.io"], &["a.io", "a.b.c.io"]),
        ("a.**.io", &["a.b.io"], &["a.io", "a.b.c.io"]),
        ("*a*b*.io", &["ab.io", "xaxbx.io", "aab.io"], &["ba.io", "a.b.io"]),
        ("*.*", &["a.b"], &["a", "a.b.c", "."]),
        ("**.*", &["a.b", "a.b.c"], &["a", "."]),
        ("*", &["a", "a.b.c", ".", "odd/name.example"], &[]),
        ("**", &["a", "a.b.c", "."], &[]),
        ("****.", &["a", "a.b.c", "."], &[]),
        ("Cilium.IO.", &["cilium.io"], &["a.cilium.io"]),
        // A star is no "/", and a "*" that is asked for is no host name.
        ("*.cilium.io", &["x.cilium.io"], &["a/b.cilium.io", "*.cilium.io"]),
    ] {
        let read = NamePattern::cilium(pattern).unwrap();
        assert_eq!(read.to_string(), pattern, "shown as written");
        for text in matching {
            assert!(read.matches(&name(text)), "{pattern} {text}");
        }
        for text in other {
            assert!(!read.matches(&name(text)), "{pattern} {text}");
        }
    }
}

/// `DomainName` in apis/v1alpha2/clusternetworkpolicy_types.go of network-policy-api; NPEP-133.
#[test]
fn a_star_of_cluster_network_policy_is_one_label_or_more() {
    for (pattern, matching, other) in [
        ("kubernetes.io", &["kubernetes.io"][..], &["www.kubernetes.io", "my-kubernetes.io", "wikipedia.org"][..]),
        ("blog.kubernetes.io.", &["blog.kubernetes.io"], &["www.kubernetes.io", "kubernetes.io"]),
        (
            "*.kubernetes.io",
            &["www.kubernetes.io", "blog.kubernetes.io", "latest.blog.kubernetes.io"],
            &["kubernetes.io", "wikipedia.org", "my-kubernetes.io"],
        ),
    ] {
        let read = NamePattern::domain(pattern).unwrap();
        assert_eq!(read.to_string(), pattern);
        for text in matching {
            assert!(read.matches(&name(text)), "{pattern} {text}");
        }
        for text in other {
            assert!(!read.matches(&name(text)), "{pattern} {text}");
        }
    }
    for text in [
        "*", "**", "**.a.io", "*.io", "io", "a*.b.io", "a.*.io", "*.*.io", "*a.b.io", "-a.io", "a_.io", "a.io-",
        "a..io", "", ".", "*.", ".a.io", "a b.io",
    ] {
        assert!(NamePattern::domain(text).is_err(), "{text}");
    }
}

#[test]
fn patterns_keep_to_their_characters_and_lengths() {
    let label = "a".repeat(63);
    for text in [
        "",
        ".",
        "..",
        "a..b",
        ".a",
        "*..a",
        "a b",
        "a/b",
        "[a-z].io",
        "(a|b)",
        "é.io",
        "a\0",
        "a\n",
        " a.io",
        &"*".repeat(256),
    ] {
        assert!(NamePattern::cilium(text).is_err(), "{text:?}");
        assert!(NamePattern::name(text).is_err(), "{text:?}");
    }
    assert!(NamePattern::cilium(&"*".repeat(255)).is_ok());
    assert!(NamePattern::cilium(&format!("{label}a.io")).is_err(), "a name that cannot be");
    assert!(NamePattern::name("*.io").is_err(), "matchName has no stars");
    assert!(NamePattern::name("a_b.io.").is_ok());
    let error = NamePattern::cilium("a b").unwrap_err().to_string();
    assert!(error.contains("\"a b\"") && error.contains("letters"), "{error}");
}

#[test]
fn patterns_are_equal_by_meaning_and_shown_as_written() {
    let same = [
        NamePattern::cilium("**.Example.com").unwrap(),
        NamePattern::cilium("****.example.com.").unwrap(),
        NamePattern::domain("*.example.com").unwrap(),
    ];
    assert_eq!(same.iter().collect::<BTreeSet<_>>().len(), 1);
    assert_eq!(same[0].to_string(), "**.Example.com");
    let all = ["*.example.com", "**.example.com", "*example.com", "example.com", "*", "*.*", "**.*"];
    let all: BTreeSet<_> = all.iter().map(|text| NamePattern::cilium(text).unwrap()).collect();
    assert_eq!(all.len(), 7);
    assert_eq!(NamePattern::name("A.io.").unwrap(), NamePattern::cilium("a.io").unwrap());
    assert_eq!(NamePattern::name("A.io.").unwrap().exact(), Some(name("a.io")));
    assert_eq!(NamePattern::cilium("*.io").unwrap().exact(), None);
}

/// A matcher that tries everywhere would not come to an end.
#[test]
fn hostile_patterns_take_linear_time() {
    let label = "a".repeat(62);
    let text = name(&format!("{label}.{label}.{label}.{label}"));
    for part in ["*a".repeat(31), "*aa".repeat(20), "a*".repeat(31)] {
        for tail in ["*b", "*"] {
            let pattern: String = format!("**.{part}{tail}.{part}{tail}.{part}b").chars().take(255).collect();
            let pattern = NamePattern::cilium(&pattern).unwrap();
            for _ in 0..1000 {
                std::hint::black_box(pattern.matches(&text));
            }
        }
    }
}

/// Tries every length for every star, on text with its final dots, as Cilium's regular expression says it.
fn reference(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => {
            reference(rest, text)
                || text.split_first().is_some_and(|(first, others)| *first != b'.' && reference(pattern, others))
        }
        Some((byte, rest)) => {
            text.split_first().is_some_and(|(first, others)| first == byte && reference(rest, others))
        }
    }
}

fn reference_cilium(pattern: &str, text: &str) -> bool {
    let stars = pattern.bytes().take_while(|byte| *byte == b'*').count();
    let rest = pattern.trim_start_matches('*');
    if rest.is_empty() || rest == "." {
        return true;
    }
    match rest.strip_prefix('.') {
        Some(rest) if stars >= 2 => {
            let ends = text.match_indices('.').filter_map(|(dot, _)| text.get(dot + 1..));
            ends.into_iter().any(|tail| reference(rest.as_bytes(), tail.as_bytes()))
        }
        _ => reference(pattern.as_bytes(), text.as_bytes()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn matching_agrees_with_one_that_tries_everything(pattern in "[ab*.]{1,9}", text in "[ab]{1,4}([.][ab]{1,3}){0,3}") {
        if let Ok(read) = NamePattern::cilium(&pattern) {
            let bare = pattern.strip_suffix('.').unwrap_or(&pattern);
            prop_assert_eq!(read.matches(&name(&text)), reference_cilium(bare, &text), "{} {}", pattern, text);
        }
    }

    #[test]
    fn equal_patterns_match_the_same(one in "[aA*.]{1,6}", other in "[aA*.]{1,6}", text in "a{1,3}([.]a{1,2}){0,3}") {
        if let (Ok(one), Ok(other)) = (NamePattern::cilium(&one), NamePattern::cilium(&other)) && one == other {
            prop_assert_eq!(one.matches(&name(&text)), other.matches(&name(&text)));
            prop_assert_eq!(one.matches(&Name::root()), other.matches(&Name::root()));
        }
    }

    #[test]
    fn nothing_panics(pattern in ".{0,300}", text in ".{0,300}", odd in "[a.*\\x00-\\x7f]{0,40}") {
        for pattern in [&pattern, &odd] {
            for read in [NamePattern::cilium(pattern), NamePattern::domain(pattern), NamePattern::name(pattern)] {
                for text in [&text, &odd] {
                    if let (Ok(read), Ok(name)) = (&read, Name::new(text)) {
                        std::hint::black_box(read.matches(&name));
                        prop_assert_eq!(name.as_str(), name.as_str().to_ascii_lowercase());
                        prop_assert!(name.as_str() == "." || !name.as_str().ends_with('.'));
                    }
                }
            }
        }
    }
}
