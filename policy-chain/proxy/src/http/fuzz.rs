//! Hostile heads and bodies of HTTP/1, from clients and from servers.

use sluice_fuzz::{Grammar, Shape, Target};
use sluice_policy_core::l7::http::{RawRequest, Request};

use super::chunk::{Chunks, Then};
use super::head::{BadHead, Scan, read_request, read_response, read_trailers};
use super::message::{Body, RequestPlan, plan_request, put_request, put_response, put_trailers};
use super::speaks;

/// Where the first head ends, and how many lines it has; the same however it comes.
fn head_of(octets: &[u8]) -> Option<(&[u8], usize)> {
    let mut scan = Scan::default();
    let found = scan.find_end(octets);
    let (mut parts, mut slow) = (Scan::default(), Ok(None));
    let step = 1 + octets.len() % 13;
    for end in (step..octets.len() + step).step_by(step) {
        slow = parts.find_end(octets.get(..end).unwrap_or(octets));
        if slow != Ok(None) {
            break;
        }
    }
    if !octets.is_empty() {
        assert_eq!(found, slow, "the head's end depends on how it comes");
    }
    let end = found.ok()??;
    Some((octets.get(..end)?, scan.lines()))
}

/// What goes on of a request, and how.
fn forwarded(head: &[u8], lines: usize) -> Result<(Vec<u8>, RequestPlan), String> {
    let mut out = Vec::new();
    let read = read_request(head, lines, |line, fields| {
        let raw =
            RawRequest { version: line.version, method: line.method, target: line.target, authority: None, fields };
        let request = Request::new(raw).map_err(|error| format!("{error:?}"))?;
        let plan = plan_request(&request, line.version)?;
        put_request(&mut out, &request, &plan, std::iter::empty());
        Ok(plan)
    });
    match read {
        Ok(Ok(plan)) => Ok((out, plan)),
        Ok(Err(why)) => Err(why),
        Err(bad) => Err(words(bad).to_owned()),
    }
}

const fn words(bad: BadHead) -> &'static str {
    match bad {
        BadHead::Malformed(why) => why,
        BadHead::Fields => "too many fields",
    }
}

/// What goes on of a chunked body that comes in parts of this size, and whether it has ended.
fn body(input: &[u8], part: usize) -> Result<(Vec<u8>, u64, bool), &'static str> {
    let mut chunks = Chunks::default();
    let (mut held, mut out, mut content) = (Vec::new(), Vec::new(), 0);
    for octets in input.chunks(part) {
        held.extend_from_slice(octets);
        loop {
            let run = chunks.advance(&held)?;
            content += run.content;
            let (raw, _) = held.split_at(run.raw);
            out.extend_from_slice(raw);
            let skip = match run.then {
                Then::More | Then::End => 0,
                Then::Skip(skip) => skip,
                Then::Line { skip, size } => {
                    out.extend_from_slice(format!("{size:x}\r\n").as_bytes());
                    skip
                }
                Then::Last { line, trailers } => {
                    let from = run.raw + line;
                    let section = held.get(from..from + trailers).expect("trailers that are there");
                    out.extend_from_slice(b"0\r\n");
                    // Trailers that cannot be read end the connection, as another error.
                    read_trailers(section, |fields| put_trailers(&mut out, fields)).map_err(|_bad| "bad trailers")?;
                    out.extend_from_slice(b"\r\n");
                    line + trailers
                }
            };
            held.drain(..run.raw + skip);
            if chunks.is_done() {
                return Ok((out, content, true));
            }
            if run.then == Then::More {
                break;
            }
        }
    }
    Ok((out, content, false))
}

fn chunked(input: &[u8]) -> Result<(u64, bool), &'static str> {
    let whole = body(input, input.len().max(1));
    assert_eq!(whole, body(input, 1 + input.len() % 7), "a body depends on how it comes");
    let (out, content, is_done) = whole?;
    if is_done {
        let again = body(&out, out.len()).expect("a body of our own");
        assert_eq!(again, (out, content, true), "a body changes when it goes on once more");
    }
    Ok((content, is_done))
}

#[test]
fn fuzz_http() {
    const WORDS: &[&str] = &[
        "GET",
        "POST",
        "HEAD",
        "CONNECT",
        "OPTIONS",
        "HTTP/1.1",
        "HTTP/1.0",
        "HTTP/2.0",
        "\r\n",
        "\r\n\r\n",
        "\n",
        "\r",
        ": ",
        " :",
        "\r\n ",
        "Host: b",
        "Content-Length: 3",
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: gzip, chunked",
        "Connection: close",
        "Upgrade: websocket",
        "TE: trailers",
        "0\r\n\r\n",
        "5;x\r\n",
        "fffffffffffffff",
        "http://a/",
        "/%2e%2e/",
        "//",
        "?",
        "#",
        "a:b@c",
        "[::1]",
        "%zz",
        "\u{0}",
    ];
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/http");
    Target { name: "http", corpus: corpus.as_ref(), grammar: Grammar::Text, words: WORDS }.run(|octets| {
        let spoken = speaks(octets);
        let Some((head, lines)) = head_of(octets) else { return Shape::of(&spoken) };
        let rest = octets.get(head.len()..).unwrap_or_default();
        let request = forwarded(head, lines);
        let request = match request {
            Ok((out, plan)) => {
                // What goes on is what was understood: who reads it next understands the same.
                let (again, lines) = head_of(&out).expect("a whole head of our own");
                assert_eq!(again.len(), out.len(), "a head with two ends goes on");
                let (twice, plan_again) = forwarded(again, lines).unwrap_or_else(|why| {
                    panic!("a head of our own is refused, {why}: {}", out.escape_ascii());
                });
                assert_eq!(
                    twice.escape_ascii().to_string(),
                    out.escape_ascii().to_string(),
                    "a head changes when it goes on once more"
                );
                assert_eq!(
                    (plan_again.body, plan_again.persists, plan_again.is_connect),
                    (plan.body, plan.persists, plan.is_connect)
                );
                let body = matches!(plan.body, Body::Chunked(_)).then(|| chunked(rest));
                let body =
                    body.map(|body| body.map_or_else(|why| Shape::said(&why), |(_, is_done)| Shape::of(&is_done)));
                Shape::of(&(plan.offers_upgrade, plan.is_head, plan.expects)).and(body)
            }
            Err(why) => Shape::said(&why),
        };
        let asked = RequestPlan {
            body: Body::Empty,
            version: sluice_policy_core::l7::http::Version::Http11,
            persists: true,
            is_head: octets.len() % 5 == 0,
            is_connect: octets.len() % 7 == 0,
            offers_upgrade: octets.len() % 3 == 0,
            lost_upgrade: false,
            expects: false,
        };
        let mut out = Vec::new();
        let response = read_response(head, lines, |line, fields| put_response(&mut out, line, fields, &asked));
        if let Ok(Ok(plan)) = &response {
            let (again, lines) = head_of(&out).expect("a whole head of our own");
            let mut twice = Vec::new();
            let plan_again = read_response(again, lines, |line, fields| put_response(&mut twice, line, fields, &asked));
            assert_eq!(
                plan_again.map(|plan| plan.map(|plan| (plan.body, plan.status))),
                Ok(Ok((plan.body, plan.status)))
            );
        }
        let response = match response {
            Ok(Ok(plan)) => Shape::of(&(plan.persists, plan.becomes_tunnel)),
            Ok(Err(why)) => Shape::said(&why),
            Err(bad) => Shape::said(&words(bad)),
        };
        Shape::of(&spoken).and([request, response])
    });
}
