//! Requests that two readers could take for different ones. None of them reaches a server.

use crate::bed::{Proxy, Random, canned, cases, counting, public, requests, run, show};

/// A request that no rule lets pass, hidden in what some reader takes for the first one's body or end.
const HIDDEN: &str = "GET /secret HTTP/1.1\r\nHost: a\r\n\r\n";

/// Requests with more than one reading, each of a family that is in the books.
fn corpus() -> Vec<(&'static str, String)> {
    let post = "POST /upload HTTP/1.1\r\nHost: a\r\n";
    let get = "GET /public HTTP/1.1\r\nHost: a\r\n";
    let mut corpus = vec![
        ("CL.TE", format!("{post}Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}")),
        ("TE.CL", format!("{post}Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n23\r\n{HIDDEN}0\r\n\r\n")),
        ("CL.CL, different", format!("{post}Content-Length: 0\r\nContent-Length: 37\r\n\r\n{HIDDEN}")),
        ("CL.CL, the same", format!("{post}Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello")),
        ("CL list", format!("{post}Content-Length: 5, 5\r\n\r\nhello")),
        ("CL with a sign", format!("{post}Content-Length: +5\r\n\r\nhello")),
        ("negative CL", format!("{post}Content-Length: -1\r\n\r\nhello")),
        ("hexadecimal CL", format!("{post}Content-Length: 0x5\r\n\r\nhello")),
        ("CL with a space inside", format!("{post}Content-Length: 5 5\r\n\r\nhello")),
        ("empty CL", format!("{post}Content-Length: \r\n\r\n{HIDDEN}")),
        ("huge CL", format!("{post}Content-Length: 18446744073709551617\r\n\r\n{HIDDEN}")),
        ("CL beyond signed readers", format!("{post}Content-Length: 9223372036854775808\r\n\r\n{HIDDEN}")),
        ("space before the colon", format!("{post}Content-Length : 37\r\n\r\n{HIDDEN}")),
        ("tab before the colon", format!("{post}Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n{HIDDEN}")),
        ("obs-fold", format!("{post}X: a\r\n Content-Length: 37\r\n\r\n{HIDDEN}")),
        ("folded TE", format!("{post}Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n{HIDDEN}")),
        ("space before the first field", "GET /public HTTP/1.1\r\n Host: a\r\nHost: a\r\n\r\n".into()),
        ("NUL in a value", format!("{get}X: a\0b\r\n\r\n")),
        ("NUL in a name", format!("{get}X\0: a\r\n\r\n")),
        ("bare LF after the request line", "GET /public HTTP/1.1\nHost: a\r\n\r\n".into()),
        ("bare LF after a field", format!("{get}X: a\nContent-Length: 37\r\n\r\n{HIDDEN}")),
        ("bare LF at the end", format!("{get}X: a\r\n\n{HIDDEN}")),
        ("only LFs", "GET /public HTTP/1.1\nHost: a\n\n".into()),
        ("bare CR in a value", format!("{get}X: a\rContent-Length: 37\r\n\r\n{HIDDEN}")),
        ("bare CR for a line's end", "GET /public HTTP/1.1\rHost: a\r\n\r\n".into()),
        ("CR CR LF", format!("{get}X: a\r\r\n\r\n")),
        ("no colon", format!("{get}nonsense\r\n\r\n")),
        ("empty name", format!("{get}: a\r\n\r\n")),
        ("two Hosts", format!("{get}Host: b\r\n\r\n")),
        ("two Hosts alike", format!("{get}Host: a\r\n\r\n")),
        ("no Host", "GET /public HTTP/1.1\r\n\r\n".into()),
        ("absolute form and another Host", "GET http://b/public HTTP/1.1\r\nHost: a\r\n\r\n".into()),
        ("user information", "GET http://a@b/public HTTP/1.1\r\nHost: b\r\n\r\n".into()),
        ("Host with a path", "GET /public HTTP/1.1\r\nHost: a/b\r\n\r\n".into()),
        ("HTTP/0.9", "GET /public\r\n\r\n".into()),
        ("HTTP/1.2", "GET /public HTTP/1.2\r\nHost: a\r\n\r\n".into()),
        ("HTTP/2.0 in words", "GET /public HTTP/2.0\r\nHost: a\r\n\r\n".into()),
        ("HTTP/1.1 in small letters", "GET /public http/1.1\r\nHost: a\r\n\r\n".into()),
        ("TE with HTTP/1.0", "POST /upload HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into()),
        ("two spaces in the request line", "GET  /public HTTP/1.1\r\nHost: a\r\n\r\n".into()),
        ("tab in the request line", "GET\t/public HTTP/1.1\r\nHost: a\r\n\r\n".into()),
        ("space in the target", "GET /public /x HTTP/1.1\r\nHost: a\r\n\r\n".into()),
        ("escaped slash, and no path", "GET /public%2f..;/secret HTTP/1.1\r\nHost: a\r\n\r\n".into()),
        ("backslash", "GET /public\\..\\secret HTTP/1.1\r\nHost: a\r\n\r\n".into()),
        ("fragment", "GET /public#/../secret HTTP/1.1\r\nHost: a\r\n\r\n".into()),
        ("overlong UTF-8", "GET /public/%c0%ae%c0%ae/secret HTTP/1.1\r\nHost: a\r\n\r\n".into()),
        ("CONNECT with a body", "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\nContent-Length: 5\r\n\r\nhello".into()),
        ("three empty lines", format!("\r\n\r\n\r\n{HIDDEN}")),
    ];
    for coding in [
        "xchunked",
        "x",
        "identity",
        "chunked, identity",
        "identity, chunked",
        "gzip, chunked",
        "chunked, chunked",
        "chunked;q=1",
        "\"chunked\"",
        "'chunked'",
        "chunked\0",
        "\x0bchunked",
        "chun ked",
        "chunkéd",
        "",
    ] {
        corpus.push(("TE.TE", format!("{post}Transfer-Encoding: {coding}\r\n\r\n0\r\n\r\n{HIDDEN}")));
        corpus.push((
            "TE.TE, twice",
            format!("{post}Transfer-Encoding: chunked\r\nTransfer-Encoding: {coding}\r\n\r\n0\r\n\r\n{HIDDEN}"),
        ));
    }
    for name in [
        "Transfer-Encoding ",
        " Transfer-Encoding",
        "Transfer-Encoding\x0b",
        "\x0cTransfer-Encoding",
        "Transfer_Encoding\0",
    ] {
        corpus.push(("TE by another name", format!("{post}{name}: chunked\r\n\r\n0\r\n\r\n{HIDDEN}")));
    }
    corpus
}

#[test]
fn requests_with_two_readings_are_refused_and_the_connection_ends() {
    for (name, request) in corpus() {
        run(async {
            let (server, sent) = counting().await;
            let proxy = Proxy::start(public(), server).await;
            let answer = show(&proxy.talk(request.as_bytes()).await.unwrap());
            assert!(answer.starts_with("HTTP/1.1 400 "), "{name}: {} -> {answer}", show(request.as_bytes()));
            assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{name}: {answer}");
            assert!(answer.contains("connection: close"), "{name}: {answer}");
            assert_eq!(sent.connections(), 0, "{name}: {}", sent.text());
            // And after a request that passed, on a connection to the server that stands.
            let input = format!("GET /public HTTP/1.1\r\nHost: a\r\n\r\n{request}");
            let answer = show(&proxy.talk(input.as_bytes()).await.unwrap());
            assert!(answer.contains("answer 1\\nHTTP/1.1 400 "), "{name}: {answer}");
            assert_eq!(sent.text(), "GET /public HTTP/1.1\r\nHost: a\r\n\r\n", "{name}");
        });
    }
}

#[test]
fn chunks_with_two_readings_end_both_connections() {
    for body in [
        "5 \r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhelloo\r\n0\r\n\r\n",
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
        "5;a\rb\r\nhello\r\n0\r\n\r\n",
        "5;a\0\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        ";a\r\nhello\r\n0\r\n\r\n",
        "g\r\nhello\r\n0\r\n\r\n",
        "5\r\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "ffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "0\r\nX: a\n\r\n",
        "0\r\nX : a\r\n\r\n",
        "0\r\n X: a\r\n\r\n",
        "0\r\nX\0: a\r\n\r\n",
    ] {
        run(async {
            let (server, sent) = counting().await;
            let proxy = Proxy::start(public(), server).await;
            let head = "POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
            let answer = show(&proxy.talk(format!("{head}{body}{HIDDEN}").as_bytes()).await.unwrap());
            assert!(answer.starts_with("HTTP/1.1 400 "), "{}: {answer}", show(body.as_bytes()));
            assert!(!sent.text().contains("secret"), "{}: {}", show(body.as_bytes()), sent.text());
            assert!(!sent.text().contains("0\r\n\r\n"), "the server must not take it for whole: {}", sent.text());
        });
    }
}

#[test]
fn paths_are_matched_and_forwarded_in_one_form() {
    for (target, forwarded) in [
        ("/x/../public", "/public"),
        ("/./public/./a", "/public/a"),
        ("//public///a", "/public/a"),
        ("/%70ublic", "/public"),
        ("/public/%7ea", "/public/~a"),
        ("http://a/public?x=/../secret", "/public?x=/../secret"),
    ] {
        run(async {
            let (server, sent) = counting().await;
            let proxy = Proxy::start(public(), server).await;
            let input = format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            proxy.talk(input.as_bytes()).await.unwrap();
            assert_eq!(sent.text(), format!("GET {forwarded} HTTP/1.1\r\nHost: a\r\nconnection: close\r\n\r\n"));
        });
    }
    for target in ["/public/../secret", "/public/%2e%2e/secret", "/public/..//secret", "/secret?/public"] {
        run(async {
            let (server, sent) = counting().await;
            let proxy = Proxy::start(public(), server).await;
            let input = format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            let answer = show(&proxy.talk(input.as_bytes()).await.unwrap());
            assert!(answer.starts_with("HTTP/1.1 403 "), "{target}: {answer}");
            assert_eq!(sent.connections(), 0, "{target}");
        });
    }
}

#[test]
fn http_2_is_not_upgraded_to() {
    run(async {
        let answer = b"HTTP/1.1 200 OK\r\nUpgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 2\r\n\r\nok";
        let (server, sent) = canned(answer, true).await;
        let proxy = Proxy::start(public(), server).await;
        let request = b"GET /public HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings, X-Other\r\n\
                        Upgrade: h2c, HTTP/2.0, tls/1.0\r\nHTTP2-Settings: AAMAAABk\r\nX-Other: kept\r\n\r\n";
        let answer = show(&proxy.talk(request).await.unwrap());
        assert!(!answer.to_ascii_lowercase().contains("upgrade"), "{answer}");
        assert_eq!(sent.text(), "GET /public HTTP/1.1\r\nHost: a\r\nX-Other: kept\r\n\r\n");
        assert_eq!(proxy.counter("http2_upgrades_removed"), 1);
    });
}

/// Changes an octet, cuts a part out, or doubles one.
fn mutate(octets: &mut Vec<u8>, random: &mut Random) {
    const ODD: &[u8] = b"\r\n\0 \t:;,/%.\x0b\x7f\xff0aA-+#?\\";
    for _ in 0..=random.below(4) {
        if octets.is_empty() {
            return;
        }
        let at = random.below(octets.len());
        let end = (at + 1 + random.below(8)).min(octets.len());
        match random.below(4) {
            0 => octets[at] = ODD[random.below(ODD.len())],
            1 => octets.insert(at, ODD[random.below(ODD.len())]),
            2 => drop(octets.drain(at..end)),
            _ => {
                let part = octets[at..end].to_vec();
                octets.splice(at..at, part);
            }
        }
    }
}

/// What a strict reader that is not ours makes of what the server got: the requests' lines. Such a reader must understand
/// all of it, whatever came from the client.
fn strict(octets: &[u8]) -> Vec<String> {
    let mut rest = octets;
    let mut lines = Vec::new();
    loop {
        let mut fields = [httparse::EMPTY_HEADER; 128];
        let mut request = httparse::Request::new(&mut fields);
        let Ok(httparse::Status::Complete(length)) = request.parse(rest) else {
            // The last one may have been cut off with its connection.
            return lines;
        };
        lines.push(format!("{} {}", request.method.unwrap(), request.path.unwrap()));
        let values = |name: &str| -> Vec<&[u8]> {
            request
                .headers
                .iter()
                .filter(|field| field.name.eq_ignore_ascii_case(name))
                .map(|field| field.value)
                .collect()
        };
        let hosts = values("host").len();
        assert!(hosts == 1 || hosts == 0 && request.version == Some(0), "{hosts} Hosts: {}", show(octets));
        rest = &rest[length..];
        match (values("content-length")[..].first(), values("transfer-encoding").len()) {
            (Some(_), 1..) => panic!("both framings: {}", show(octets)),
            (Some(value), 0) => {
                assert_eq!(values("content-length").len(), 1);
                let length: usize = std::str::from_utf8(value).unwrap().parse().unwrap();
                let Some(after) = rest.get(length..) else { return lines };
                rest = after;
            }
            (None, 1) => loop {
                let Ok(httparse::Status::Complete((line, size))) = httparse::parse_chunk_size(rest) else {
                    return lines;
                };
                let size = usize::try_from(size).unwrap();
                rest = &rest[line..];
                if size == 0 {
                    let mut fields = [httparse::EMPTY_HEADER; 128];
                    let Ok(httparse::Status::Complete((length, _))) = httparse::parse_headers(rest, &mut fields) else {
                        return lines;
                    };
                    rest = &rest[length..];
                    break;
                }
                let Some(after) = rest.get(size + 2..) else { return lines };
                rest = after;
            },
            (None, 0) => {}
            (None, _) => panic!("several codings: {}", show(octets)),
        }
    }
}

#[test]
fn whatever_comes_only_what_passed_reaches_the_server() {
    let seeds = [
        format!("GET /public HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n{HIDDEN}"),
        format!("POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 37\r\n\r\n{HIDDEN}"),
        format!(
            "POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n23;x\r\n{HIDDEN}\r\n0\r\nX: y\r\n\r\n"
        ),
        format!("GET http://a:80/x/%2e./public?q HTTP/1.1\r\nHost: a:80\r\nConnection: close\r\n\r\n{HIDDEN}"),
        format!("GET /public HTTP/1.0\r\nConnection: keep-alive\r\nUpgrade: websocket\r\n\r\n{HIDDEN}"),
    ];
    let asked = std::env::var_os("SLUICE_TEST_SEED").map(|seed| seed.to_str().unwrap().parse::<u64>().unwrap());
    let seeds_of_cases = asked.map_or(0..cases(600), |seed| seed..seed + 1);
    let mut passed = 0;
    for seed in seeds_of_cases {
        passed += run(async {
            let mut random = Random::new(seed + 1);
            let mut input = Vec::new();
            for _ in 0..=random.below(3) {
                let mut text = seeds[random.below(seeds.len())].clone().into_bytes();
                mutate(&mut text, &mut random);
                input.extend_from_slice(&text);
            }
            let (server, sent) = counting().await;
            let proxy = Proxy::start(public(), server).await;
            let mut client = proxy.connect().await;
            let writing = tokio::io::AsyncWriteExt::write_all(&mut client, &input).await;
            writing.unwrap();
            // An unfinished request waits for its end: there is none.
            tokio::io::AsyncWriteExt::shutdown(&mut client).await.ok();
            let answered = crate::bed::read_all(&mut client).await.is_ok();
            let got: Vec<String> = sent.all().iter().flat_map(|octets| strict(octets)).collect();
            for line in &got {
                assert!(
                    line.contains(" /public") || line.contains(" /upload"),
                    "seed {seed}: {line} by {} of {}",
                    show(sent.text().as_bytes()),
                    show(&input)
                );
            }
            // And the records tell what the server has seen.
            let recorded = requests(&proxy.records()).iter().filter(|(_, _, passes)| *passes).count();
            assert!(
                recorded <= got.len() + 1 && (recorded >= got.len() || !answered),
                "seed {seed}: {recorded} {got:?}"
            );
            got.len()
        });
    }
    assert!(asked.is_some() || passed > 100, "{passed} requests passed: the cases test little");
}
