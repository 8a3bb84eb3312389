use super::*;

#[test]
fn the_end_is_found_however_the_octets_come() {
    let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nrest";
    for first in 0..head.len() {
        let mut scan = Scan::default();
        let early = scan.find_end(&head[..first]).unwrap();
        assert_eq!(early, (first >= 27).then_some(27), "{first}");
        if early.is_none() {
            assert_eq!(scan.find_end(head), Ok(Some(27)), "{first}");
            assert_eq!(scan.lines(), 3);
        }
    }
    assert!(Scan::default().find_end(b"GET / HTTP/1.1\n").is_err());
}

#[test]
fn a_head_is_read_whole_or_not_at_all() {
    let read = |head: &str| read_request(head.as_bytes(), 3, |line, fields| (line.version, fields.len()));
    assert_eq!(read("GET / HTTP/1.1\r\nA: b\r\n\r\n"), Ok((Version::Http11, 1)));
    assert_eq!(read("GET / HTTP/1.0\r\n\r\n"), Ok((Version::Http10, 0)));
    for head in ["GET / HTTP/1.1\r\nA: b\r\n", "GET / HTTP/1.1\r\n\r\nA: b\r\n\r\n", "\r\n", "GET / HTTP/3.0\r\n\r\n"] {
        assert!(matches!(read(head), Err(BadHead::Malformed(_))), "{head:?}");
    }
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(513));
    assert_eq!(read_request(many.as_bytes(), 515, |_, _| ()), Err(BadHead::Fields));
}

#[test]
fn numbers_are_written_in_full() {
    for number in [0, 7, 10, 1_234_567_890, u64::MAX] {
        let mut out = Vec::new();
        put_number(&mut out, number);
        assert_eq!(String::from_utf8(out).unwrap(), number.to_string());
    }
}
