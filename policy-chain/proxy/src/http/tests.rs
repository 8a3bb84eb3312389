use super::*;

#[test]
fn what_is_spoken_is_told_by_the_first_line() {
    for (octets, expected) in [
        (&b""[..], Speaks::Unclear),
        (b"G", Speaks::Unclear),
        (b"GET / HTTP/1.1", Speaks::Unclear),
        (b"GET / HTTP/1.1\r\n", Speaks::Http1),
        (b"GET / HTTP/1.0\n", Speaks::Http1),
        (b"\r", Speaks::Unclear),
        (b"\r\nGET / HTTP/1.1\r\n", Speaks::Http1),
        (b"P", Speaks::Unclear),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", Speaks::Unclear),
        (PREFACE, Speaks::Http2),
        (b"PRI * HTTP/2.1\r\n", Speaks::Other),
        (b"PROPFIND / HTTP/1.1\r\n", Speaks::Http1),
        (b"\x16\x03\x01", Speaks::Tls),
        (b"PING\r\n", Speaks::Other),
        (b"EHLO a b\r\n", Speaks::Other),
        (b"*1\r\n$4\r\nPING\r\n", Speaks::Other),
        (b"\0\0\0\x08\x04\xd2\x16\x2f", Speaks::Other),
        (b"GET\x01", Speaks::Other),
    ] {
        assert_eq!(speaks(octets), expected, "{}", octets.escape_ascii());
    }
}
