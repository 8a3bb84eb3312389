use super::*;

fn vector(octets: usize, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    [&length[length.len() - octets..], content].concat()
}

fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &vector(2, data)].concat()
}

fn sni(name: &[u8]) -> Vec<u8> {
    extension(0, &vector(2, &[&[0][..], &vector(2, name)].concat()))
}

/// A ClientHello's message with these extensions.
fn client_hello(extensions: &[u8]) -> Vec<u8> {
    let mut content = vec![3, 3];
    content.extend_from_slice(&[7; 32]);
    content.extend_from_slice(&vector(1, &[9; 32]));
    content.extend_from_slice(&vector(2, &[0x13, 1, 0x13, 2]));
    content.extend_from_slice(&vector(1, &[0]));
    content.extend_from_slice(&vector(2, extensions));
    [&[1][..], &vector(3, &content)].concat()
}

/// A message in records of so many octets.
fn records(message: &[u8], of: usize) -> Vec<u8> {
    message.chunks(of).flat_map(|part| [&[22, 3, 1][..], &vector(2, part)].concat()).collect()
}

fn named(name: &str) -> Hello {
    Hello { server_name: Some(name.as_bytes().into()), encrypted: false }
}

#[test]
fn the_name_is_read_however_the_octets_come() {
    let other = extension(43, &[2, 3, 4]);
    let message = client_hello(&[&other[..], &sni(b"shop.example"), &extension(16, b"\0\x03\x02h2")].concat());
    for of in [1, 3, 100, message.len()] {
        let octets = records(&message, of);
        for end in 0..octets.len() {
            assert_eq!(read(&octets[..end]), Ok(None), "{end} of {}", octets.len());
        }
        assert_eq!(read(&octets), Ok(Some(named("shop.example"))));
    }
}

#[test]
fn a_client_need_not_name_a_server() {
    let none = Hello { server_name: None, encrypted: false };
    assert_eq!(read(&records(&client_hello(&extension(43, &[2, 3, 4])), 9999)), Ok(Some(none.clone())));
    let mut bare = client_hello(&[]);
    bare.truncate(bare.len() - 2);
    let length = bare.len() - 4;
    bare[3] = u8::try_from(length).unwrap();
    assert_eq!(read(&records(&bare, 9999)), Ok(Some(none)), "TLS 1.2 without extensions");
}

#[test]
fn an_encrypted_part_is_seen() {
    let extensions = [sni(b"public.example"), extension(0xfe0d, &[0; 40])].concat();
    let hello = read(&records(&client_hello(&extensions), 9999)).unwrap().unwrap();
    assert!(hello.encrypted);
}

#[test]
fn what_has_two_readings_is_refused() {
    let mut trailing = client_hello(&sni(b"a.example"));
    trailing.push(0);
    let two_names = extension(0, &vector(2, &[&[0][..], &vector(2, b"a"), &[0], &vector(2, b"b")].concat()));
    let two_types = extension(0, &vector(2, &[&[1][..], &vector(2, b"a"), &[0], &vector(2, b"b")].concat()));
    let no_name = extension(0, &vector(2, &[&[0][..], &vector(2, b"")].concat()));
    let mut longer = sni(b"a.example");
    longer[3] += 1;
    longer.push(0);
    for (what, octets) in [
        ("after the message", records(&trailing, 9999)),
        ("two extensions", records(&client_hello(&[sni(b"a.example"), sni(b"b.example")].concat()), 9999)),
        ("two names", records(&client_hello(&two_names), 9999)),
        ("another type", records(&client_hello(&two_types), 9999)),
        ("no name", records(&client_hello(&no_name), 9999)),
        ("something after the list", records(&client_hello(&longer), 9999)),
        ("an extension cut off", records(&client_hello(&[0, 0, 0, 9, 1]), 9999)),
        ("an empty record", vec![22, 3, 1, 0, 0]),
        ("a long record", vec![22, 3, 1, 0x40, 1]),
        ("an alert first", vec![21, 3, 1, 0, 2, 2, 0]),
        ("another message", vec![22, 3, 1, 0, 4, 2]),
        ("SSL 2", vec![0x80, 0x2e, 1]),
        ("HTTP", b"GET / HTTP/1.1".to_vec()),
        ("a large one", vec![22, 3, 1, 0x40, 0, 1, 0, 0x80, 1]),
    ] {
        assert!(read(&octets).is_err(), "{what}");
    }
}

#[test]
fn a_message_of_another_type_between_records_is_refused() {
    let message = client_hello(&sni(b"a.example"));
    let mut octets = records(&message, 40);
    octets[45] = 23;
    assert!(read(&octets).is_err());
}

/// Whatever comes, it is read, waited for, or refused; and a name that is read stands in the octets.
#[test]
fn changed_octets_never_panic_nor_invent_a_name() {
    let whole = records(&client_hello(&[sni(b"shop.example"), extension(43, &[2, 3, 4])].concat()), 50);
    let mut state: u64 = 0x2545_f491_4f6c_dd1d;
    let mut below = |limit: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap() % limit
    };
    let cases = if std::env::var_os("SLUICE_TEST_ALL").is_some() { 2_000_000 } else { 50_000 };
    let mut named = 0;
    for _ in 0..cases {
        let mut octets = whole.clone();
        for _ in 0..=below(3) {
            let at = below(octets.len());
            match below(3) {
                0 => octets[at] = u8::try_from(below(256)).unwrap(),
                1 => octets.insert(at, u8::try_from(below(256)).unwrap()),
                _ => drop(octets.remove(at)),
            }
        }
        if let Ok(Some(Hello { server_name: Some(name), .. })) = read(&octets) {
            named += 1;
            let flat: Vec<u8> = octets.clone();
            let spread = name.iter().all(|octet| flat.contains(octet));
            assert!(spread && name.len() < 64, "{}", name.escape_ascii());
        }
    }
    assert!(named > cases / 100, "{named} of {cases} were read");
}
