use proptest::prelude::*;

use super::{canonical, has_port};

#[test]
fn hosts_have_one_form() {
    for (given, form) in [
        ("example.com", "example.com"),
        ("Example.COM", "example.com"),
        ("example.com:80", "example.com:80"),
        ("example.com:8080", "example.com:8080"),
        ("EXAMPLE.com:0080", "example.com:80"),
        ("example.com:", "example.com"),
        ("example.com.", "example.com."),
        ("a_b.svc", "a_b.svc"),
        ("10.0.0.1", "10.0.0.1"),
        ("10.0.0.1:65535", "10.0.0.1:65535"),
        ("[::1]", "[::1]"),
        ("[::1]:443", "[::1]:443"),
        ("[0:0:0:0:0:0:0:1]:", "[::1]"),
        ("[2001:DB8::0:A]:080", "[2001:db8::a]:80"),
    ] {
        assert_eq!(canonical(given).as_deref(), Ok(form), "{given}");
        assert_eq!(canonical(form).as_deref(), Ok(form), "{form}");
    }
}

#[test]
fn hosts_with_two_readings_are_refused() {
    let long = "a".repeat(262);
    for (given, why) in [
        ("", "empty"),
        (":80", "empty"),
        ("user@example.com", "user information"),
        ("good.example@evil.example", "user information"),
        ("good.example:80@evil.example", "user information"),
        ("example.com:80:80", "number"),
        ("example.com:+80", "number"),
        ("example.com:8a", "number"),
        ("example.com:0", "65535"),
        ("example.com:65536", "65535"),
        ("example.com:99999999999999999999", "65535"),
        ("::1", "empty"),
        ("2001:db8::1", "number"),
        ("[::1", "bracket"),
        ("[::1]x", "after its address"),
        ("[::1]:x", "number"),
        ("[fe80::1%25eth0]", "IPv6"),
        ("[v1.fe80::a]", "IPv6"),
        ("[10.0.0.1]", "IPv6"),
        ("[]", "IPv6"),
        ("a..b", "label"),
        (".a", "label"),
        (".", "label"),
        ("..", "label"),
        ("ex%61mple.com", "character"),
        ("a,b", "character"),
        ("a b", "character"),
        ("a/b", "character"),
        ("a\\b", "character"),
        ("a?b", "character"),
        ("a#b", "character"),
        ("a\0", "character"),
        ("exämple.com", "character"),
        (long.as_str(), "too long"),
    ] {
        let error = canonical(given).unwrap_err();
        assert!(error.reason().contains(why), "{given}: {error}");
    }
}

#[test]
fn a_port_is_told_from_an_address() {
    for (text, port) in [("a", false), ("a:1", true), ("[::1]", false), ("[::1]:1", true)] {
        assert_eq!(has_port(text), port, "{text}");
    }
}

proptest! {
    #[test]
    fn a_form_is_its_own_form(given in "[aA0:.\\[\\]@%-]{0,12}|\\[[0-9a-fA-F:.]{2,20}\\](:[0-9]{0,6})?|.{0,20}") {
        if let Ok(form) = canonical(&given) {
            prop_assert_eq!(canonical(&form), Ok(form.clone()), "{}", given);
            prop_assert!(!form.bytes().any(|byte| byte.is_ascii_uppercase() || b"@%/\\?# ".contains(&byte)));
        }
    }
}
