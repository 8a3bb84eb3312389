use super::*;

/// What goes on of a body that comes in parts.
fn through(input: &[u8], parts: usize) -> Result<(String, u64), &'static str> {
    let mut chunks = Chunks::default();
    let (mut held, mut out, mut content) = (Vec::new(), Vec::new(), 0);
    for part in input.chunks(parts) {
        held.extend_from_slice(part);
        loop {
            let run = chunks.advance(&held)?;
            content += run.content;
            out.extend_from_slice(&held[..run.raw]);
            let skip = match run.then {
                Then::More | Then::End => 0,
                Then::Skip(skip) => skip,
                Then::Line { skip, size } => {
                    out.extend_from_slice(format!("{size:x}\r\n").as_bytes());
                    skip
                }
                Then::Last { line, trailers } => {
                    out.extend_from_slice(b"0\r\n");
                    let from = run.raw + line;
                    out.extend_from_slice(&held[from..from + trailers]);
                    line + trailers
                }
            };
            held.drain(..run.raw + skip);
            if run.then == Then::More || chunks.is_done() {
                break;
            }
        }
    }
    assert!(chunks.is_done(), "unfinished");
    assert!(held.is_empty(), "octets after the end were taken for it");
    Ok((String::from_utf8(out).unwrap(), content))
}

#[test]
fn it_goes_on_the_same_however_it_comes() {
    for (input, output, content) in [
        ("0\r\n\r\n", "0\r\n\r\n", 0),
        ("5\r\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n", 5),
        ("005;a\r\nhello\r\nA\r\n0123456789\r\n00\r\n\r\n", "5\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n", 15),
        ("1;a=\"b\"\r\nx\r\n0;z\r\nT: 1\r\nU: 2\r\n\r\n", "1\r\nx\r\n0\r\nT: 1\r\nU: 2\r\n\r\n", 1),
    ] {
        for parts in 1..=input.len() {
            assert_eq!(through(input.as_bytes(), parts), Ok((output.to_owned(), content)), "{input:?} by {parts}");
        }
    }
}

#[test]
fn size_lines_and_trailers_are_bounded() {
    for input in [format!("5;{}", "x".repeat(300)), format!("0\r\nX: {}", "y".repeat(9000)), "0".repeat(17)] {
        assert!(Chunks::default().advance(input.as_bytes()).is_err(), "{} octets", input.len());
    }
}

#[test]
fn sizes_are_what_every_reader_takes_them_for() {
    let size = |line: &str| size_line(line.as_bytes()).map(|line| line.map(|line| line.size));
    assert_eq!(size("fffffffffffffff\r\n"), Ok(Some(0xfff_ffff_ffff_ffff)));
    assert!(size("7fffffffffffffff\r\n").is_err(), "16 digits");
    for line in ["", "5", "5\r", "5;", "5;a\r"] {
        assert_eq!(size(line), Ok(None), "{line:?}");
    }
}
