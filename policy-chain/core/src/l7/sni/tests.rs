use super::{ServerNamePattern, server_name};

/// RFC 6066, 3: a DNS host name in ASCII, without a final dot, and no address.
#[test]
fn server_names_are_host_names() {
    for (given, name) in
        [(&b"Example.COM"[..], "example.com"), (b"a_b-c.example", "a_b-c.example"), (b"localhost", "localhost")]
    {
        assert_eq!(server_name(given).unwrap().as_str(), name);
    }
    let long = b"a".repeat(64);
    for given in [
        &b""[..],
        b".",
        b"a.",
        b".a",
        b"a..b",
        b"10.0.0.1",
        b"::1",
        b"[::1]",
        b"a:443",
        b"*.example.com",
        b"a b",
        b"a\0.example",
        b"good.example\0.evil.example",
        b"a/b",
        b"\xff.example",
        "é.example".as_bytes(),
        &long,
    ] {
        assert!(server_name(given).is_err(), "{given:?}");
    }
}

/// Cilium's proxy, SniPattern in cilium/network_policy.cc: the semantics of FQDN patterns.
#[test]
fn patterns_mean_what_those_of_names_mean() {
    for (pattern, matching, other) in [
        ("example.com", &["example.com", "EXAMPLE.com"][..], &["a.example.com"][..]),
        ("*.example.com", &["a.example.com"], &["example.com", "a.b.example.com"]),
        ("**.example.com", &["a.example.com", "a.b.example.com"], &["example.com", "aexample.com"]),
        ("a*b.example.com", &["ab.example.com", "a-b.example.com"], &["a.b.example.com"]),
        ("*", &["example.com", "localhost"], &[]),
    ] {
        let read = ServerNamePattern::new(pattern).unwrap();
        assert_eq!(read.to_string(), pattern);
        for name in matching {
            assert!(read.matches(&server_name(name.as_bytes()).unwrap()), "{pattern} {name}");
        }
        for name in other {
            assert!(!read.matches(&server_name(name.as_bytes()).unwrap()), "{pattern} {name}");
        }
    }
    for text in ["", ".", "a..b", "a b", "a:443", "https://a"] {
        assert!(ServerNamePattern::new(text).is_err(), "{text}");
    }
}
