use proptest::prelude::*;

use super::*;

/// A message, put together octet by octet.
pub(in crate::dns) struct Build(Vec<u8>);

pub(in crate::dns) fn name(text: &str) -> Vec<u8> {
    let mut wire = Vec::new();
    for label in text.split('.').filter(|label| !label.is_empty()) {
        wire.push(u8::try_from(label.len()).unwrap());
        wire.extend_from_slice(label.as_bytes());
    }
    wire.push(0);
    wire
}

impl Build {
    pub(in crate::dns) fn new(id: u16, flags: u16, counts: [u16; 4]) -> Self {
        let fields = [id, flags].into_iter().chain(counts);
        Self(fields.flat_map(u16::to_be_bytes).collect())
    }

    pub(in crate::dns) fn raw(mut self, octets: &[u8]) -> Self {
        self.0.extend_from_slice(octets);
        self
    }

    pub(in crate::dns) fn question(self, of: &str, qtype: u16) -> Self {
        self.raw(&name(of)).raw(&qtype.to_be_bytes()).raw(&CLASS_IN.to_be_bytes())
    }

    pub(in crate::dns) fn record(self, owner: &[u8], kind: u16, ttl: u32, data: &[u8]) -> Self {
        let length = u16::try_from(data.len()).unwrap();
        let head: Vec<u8> = [kind, CLASS_IN].into_iter().flat_map(u16::to_be_bytes).collect();
        self.raw(owner).raw(&head).raw(&ttl.to_be_bytes()).raw(&length.to_be_bytes()).raw(data)
    }

    pub(in crate::dns) fn opt(self, size: u16, ttl: u32) -> Self {
        let head: Vec<u8> = [TYPE_OPT, size].into_iter().flat_map(u16::to_be_bytes).collect();
        self.raw(&[0]).raw(&head).raw(&ttl.to_be_bytes()).raw(&[0, 0])
    }

    pub(in crate::dns) fn done(self) -> Vec<u8> {
        self.0
    }
}

pub(in crate::dns) fn query(id: u16, of: &str, qtype: u16) -> Vec<u8> {
    Build::new(id, RECURSION_DESIRED, [1, 0, 0, 0]).question(of, qtype).done()
}

/// A pointer to the name in the question.
pub(in crate::dns) const POINTER: [u8; 2] = [0xc0, 12];

#[test]
fn a_query_is_one_question() {
    let message = query(7, "wWw.Example.com", 1);
    let read = Query::read(&message).unwrap();
    assert_eq!((read.id, read.qtype), (7, 1));
    assert_eq!(read.name.as_ref().unwrap().as_str(), "www.example.com");
    assert_eq!(read.question, &message[HEADER..]);
    let bad = Err(NoQuery::Refuse(rcode::FORMAT_ERROR));
    let none = Build::new(7, 0, [0, 0, 0, 0]).done();
    let two = Build::new(7, 0, [2, 0, 0, 0]).question("a.b", 1).question("c.d", 1).done();
    let answered = Build::new(7, 0, [1, 1, 0, 0]).question("a.b", 1).record(&POINTER, 1, 1, &[1; 4]).done();
    let with_authority = Build::new(7, 0, [1, 0, 1, 0]).question("a.b", 1).record(&POINTER, 6, 1, &[]).done();
    let behind = [query(7, "a.b", 1), vec![0]].concat();
    let two_opts = Build::new(7, 0, [1, 0, 0, 2]).question("a.b", 1).opt(512, 0).opt(512, 0).done();
    let pointing = Build::new(7, 0, [1, 0, 0, 0]).raw(&[0xc0, 0, 0, 1, 0, 1]).done();
    for message in [none, two, answered, with_authority, behind, two_opts, pointing] {
        assert_eq!(Query::read(&message), bad, "{message:?}");
    }
    let whole = query(7, "a.b", 1);
    for length in HEADER..whole.len() {
        assert_eq!(Query::read(&whole[..length]), bad);
    }
    assert_eq!(Query::read(&whole[..HEADER - 1]), Err(NoQuery::Silence));
    assert_eq!(Query::read(&Build::new(7, RESPONSE, [1, 0, 0, 0]).question("a.b", 1).done()), Err(NoQuery::Silence));
    let update = Build::new(7, 5 << 11, [1, 0, 0, 0]).question("a.b", 6).done();
    assert_eq!(Query::read(&update), Err(NoQuery::Refuse(rcode::NOT_IMPLEMENTED)));
    let transfer = Build::new(7, 0, [1, 0, 1, 0]).question("a.b", TYPE_IXFR).record(&POINTER, 6, 1, &[]).done();
    assert!(Query::read(&transfer).unwrap().is_transfer());
}

#[test]
fn names_that_no_rule_can_mean_are_none() {
    for label in [b"a b".as_slice(), b"a.b", b"\xff", b"a\\b", b"\0"] {
        let length = u8::try_from(label.len()).unwrap();
        let message = Build::new(1, 0, [1, 0, 0, 0]).raw(&[length]).raw(label).raw(&[0, 0, 1, 0, 1]).done();
        assert_eq!(Query::read(&message).unwrap().name, None, "{label:?}");
    }
    assert_eq!(Query::read(&query(1, "", 2)).unwrap().name, Some(Name::root()));
}

#[test]
fn a_refusal_repeats_the_question_and_edns() {
    let message = Build::new(0x1234, RECURSION_DESIRED | CHECKING_DISABLED, [1, 0, 0, 1])
        .question("eXample.Com", 28)
        .opt(4096, 0x0000_8000)
        .done();
    let refusal = Query::read(&message).unwrap().refusal(rcode::REFUSED);
    let expected = Build::new(0x1234, 0x8115, [1, 0, 0, 1]).question("eXample.Com", 28).opt(1232, 0x0000_8000).done();
    assert_eq!(refusal, expected);
    let without = Query::read(&query(9, "a.b", 1)).unwrap().refusal(rcode::NAME_ERROR);
    assert_eq!(without, Build::new(9, 0x8103, [1, 0, 0, 0]).question("a.b", 1).done());
    let bare = bare_refusal(&[0, 9, 1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 7], 1).unwrap();
    assert_eq!(bare, [0, 9, 0x81, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bare_refusal(&[0, 9], 1), None);
}

fn addresses(message: &[u8]) -> Option<Addresses> {
    Answer::read(message)?.addresses(message)
}

#[test]
fn addresses_are_those_of_the_name_that_was_asked() {
    let other = name("other.example.com");
    let message = Build::new(1, RESPONSE, [1, 4, 0, 0])
        .question("Example.com", 1)
        .record(&POINTER, 1, 60, &[192, 0, 2, 1])
        .record(&other, 1, 60, &[192, 0, 2, 2])
        .record(&name("EXAMPLE.COM"), 1, 30, &[192, 0, 2, 3])
        .record(&POINTER, 16, 1, b"\x03txt")
        .done();
    let read = addresses(&message).unwrap();
    assert_eq!(read.addresses, ["192.0.2.1".parse::<IpAddr>().unwrap(), "192.0.2.3".parse().unwrap()]);
    assert_eq!(read.ttl, 30);
}

/// What stands beside the answer is no answer.
#[test]
fn addresses_of_other_sections_are_not_learned() {
    let message = Build::new(1, RESPONSE, [1, 0, 1, 1])
        .question("example.com", 1)
        .record(&POINTER, 1, 60, &[192, 0, 2, 1])
        .record(&POINTER, 1, 60, &[192, 0, 2, 2])
        .done();
    assert_eq!(addresses(&message).unwrap().addresses, Vec::<IpAddr>::new());
}

#[test]
fn aliases_are_followed_in_whatever_order_they_come() {
    let message = Build::new(1, RESPONSE, [1, 4, 0, 0])
        .question("www.example.com", 28)
        .record(&name("c.net"), 28, 500, &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
        .record(&name("b.net"), 5, 20, &name("C.net"))
        .record(&POINTER, 5, 300, &name("b.net"))
        .record(&name("b.org"), 28, 1, &[0; 16])
        .done();
    let read = addresses(&message).unwrap();
    assert_eq!(read.addresses, ["2001:db8::1".parse::<IpAddr>().unwrap()]);
    assert_eq!(read.ttl, 20);
    let circle = Build::new(1, RESPONSE, [1, 2, 0, 0])
        .question("a.net", 1)
        .record(&name("a.net"), 5, 1, &name("b.net"))
        .record(&name("b.net"), 5, 1, &name("a.net"))
        .done();
    assert_eq!(addresses(&circle).unwrap().addresses, Vec::<IpAddr>::new());
}

#[test]
fn a_mapped_address_is_the_address_it_maps() {
    let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1];
    let message = Build::new(1, RESPONSE, [1, 1, 0, 0]).question("a.net", 28).record(&POINTER, 28, 1, &mapped).done();
    assert_eq!(addresses(&message).unwrap().addresses, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
}

#[test]
fn the_code_of_edns_is_part_of_the_response_code() {
    let message = Build::new(1, RESPONSE, [1, 0, 0, 1]).question("a.net", 1).opt(512, 0x0100_0000).done();
    assert_eq!(addresses(&message).unwrap().rcode, 16, "BADVERS");
}

#[test]
fn a_ttl_that_would_be_negative_is_zero() {
    let message =
        Build::new(1, RESPONSE, [1, 1, 0, 0]).question("a.net", 1).record(&POINTER, 1, 0x8000_0001, &[1; 4]).done();
    assert_eq!(addresses(&message).unwrap().ttl, 0);
}

#[test]
fn pointers_that_do_not_go_back_lead_nowhere() {
    let owner = u8::try_from(query(1, "a.example", 1).len()).unwrap();
    for pointer in [[0xc0, owner], [0xc0, owner + 1], [0xc0, owner + 2], [0xff, 0xff]] {
        let message =
            Build::new(1, RESPONSE, [1, 1, 0, 0]).question("a.example", 1).record(&pointer, 1, 1, &[1; 4]).done();
        assert_eq!(addresses(&message), None, "{pointer:?}");
    }
}

/// GHSA-9m5p-c77c-f9j7: an answer that a server had made for it ended the agent. Each way in which an answer can be wrong at
/// one place: cut, with another octet anywhere, with counts of records that are not there.
#[test]
fn cve_2025_23028_no_answer_of_a_server_ends_the_process() {
    let whole = Build::new(1, RESPONSE, [1, 4, 1, 1])
        .question("www.example.com", 1)
        .record(&POINTER, 5, 60, &name("b.example.net"))
        .record(&name("b.example.net"), 1, 60, &[192, 0, 2, 1])
        .record(&name("b.example.net"), 28, 60, &[0xfd; 16])
        .record(&POINTER, 65, 60, &[0, 1, 0])
        .record(&[0], 2, 60, &POINTER)
        .opt(512, 0)
        .done();
    assert_eq!(addresses(&whole).unwrap().addresses.len(), 2);
    let read = |message: &[u8]| {
        if let Some(found) = addresses(message) {
            assert!(found.addresses.len() <= 2, "{message:?}");
        }
        drop(Query::read(message));
        drop(bare_refusal(message, rcode::REFUSED));
    };
    (0..whole.len()).for_each(|length| read(&whole[..length]));
    for at in 0..whole.len() {
        for octet in 0..=u8::MAX {
            let mut message = whole.clone();
            message[at] = octet;
            read(&message);
        }
    }
    for counts in
        [[0xffff; 4], [1, 0xffff, 0, 0], [1, 0, 0xffff, 0], [1, 0, 0, 0xffff], [0, 1, 0, 0], [0xffff, 0, 0, 0]]
    {
        read(&Build::new(1, RESPONSE, counts).raw(&whole[HEADER..]).done());
        read(&Build::new(1, RESPONSE, counts).done());
    }
}

#[test]
fn questions_are_compared_without_case_and_types_with_it() {
    let question = |of: &str, qtype| query(1, of, qtype).split_off(HEADER);
    assert!(same_question(&question("a.B", 1), &question("A.b", 1)));
    assert!(!same_question(&question("a.b", 1), &question("a.c", 1)));
    // Types 'a' and 'A' are two.
    assert!(!same_question(&question("a.b", 0x61), &question("a.b", 0x41)));
    assert!(!same_question(&[], &[]));
}

fn some_name() -> impl Strategy<Value = String> {
    prop::collection::vec("[a-zA-Z0-9_-]{1,12}", 0..5).prop_map(|labels| labels.join("."))
}

/// A message as servers make them.
fn some_answer() -> impl Strategy<Value = Vec<u8>> {
    let kinds = prop::sample::select(vec![1_u16, 5, 28, 16]);
    let record = (some_name(), kinds, any::<u32>(), some_name(), any::<[u8; 16]>());
    let records = prop::collection::vec(record, 0..8);
    (any::<u16>(), some_name(), records, 0..3_u16).prop_map(|(id, asked, records, more)| {
        let count = u16::try_from(records.len()).unwrap();
        let counts = [1, count.saturating_sub(more), 0, count.min(more)];
        let mut message = Build::new(id, RESPONSE, counts).question(&asked, 1);
        for (owner, kind, ttl, target, data) in records {
            let owner = if owner.len() % 2 == 0 { POINTER.to_vec() } else { name(&owner) };
            message = match kind {
                1 => message.record(&owner, kind, ttl, &data[..4]),
                5 => message.record(&owner, kind, ttl, &name(&target)),
                28 => message.record(&owner, kind, ttl, &data),
                _ => message.record(&owner, kind, ttl, b"\x03txt"),
            };
        }
        message.done()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    /// Whatever comes, it is read to an end, and nothing is read that is not there.
    #[test]
    fn no_message_panics(
        mut message in some_answer(),
        changes in prop::collection::vec((any::<u16>(), any::<u8>()), 0..12),
        cut in any::<u16>(),
    ) {
        let length = message.len();
        for (at, to) in changes {
            message[usize::from(at) % length] = to;
        }
        message.truncate(length - usize::from(cut) % (length / 4));
        if let Some(found) = addresses(&message) {
            prop_assert!(found.addresses.len() <= MAX_RECORDS);
        }
        if let Ok(query) = Query::read(&message) {
            prop_assert!(HEADER + query.question.len() <= message.len());
            let refusal = query.refusal(rcode::REFUSED);
            prop_assert!(Answer::read(&refusal).is_some());
        }
        prop_assert!(bare_refusal(&message, 1).is_none_or(|refusal| refusal.len() == HEADER));
    }

    #[test]
    fn no_octets_panic(message in prop::collection::vec(any::<u8>(), 0..600)) {
        if let Ok(query) = Query::read(&message) {
            prop_assert!(!query.question.is_empty());
        }
        if let Some(found) = addresses(&message) {
            prop_assert!(found.addresses.is_sorted());
        }
    }

    #[test]
    fn a_query_is_answered_by_its_refusal(id in any::<u16>(), of in some_name(), qtype in any::<u16>()) {
        let message = query(id, &of, qtype);
        let read = Query::read(&message).unwrap();
        let expected = if of.is_empty() { ".".to_owned() } else { of.to_ascii_lowercase() };
        prop_assert_eq!(read.name.as_ref().map(Name::as_str), Some(expected.as_str()));
        let refusal = read.refusal(rcode::REFUSED);
        let answer = Answer::read(&refusal).unwrap();
        prop_assert_eq!((answer.id, answer.rcode, answer.question), (id, rcode::REFUSED, Some(read.question)));
    }
}
