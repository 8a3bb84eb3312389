//! Chunked bodies (RFC 9112, 7.1).
//!
//! Chunks whose size line has one spelling go on as they stand, without a copy; other size lines are written anew, without
//! extensions and needless zeros. What a lenient reader could take for another size is refused.

/// Longest size line, its extensions included.
const SIZE_LINE: usize = 256;
/// Most octets of trailers.
const TRAILERS: usize = 8 << 10;

/// Where in a chunked body one is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    /// At a size line.
    #[default]
    Size,
    /// In a chunk, with so many octets to come.
    Data(u64),
    /// At the line's end after a chunk.
    DataEnd,
    /// After the last.
    Done,
}

/// A reader of a chunked body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Chunks {
    state: State,
    /// Whether only the content goes on: to a client of HTTP/1.0.
    strip: bool,
}

/// What a reader has understood of its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// So many octets from its start go on as they stand; `content` of them are content.
    pub(crate) raw: usize,
    /// Content among them.
    pub(crate) content: u64,
    /// What comes then.
    pub(crate) then: Then,
}

/// What comes after a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// More input is needed.
    More,
    /// So many octets do not go on.
    Skip(usize),
    /// So many octets are a size line that says `size` and is written anew.
    Line {
        /// Octets.
        skip: usize,
        /// Size.
        size: u64,
    },
    /// The last chunk and the trailers: `line` octets of its size line, then a section of `trailers` octets.
    Last {
        /// Octets of the size line.
        line: usize,
        /// Octets of the trailers, the empty line with them.
        trailers: usize,
    },
    /// The body has ended, and its end was part of the run.
    End,
}

impl Chunks {
    /// One whose content alone goes on.
    pub(crate) const fn stripped() -> Self {
        Self { state: State::Size, strip: true }
    }

    /// Whether the body has ended.
    pub(crate) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether only the content goes on.
    pub(crate) const fn is_stripped(&self) -> bool {
        self.strip
    }

    /// Reads on.
    ///
    /// # Errors
    /// The body is malformed.
    pub(crate) fn advance(&mut self, input: &[u8]) -> Result<Run, &'static str> {
        let (mut at, mut content) = (0, 0);
        let run = |raw, content, then| Ok(Run { raw, content, then });
        loop {
            let rest = input.get(at..).unwrap_or_default();
            match self.state {
                State::Done => return run(at, content, Then::End),
                State::Size => {
                    let Some(line) = size_line(rest)? else { return run(at, content, Then::More) };
                    if line.size == 0 {
                        let after = rest.get(line.octets..).unwrap_or_default();
                        let Some(trailers) = trailers(after)? else { return run(at, content, Then::More) };
                        self.state = State::Done;
                        if trailers == 2 && line.plain && !self.strip {
                            return run(at + line.octets + 2, content, Then::End);
                        }
                        return run(at, content, Then::Last { line: line.octets, trailers });
                    }
                    self.state = State::Data(line.size);
                    if self.strip {
                        return run(at, content, Then::Skip(line.octets));
                    }
                    if !line.plain {
                        return run(at, content, Then::Line { skip: line.octets, size: line.size });
                    }
                    at += line.octets;
                }
                State::Data(left) => {
                    let take = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                    at += take;
                    content += take as u64;
                    let left = left - take as u64;
                    if left > 0 {
                        self.state = State::Data(left);
                        return run(at, content, Then::More);
                    }
                    self.state = State::DataEnd;
                }
                State::DataEnd => {
                    match rest {
                        [] | [b'\r'] => return run(at, content, Then::More),
                        [b'\r', b'\n', ..] => {}
                        _ => return Err("a chunk is longer than its size"),
                    }
                    self.state = State::Size;
                    if self.strip {
                        return run(at, content, Then::Skip(2));
                    }
                    at += 2;
                }
            }
        }
    }
}

/// A size line.
struct SizeLine {
    octets: usize,
    size: u64,
    /// It has one spelling: no extension, no zero in front.
    plain: bool,
}

fn size_line(input: &[u8]) -> Result<Option<SizeLine>, &'static str> {
    const TOO_LONG: &str = "a chunk's size line is too long";
    let mut size: u64 = 0;
    let mut digits = 0;
    for octet in input.iter().take(17) {
        let Some(digit) = char::from(*octet).to_digit(16) else { break };
        digits += 1;
        size = size << 4 | u64::from(digit);
    }
    // 16 digits would be a size that signed readers take for a negative one.
    if digits > 15 {
        return Err("a chunk's size is too large");
    }
    let rest = input.get(digits..).unwrap_or_default();
    if digits == 0 && !rest.is_empty() {
        return Err("a chunk's size is no number");
    }
    let plain = digits == 1 || input.first() != Some(&b'0');
    match rest {
        [] | [b'\r'] => return Ok(None),
        [b'\r', b'\n', ..] => return Ok(Some(SizeLine { octets: digits + 2, size, plain })),
        [b';', ..] => {}
        _ => return Err("a chunk's size is followed by something that is no extension"),
    }
    let Some(end) = rest.iter().take(SIZE_LINE).position(|octet| *octet < 0x20 && *octet != b'\t' || *octet == 0x7f)
    else {
        return if rest.len() >= SIZE_LINE { Err(TOO_LONG) } else { Ok(None) };
    };
    match rest.get(end..).unwrap_or_default() {
        [b'\r'] => Ok(None),
        [b'\r', b'\n', ..] => Ok(Some(SizeLine { octets: digits + end + 2, size, plain: false })),
        _ => Err("a chunk's extension has a control character"),
    }
}

/// Length of the trailers with the empty line after them.
fn trailers(input: &[u8]) -> Result<Option<usize>, &'static str> {
    for end in memchr::memchr_iter(b'\n', input.get(..TRAILERS).unwrap_or(input)) {
        let lines = input.get(..=end).unwrap_or_default();
        if !lines.ends_with(b"\r\n") {
            return Err("a line of the trailers ends in a bare line feed");
        }
        if end == 1 || lines.ends_with(b"\r\n\r\n") {
            return Ok(Some(end + 1));
        }
    }
    if input.len() >= TRAILERS { Err("the trailers are too long") } else { Ok(None) }
}

#[cfg(test)]
mod tests;
