//! Hostile messages, from pods and from servers.

use sluice_fuzz::{Grammar, Shape, Target};

use super::wire::{Answer, NoQuery, Query, bare_refusal, failure, same_question};

/// An answer of ours is one, to that question.
fn answers(message: &[u8], id: u16, question: &[u8]) {
    let answer = Answer::read(message).expect("an answer of our own");
    assert_eq!(answer.id, id);
    assert!(answer.question.is_some_and(|ours| same_question(ours, question)), "of another question");
    assert!(answer.addresses(message).is_some_and(|told| told.addresses.is_empty()));
}

#[test]
fn fuzz_dns() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/dns");
    let words = &[
        "\u{3}www\u{7}example\u{3}com\0",
        "\u{0}\u{29}",
        "\u{0}\u{1}\u{0}\u{1}",
        "\u{0}\u{1c}\u{0}\u{1}",
        "\u{0}\u{5}\u{0}\u{1}",
    ];
    Target { name: "dns", corpus: corpus.as_ref(), grammar: Grammar::Octets, words }.run(|octets| {
        let query = Query::read(octets);
        match &query {
            Ok(query) => {
                answers(&query.refusal(5), query.id, query.question);
                answers(&failure(query.id, query.question), query.id, query.question);
                assert!(query.refusal(5).len() <= octets.len() + 11, "an answer that amplifies");
            }
            Err(NoQuery::Refuse(rcode)) => {
                let refusal = bare_refusal(octets, *rcode).expect("it has a header");
                assert_eq!(refusal.len(), 12);
            }
            Err(NoQuery::Silence) => {}
        }
        let answer = Answer::read(octets);
        let addresses = answer.and_then(|answer| answer.addresses(octets));
        if let Some(told) = &addresses {
            assert!(told.addresses.len() * 16 <= octets.len(), "more addresses than the message has room for");
            assert!(told.addresses.is_sorted() && (told.ttl == 0 || !told.addresses.is_empty()));
        }
        let query = query
            .map(|query| (query.name.is_some(), query.refusal(5).len() - query.question.len(), query.is_transfer()));
        let answer = answer.map(|answer| (answer.question.is_some(), answer.truncated));
        Shape::of(&(query, answer, addresses.map(|told| (told.addresses.len().min(3), told.ttl > 0))))
    });
}
