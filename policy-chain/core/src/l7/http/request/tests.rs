use proptest::prelude::*;

use super::{Field, RawRequest, Request, Unjudged, Version};

fn fields<'a>(fields: &[(&'a str, &'a str)]) -> Vec<Field<'a>> {
    fields.iter().map(|(name, value)| Field { name: name.as_bytes(), value: value.as_bytes() }).collect()
}

/// Method, path, authority, or what is wrong.
type Read = Result<(String, Option<String>, Option<String>), String>;

fn read(version: Version, line: &str, authority: Option<&str>, headers: &[(&str, &str)]) -> Read {
    let (method, target) = line.split_once(' ').unwrap();
    let fields = fields(headers);
    let raw = RawRequest {
        version,
        method: method.as_bytes(),
        target: target.as_bytes(),
        authority: authority.map(str::as_bytes),
        fields: &fields,
    };
    let read = Request::new(raw).map_err(|error| error.to_string())?;
    Ok((read.method().to_owned(), read.path().map(str::to_owned), read.authority().map(str::to_owned)))
}

fn http1(line: &str, hosts: &[&str]) -> Read {
    read(Version::Http11, line, None, &hosts.iter().map(|host| ("hOsT", *host)).collect::<Vec<_>>())
}

fn http2(line: &str, authority: Option<&str>, hosts: &[&str]) -> Read {
    read(Version::Http2, line, authority, &hosts.iter().map(|host| ("host", *host)).collect::<Vec<_>>())
}

fn is(read: &Read, method: &str, path: Option<&str>, authority: Option<&str>) {
    assert_eq!(*read, Ok((method.to_owned(), path.map(str::to_owned), authority.map(str::to_owned))));
}

fn refused(read: &Read, why: &str) {
    assert!(read.as_ref().is_err_and(|error| error.contains(why)), "{read:?} is not {why:?}");
}

/// RFC 9112, 3.2.1 to 3.2.4.
#[test]
fn the_four_forms_of_a_target() {
    is(&http1("GET /a/../b?x", &["Example.com"]), "GET", Some("/b?x"), Some("example.com"));
    is(&http1("GET http://example.com/a//b?x", &["example.com"]), "GET", Some("/a/b?x"), Some("example.com"));
    is(&http1("GET HTTP://EXAMPLE.com:80/", &["example.com:80"]), "GET", Some("/"), Some("example.com:80"));
    is(&http1("GET https://example.com", &["example.com"]), "GET", Some("/"), Some("example.com"));
    is(&http1("GET http://example.com?x=1", &["example.com"]), "GET", Some("/?x=1"), Some("example.com"));
    is(&http1("OPTIONS http://example.com", &["example.com"]), "OPTIONS", Some("*"), Some("example.com"));
    is(&http1("OPTIONS http://example.com/", &["example.com"]), "OPTIONS", Some("/"), Some("example.com"));
    is(&http1("OPTIONS *", &["example.com"]), "OPTIONS", Some("*"), Some("example.com"));
    is(&http1("CONNECT example.com:443", &["example.com:443"]), "CONNECT", None, Some("example.com:443"));
    is(&http1("CONNECT [::1]:443", &["[0::1]:443"]), "CONNECT", None, Some("[::1]:443"));
    for (line, why) in [
        ("GET *", "OPTIONS only"),
        ("GET ", "neither"),
        ("GET a", "neither"),
        ("GET example.com:443", "neither"),
        ("GET ?x", "neither"),
        ("GET \\a", "neither"),
        ("GET ftp://example.com/", "scheme"),
        ("GET ://example.com/", "scheme"),
        ("GET http:///a", "empty"),
        ("GET http://", "empty"),
        ("GET http://example.com#/a", "fragment"),
        ("GET http://example.com/a#b", "fragment"),
        ("GET http://example.com\\@evil.example/", "user information"),
        ("GET http://example.com\\a/", "character"),
        ("GET http://user:pass@example.com/", "user information"),
        ("CONNECT example.com", "port"),
        ("CONNECT /a", "character"),
        ("CONNECT *", "character"),
        ("CONNECT http://example.com:443", "number"),
        ("CONNECT ", "empty"),
    ] {
        refused(&http1(line, &["example.com"]), why);
    }
}

/// Cilium: escaped slashes "unescape and redirect".
#[test]
fn a_path_with_escaped_slashes_is_to_be_asked_for_without() {
    let asked = |version, line: &str, host: &str| {
        let (method, target) = line.split_once(' ').unwrap();
        let (method, target) = (method.as_bytes(), target.as_bytes());
        let (http2, fields) = (version == Version::Http2, fields(&[("host", host)]));
        let authority = http2.then_some(host.as_bytes());
        let raw = RawRequest { version, method, target, authority, fields: if http2 { &[] } else { &fields } };
        Request::new(raw).map(|request| request.target().to_owned())
    };
    for version in [Version::Http10, Version::Http11, Version::Http2] {
        for (line, elsewhere) in [
            ("GET /a%2Fb", "/a/b"),
            ("POST /a%2fb%5c%5Cc", "/a/b/c"),
            // CVE-2021-29492: where dot segments stand between escaped slashes, the client is sent to where they lead.
            ("GET /public%2f..%2fadmin", "/admin"),
            ("GET /public/..%2Fadmin?next=%2Fa%2fb", "/admin?next=%2Fa%2Fb"),
            // Nowhere but to a path: this would be another host.
            ("GET /%2Fevil.example/%2e%2e%5c", "/"),
            ("GET /%2f%2fevil.example", "/evil.example"),
        ] {
            assert_eq!(asked(version, line, "a"), Err(Unjudged::Moved(elsewhere.to_owned())), "{line}");
        }
        assert_eq!(asked(version, "GET /a%252Fb?%2F", "a").as_deref(), Ok("/a%252Fb?%2F"));
        // What is refused anyway is not sent elsewhere.
        for line in ["GET /a%2Fb%00", "GET /a%2f%2", "GET /%2%2ff", "GET /a%2F..;/b", "GET /a%2Fb#c"] {
            assert!(matches!(asked(version, line, "a"), Err(Unjudged::Bad(_))), "{line}");
        }
        assert!(matches!(asked(version, "GET /a%2Fb", "a b"), Err(Unjudged::Bad(_))));
    }
    assert_eq!(asked(Version::Http11, "GET http://a/b%2Fc", "a"), Err(Unjudged::Moved("/b/c".to_owned())));
}

/// RFC 9112, 3.2 and 3.2.2; RFC 9113, 8.3.1.
#[test]
fn a_request_names_one_host() {
    for (hosts, why) in [
        (&[][..], "no Host"),
        (&["a", "a"], "several"),
        (&["a", "b"], "several"),
        (&[""], "empty"),
        (&["a, b"], "character"),
        (&["a b"], "character"),
        (&["a@b"], "user information"),
        (&["a/b"], "character"),
        (&["é"], "ASCII"),
    ] {
        refused(&http1("GET /", hosts), why);
    }
    refused(&http1("GET http://a/", &["b"]), "two different");
    refused(&http1("GET http://a/", &["a:80"]), "two different");
    refused(&http1("GET http://a/", &["a."]), "two different");
    refused(&http1("GET http://a/", &[]), "no Host");
    refused(&http1("GET http://a/", &["a", "a"]), "several");
    refused(&http1("CONNECT a:443", &["b:443"]), "two different");
    is(&read(Version::Http10, "GET /", None, &[]), "GET", Some("/"), None);
    is(&read(Version::Http10, "GET http://a/", None, &[]), "GET", Some("/"), Some("a"));
    is(&read(Version::Http10, "GET /", None, &[("Host", "a")]), "GET", Some("/"), Some("a"));

    is(&http2("GET /", Some("A:443"), &[]), "GET", Some("/"), Some("a:443"));
    is(&http2("GET /", Some("a"), &["A"]), "GET", Some("/"), Some("a"));
    is(&http2("GET /", None, &["a"]), "GET", Some("/"), Some("a"));
    is(&http2("OPTIONS *", Some("a"), &[]), "OPTIONS", Some("*"), Some("a"));
    is(&http2("CONNECT ", Some("a:443"), &[]), "CONNECT", None, Some("a:443"));
    // RFC 8441: WebSocket over HTTP/2.
    is(&http2("CONNECT /chat", Some("a"), &[]), "CONNECT", Some("/chat"), Some("a"));
    refused(&http2("GET /", None, &[]), "no :authority");
    refused(&http2("GET /", Some("a"), &["b"]), "two different");
    refused(&http2("GET /", Some("a"), &["a", "a"]), "several");
    refused(&http2("GET /", Some(""), &["a"]), "empty");
    refused(&http2("GET http://a/", Some("a"), &[]), "no path");
    refused(&http2("GET ", Some("a"), &[]), "neither");
    refused(&http2("CONNECT ", Some("a"), &[]), "port");
    refused(&http2("CONNECT ", None, &[]), "port");
}

#[test]
fn methods_are_tokens_and_keep_their_case() {
    is(&http1("get /", &["a"]), "get", Some("/"), Some("a"));
    for line in [" /", "G@T /", "G\tT /", "GÉT /", "GET\0 /", &format!("{} /", "A".repeat(65))] {
        refused(&http1(line, &["a"]), "method");
    }
}

#[test]
fn fields_can_be_read_in_one_way() {
    let with = |version, headers: &[(&str, &str)]| {
        let mut all = vec![("host", "a")];
        all.extend_from_slice(headers);
        read(version, "POST /", None, &all)
    };
    let one = |headers: &[(&str, &str)]| with(Version::Http11, headers);
    for headers in [
        &[("Content-Length", "5")][..],
        &[("Transfer-Encoding", "Chunked")],
        &[("X", "a\tb"), ("X", "é"), ("X", "")],
        &[("Connection", "keep-alive")],
    ] {
        assert!(one(headers).is_ok(), "{headers:?}");
    }
    for (headers, why) in [
        (&[("", "a")][..], "name"),
        (&[("X ", "a")], "name"),
        (&[("X:", "a")], "name"),
        (&[(" X", "a")], "name"),
        (&[("Höst", "a")], "name"),
        (&[("X", "a\r\nHost: b")], "control"),
        (&[("X", "a\nb")], "control"),
        (&[("X", "a\0b")], "control"),
        (&[("X", "a\x7fb")], "control"),
        // RFC 9112, 6.3: request smuggling.
        (&[("Content-Length", "5"), ("Transfer-Encoding", "chunked")], "both"),
        (&[("Content-Length", "5"), ("content-length", "5")], "one number"),
        (&[("Content-Length", "5, 5")], "one number"),
        (&[("Content-Length", "+5")], "one number"),
        (&[("Content-Length", "")], "one number"),
        (&[("Content-Length", "0x5")], "one number"),
        (&[("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "chunked")], "chunked"),
        (&[("Transfer-Encoding", "gzip, chunked")], "chunked"),
        (&[("Transfer-Encoding", "xchunked")], "chunked"),
        (&[("Transfer-Encoding", "chunked;x")], "chunked"),
    ] {
        refused(&one(headers), why);
    }
    refused(&with(Version::Http10, &[("Transfer-Encoding", "chunked")]), "chunked");
    // RFC 9113, 8.2.1 and 8.2.2.
    for name in ["connection", "transfer-encoding", "upgrade", "keep-alive", "proxy-connection", "X-Upper"] {
        refused(&with(Version::Http2, &[(name, "chunked")]), "HTTP/2");
    }
    let many = vec![("x", "y"); 600];
    refused(&one(&many), "too many");
    refused(&http1(&format!("GET /{}", "a".repeat(40_000)), &["a"]), "too long");
}

#[test]
fn what_is_forwarded_is_what_was_matched() {
    let fields = fields(&[("X-One", " a "), ("HOST", "A.example"), ("x-one", "b")]);
    let raw = RawRequest {
        version: Version::Http11,
        method: b"GET",
        target: b"http://a.EXAMPLE/x/../y",
        authority: None,
        fields: &fields,
    };
    let request = Request::new(raw).unwrap();
    assert_eq!((request.target(), request.authority()), ("/y", Some("a.example")));
    assert_eq!(request.values("X-ONE").collect::<Vec<_>>(), [b"a", b"b"]);
    assert_eq!(request.values("Host").collect::<Vec<_>>(), [b"a.example"]);
    let left: Vec<_> = request.fields().map(|field| field.name).collect();
    assert_eq!(left, [&b"X-One"[..], b"x-one"]);
}

proptest! {
    #[test]
    fn a_forwarded_request_is_read_as_it_was_matched(
        http2: bool,
        method in "GET|OPTIONS|CONNECT|get|[ -~]{1,4}",
        target in "/[a.%2eEfF/;?#\\\\]{0,12}|(http|https)://[aA.:0@/?#]{0,12}|\\*|[a:4]{1,6}|.{0,12}",
        host in "[aA.:0-9@]{0,8}|\\PC{0,6}",
        name in "host|Host|x|content-length|transfer-encoding|.{0,4}",
        value in "a|5|chunked|.{0,8}",
        authority in prop::option::of("[aA.:0]{0,6}"),
    ) {
        let fields = fields(&[("host", &host), (&name, &value)]);
        let version = if http2 { Version::Http2 } else { Version::Http11 };
        for fields in [&fields[..], &fields[..1], &fields[1..], &[]] {
            let raw = RawRequest {
                version,
                method: method.as_bytes(),
                target: target.as_bytes(),
                authority: authority.as_deref().map(str::as_bytes).filter(|_| http2),
                fields,
            };
            let Ok(request) = Request::new(raw) else { continue };
            let mut again: Vec<_> = request.fields().copied().collect();
            let host = request.authority().unwrap();
            again.push(Field { name: b"host", value: host.as_bytes() });
            let extended = http2 && request.path().is_some();
            let raw = RawRequest {
                target: if http2 && !extended { b"" } else { request.target().as_bytes() },
                authority: http2.then_some(host.as_bytes()),
                fields: &again,
                ..raw
            };
            let second = Request::new(raw).unwrap();
            prop_assert_eq!(second.method(), request.method());
            prop_assert_eq!(second.path(), request.path());
            prop_assert_eq!(second.authority(), request.authority());
        }
    }
}
