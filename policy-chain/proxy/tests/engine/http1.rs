//! HTTP/1: what passes, what is refused, and how messages go on.

use std::fmt::Write;

use sluice_policy_core::l7::http::{HeaderMatchSpec, HttpRuleSpec, MismatchAction};
use tokio::io::AsyncWriteExt;

use crate::bed::{
    Proxy, Random, canned, cases, counting, public, read_all, read_until, requests, rule, rules, run, show,
};

pub(crate) const DENIED: &str =
    "HTTP/1.1 403 Forbidden\r\ncontent-length: 15\r\ncontent-type: text/plain\r\n\r\nAccess denied\r\n";

#[test]
fn a_request_passes_by_its_rule_and_another_is_refused_on_the_same_connection() {
    run(async {
        let (server, sent) = counting().await;
        let proxy = Proxy::start(public(), server).await;
        let mut client = proxy.connect().await;
        for round in 1..=3 {
            client.write_all(b"GET /public/a HTTP/1.1\r\nHost: Shop.Example\r\nX-One:  1 \r\n\r\n").await.unwrap();
            let answer = read_until(&mut client, format!("answer {round}\n").as_bytes()).await;
            assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", show(&answer));
            client.write_all(b"GET /secret HTTP/1.1\r\nHost: shop.example\r\n\r\n").await.unwrap();
            assert_eq!(show(&read_until(&mut client, b"denied\r\n").await), show(DENIED.as_bytes()));
        }
        assert_eq!(
            sent.text(),
            "GET /public/a HTTP/1.1\r\nHost: shop.example\r\nX-One: 1\r\n\r\n".repeat(3),
            "only what passes, in its canonical form"
        );
        assert_eq!(sent.connections(), 1);
        let records = proxy.wait_records(6).await;
        assert_eq!(requests(&records)[..2], [(200, "/public/a".into(), true), (403, "/secret".into(), false)]);
        assert_eq!(records[0].rule.as_deref(), Some("CiliumNetworkPolicy shop/db, egress[0]"));
        assert_eq!(records[0].bytes, (0, 9));
        assert_eq!(&*records[1].reason, "no rule has it");
    });
}

#[test]
fn nothing_is_sent_to_a_server_before_a_request_has_passed() {
    run(async {
        let (server, sent) = counting().await;
        let proxy = Proxy::start(public(), server).await;
        let answer = proxy.talk(b"GET /secret HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 403 "), "{}", show(&answer));
        assert!(show(&answer).contains("connection: close"));
        assert_eq!(sent.connections(), 0);
    });
}

#[test]
fn a_path_with_escaped_slashes_is_asked_for_again_without() {
    run(async {
        let (server, sent) = counting().await;
        let proxy = Proxy::start(public(), server).await;
        let mut asked = "/secret%2F..%5cpublic%2fa?x=%2F".to_owned();
        for status in [307, 200] {
            let request = format!("GET {asked} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            let answer = show(&proxy.talk(request.as_bytes()).await.unwrap());
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
            if let Some((_, after)) = answer.split_once("location: ") {
                asked = after.split("\\r").next().unwrap().to_owned();
            }
        }
        assert_eq!(sent.text(), "GET /public/a?x=%2F HTTP/1.1\r\nHost: a\r\nconnection: close\r\n\r\n");
        let records = proxy.wait_records(2).await;
        assert!(records[0].reason.ends_with(": /public/a?x=%2F"), "{}", records[0].reason);
        assert_eq!((proxy.counter("requests_moved"), proxy.counter("requests_passed")), (1, 1));
    });
}

#[test]
fn whoever_asks_no_more_gets_all_of_the_answer_and_one_that_does_is_not_reset() {
    run(async {
        let (server, sent) = counting().await;
        let proxy = Proxy::start(public(), server).await;
        let last = "GET /public HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let mut client = proxy.connect().await;
        client.write_all(last.as_bytes()).await.unwrap();
        let answer = show(&read_all(&mut client).await.unwrap());
        assert!(answer.ends_with("answer 1\\n"), "{answer}");
        // The connection is over, though its client has not ended its own half.
        crate::bed::until(|| proxy.connections.oldest(1).is_empty()).await;
        drop(client);
        for more in [last, "GET /sec", "\r\n"] {
            let answer = proxy.talk(format!("{last}{more}").as_bytes()).await.map(|answer| show(&answer));
            assert!(answer.as_ref().is_ok_and(|text| text.matches("200 OK").count() == 1), "{more:?}: {answer:?}");
        }
        assert_eq!(sent.connections(), 4);
    });
}

/// A request and what becomes of it: whether it passes, and how it goes on.
fn case(random: &mut Random) -> (String, Option<String>) {
    let body = "x".repeat(random.below(40));
    let passes = random.below(3) > 0;
    let (get, post) = if passes { ("/public", "/upload") } else { ("/secret", "/secret") };
    let (request, forwarded) = match random.below(4) {
        0 => {
            let text = format!("GET {get} HTTP/1.1\r\nHost: a\r\n\r\n");
            (text.clone(), text)
        }
        1 => (
            format!("\r\nHEAD http://A{get} HTTP/1.1\r\nhost: a\r\nx:\t y\t\r\n\r\n"),
            format!("HEAD {get} HTTP/1.1\r\nHost: a\r\nx: y\r\n\r\n"),
        ),
        2 => (
            format!("POST {post} HTTP/1.1\r\nHost: a\r\nContent-Length: 0{}\r\n\r\n{body}", body.len()),
            format!("POST {post} HTTP/1.1\r\nHost: a\r\ncontent-length: {}\r\n\r\n{body}", body.len()),
        ),
        _ => {
            let mut chunks = String::new();
            let mut clean = String::new();
            for part in body.as_bytes().chunks(7) {
                let part = std::str::from_utf8(part).unwrap();
                let extension = ["", ";a=b", ";\"q;r\""][random.below(3)];
                write!(chunks, "{:x}{extension}\r\n{part}\r\n", part.len()).unwrap();
                write!(clean, "{:x}\r\n{part}\r\n", part.len()).unwrap();
            }
            (
                format!("POST {post} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n{chunks}0\r\n\r\n"),
                format!("POST {post} HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked\r\n\r\n{clean}0\r\n\r\n"),
            )
        }
    };
    (request, passes.then_some(forwarded))
}

#[test]
fn pipelined_requests_go_on_the_same_however_their_octets_come() {
    for seed in 0..cases(40) {
        run(async {
            let mut random = Random::new(seed);
            let (mut input, mut forwarded, mut answers) = (String::new(), String::new(), String::new());
            let mut number = 0;
            for _ in 0..=random.below(12) {
                let (request, passed) = case(&mut random);
                let is_head = request.contains("HEAD ");
                input.push_str(&request);
                match passed {
                    Some(text) => {
                        number += 1;
                        forwarded.push_str(&text);
                        let body = if is_head { String::new() } else { format!("answer {number}\n") };
                        let length = body.len().max(9);
                        write!(answers, "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
                    }
                    None if is_head => answers.push_str(DENIED.strip_suffix("Access denied\r\n").unwrap()),
                    None => answers.push_str(DENIED),
                }
            }
            let (server, sent) = counting().await;
            let proxy = Proxy::start(public(), server).await;
            let mut client = proxy.connect().await;
            client.set_nodelay(true).unwrap();
            let (mut read, mut write) = client.split();
            let sending = async {
                let mut rest = input.as_bytes();
                while !rest.is_empty() {
                    let (part, after) = rest.split_at(1 + random.below(rest.len().min(30)));
                    write.write_all(part).await.unwrap();
                    rest = after;
                    for _ in 0..random.below(80) {
                        tokio::task::yield_now().await;
                    }
                }
                write.shutdown().await.unwrap();
            };
            let receiving = async {
                let mut answer = Vec::new();
                tokio::io::AsyncReadExt::read_to_end(&mut read, &mut answer).await.unwrap();
                answer
            };
            let ((), answer) = tokio::join!(sending, receiving);
            assert_eq!(show(&answer), show(answers.as_bytes()), "seed {seed}");
            assert_eq!(show(sent.text().as_bytes()), show(forwarded.as_bytes()), "seed {seed}");
        });
    }
}

#[test]
fn trailers_and_extensions_go_on_in_one_spelling() {
    run(async {
        let (server, sent) = counting().await;
        let proxy = Proxy::start(public(), server).await;
        let request = "POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
                       05;x=y\r\nhello\r\n0;z\r\nX-Sum:  1\r\nContent-Length: 7\r\nHost: b\r\n\r\n";
        let answer = proxy.talk(request.as_bytes()).await.unwrap();
        assert!(show(&answer).starts_with("HTTP/1.1 200 OK"), "{}", show(&answer));
        assert_eq!(
            sent.text(),
            "POST /upload HTTP/1.1\r\nHost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n\
             5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"
        );
        assert_eq!(proxy.wait_records(1).await[0].bytes.0, 5);
    });
}

#[test]
fn a_refused_body_is_passed_over_within_a_bound() {
    run(async {
        let (server, sent) = counting().await;
        let proxy = Proxy::start(public(), server).await;
        let after = "GET /public HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let smuggled = "GET /public/smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
        let length = smuggled.len();
        for body in [
            format!("Content-Length: {length}\r\n\r\n{smuggled}"),
            format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{smuggled}\r\n0\r\n\r\n"),
        ] {
            let input = format!("POST /secret HTTP/1.1\r\nHost: a\r\n{body}{after}");
            let answer = show(&proxy.talk(input.as_bytes()).await.unwrap());
            assert!(answer.starts_with(&show(DENIED.as_bytes())) && answer.ends_with("answer 1\\n"), "{answer}");
        }
        assert_eq!(sent.text(), "GET /public HTTP/1.1\r\nHost: a\r\nconnection: close\r\n\r\n".repeat(2));
        for refused in ["Content-Length: 9999999\r\n\r\n", "Content-Length: 5\r\nExpect: 100-continue\r\n\r\n"] {
            let input = format!("POST /secret HTTP/1.1\r\nHost: a\r\n{refused}{smuggled}");
            let answer = show(&proxy.talk(input.as_bytes()).await.unwrap());
            assert!(answer.contains("connection: close") && answer.ends_with("Access denied\\r\\n"), "{answer}");
        }
        assert_eq!(sent.connections(), 2);
    });
}

#[test]
fn responses_keep_their_framing() {
    for (request, response, expected) in [
        // Chunked, with an extension and trailers.
        (
            "GET /public HTTP/1.1\r\nHost: a\r\n\r\n",
            &b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3;a\r\nabc\r\n0\r\nX-T: 1\r\n\r\n"[..],
            "HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n",
        ),
        // To HTTP/1.0, the content alone.
        (
            "GET /public HTTP/1.0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabcde",
        ),
        // To the end of the connection.
        (
            "GET /public HTTP/1.1\r\nHost: a\r\n\r\n",
            b"HTTP/1.0 200 OK\r\nServer: old\r\n\r\nabc",
            "HTTP/1.0 200 OK\r\nServer: old\r\nconnection: close\r\n\r\nabc",
        ),
        // Without content, whatever the fields say.
        (
            "HEAD /public HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n",
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 100\r\n\r\n",
        ),
        (
            "GET /public HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            b"HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\nETag: \"x\"\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nconnection: close\r\ncontent-length: 100\r\n\r\n",
        ),
        (
            "GET /public HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            b"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n",
            "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n",
        ),
        // Interim responses.
        (
            "GET /public HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx",
        ),
        (
            "GET /public HTTP/1.0\r\n\r\n",
            b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx",
        ),
        // Several fields of one name stay several.
        (
            "GET /public HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            b"HTTP/1.1 200 \r\nSet-Cookie: a\r\nSet-Cookie: b\r\nKeep-Alive: timeout=5\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 \r\nSet-Cookie: a\r\nSet-Cookie: b\r\nKeep-Alive: timeout=5\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        ),
    ] {
        run(async {
            let (server, _) = canned(response, true).await;
            let proxy = Proxy::start(public(), server).await;
            let answer = proxy.talk(request.as_bytes()).await.unwrap();
            assert_eq!(show(&answer), show(expected.as_bytes()), "{}", show(response));
        });
    }
}

#[test]
fn a_response_that_has_two_readings_is_the_servers_fault() {
    for response in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"[..],
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\nContent-Length: 3\n\nabc",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"SSH-2.0-OpenSSH_9\r\n\r\n",
        b"",
    ] {
        run(async {
            let (server, _) = canned(response, true).await;
            let proxy = Proxy::start(public(), server).await;
            let answer = proxy.talk(b"GET /public HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            assert!(answer.starts_with(b"HTTP/1.1 502 "), "{} -> {}", show(response), show(&answer));
            assert_eq!(requests(&proxy.records()), [(502, "/public".into(), true)]);
            assert_eq!(proxy.counter("responses_bad"), 1);
        });
    }
}

#[test]
fn headers_are_changed_by_all_rules_that_match() {
    let header = |name: &str, value: Option<&str>, mismatch| HeaderMatchSpec {
        name: name.into(),
        value: value.map(str::to_owned),
        mismatch,
    };
    let first = rule(HttpRuleSpec {
        path: Some("/public".into()),
        header_matches: vec![
            header("X-Team", Some("shop"), MismatchAction::Replace),
            header("X-Debug", Some("no"), MismatchAction::Delete),
        ],
        ..HttpRuleSpec::default()
    });
    let second = rule(HttpRuleSpec {
        header_matches: vec![
            header("X-Seen", Some("yes"), MismatchAction::Add),
            header("X-Log", None, MismatchAction::Log),
        ],
        ..HttpRuleSpec::default()
    });
    run(async {
        let (server, sent) = counting().await;
        let proxy = Proxy::start(rules([first, second]), server).await;
        let request =
            b"GET /public HTTP/1.1\r\nHost: a\r\nx-team: other\r\nX-TEAM: more\r\nx-debug: 1\r\nConnection: close\r\n\r\n";
        proxy.talk(request).await.unwrap();
        assert_eq!(
            sent.text(),
            "GET /public HTTP/1.1\r\nHost: a\r\nX-Team: shop\r\nX-Seen: yes\r\nconnection: close\r\n\r\n"
        );
        let records = proxy.wait_records(1).await;
        let sluice_proxy::record::Kind::Http { mismatched, .. } = &records[0].kind else { panic!("{records:?}") };
        let mismatched: Vec<&str> = mismatched.iter().map(|name| &**name).collect();
        assert_eq!(mismatched, ["X-Team", "X-Debug", "X-Seen", "X-Log"]);
    });
}

#[test]
fn http_1_0_is_kept_alive_where_both_want_it() {
    run(async {
        let answer = b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nok";
        let (server, sent) = canned(answer, false).await;
        let proxy = Proxy::start(public(), server).await;
        let mut client = proxy.connect().await;
        for _ in 0..2 {
            client.write_all(b"GET /public HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await.unwrap();
            let answer = read_until(&mut client, b"ok").await;
            assert!(show(&answer).contains("connection: keep-alive"), "{}", show(&answer));
            client.write_all(b"GET /secret HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await.unwrap();
            let answer = read_until(&mut client, b"denied\r\n").await;
            assert!(show(&answer).contains("connection: keep-alive"), "{}", show(&answer));
        }
        client.write_all(b"GET /public HTTP/1.0\r\n\r\n").await.unwrap();
        assert!(show(&read_all(&mut client).await.unwrap()).contains("connection: close"));
        assert_eq!(sent.connections(), 1);
    });
}
