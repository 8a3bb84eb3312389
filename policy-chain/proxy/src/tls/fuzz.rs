//! Hostile first octets.

use sluice_fuzz::{Grammar, Shape, Target};
use sluice_policy_core::l7::sni::server_name;

use super::hello::{MOST_READ, read};

#[test]
fn fuzz_client_hello() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/hello");
    let words = &["\u{16}\u{3}\u{1}", "www.example.com", "xn--", "a..b", "*.example", "EXAMPLE.com."];
    Target { name: "client-hello", corpus: corpus.as_ref(), grammar: Grammar::Octets, words }.run(|octets| {
        let whole = read(octets);
        // What was decided on fewer octets is not decided otherwise on more.
        let mut decided = None;
        for length in [octets.len() / 4, octets.len() / 2, octets.len().saturating_sub(1), octets.len()] {
            let now = read(octets.get(..length).unwrap_or_default());
            match (&decided, &now) {
                (None, Ok(None)) => {}
                (None, _) => decided = Some(now),
                (Some(Err(_)), now) => assert!(now.is_err(), "refused, and then {now:?}"),
                (Some(before), now) => assert!(now == before || now.is_err(), "{before:?}, and then {now:?}"),
            }
        }
        if octets.len() > MOST_READ {
            assert!(!matches!(whole, Ok(None)), "more octets than are ever read do not decide it");
        }
        let name = match &whole {
            Ok(Some(hello)) => hello.server_name.as_deref().map(|name| server_name(name).map(drop)),
            _ => None,
        };
        match whole {
            Err(why) => Shape::said(&why),
            Ok(hello) => Shape::of(&(hello.map(|hello| hello.encrypted), name.map(|name| name.is_ok()))),
        }
    });
}
