//! Frames: a 32-bit big-endian length, then that many bytes of JSON.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest frame that either side sends or reads, in bytes of JSON. A GC with the attachments of 1,000 pods
/// takes a quarter of it.
pub const FRAME_LIMIT: usize = 1 << 20;

/// A frame that cannot be sent or understood.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The frame is longer than its socket allows: [`FRAME_LIMIT`] on the plugins' sockets.
    #[error("a frame of {length} bytes is over the limit of {limit}; the peer does not speak this protocol")]
    TooLong {
        /// Its length in bytes, or that which is announced.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// The peer closed in the middle of a frame, or before one.
    #[error("the connection closed before a whole frame had come")]
    Closed,
    /// The socket failed, or its deadline passed.
    #[error("the socket failed")]
    Socket(#[source] io::Error),
    /// The bytes are not the JSON of the message that was expected.
    #[error("the frame does not hold the expected message")]
    Json(#[source] serde_json::Error),
}

/// The frame of `message`, length included.
///
/// # Errors
/// [`FrameError::TooLong`] when its JSON is over [`FRAME_LIMIT`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    encode_within(message, FRAME_LIMIT)
}

/// The frame of `message` for a socket with another limit.
///
/// # Errors
/// [`FrameError::TooLong`] when its JSON is over `limit`.
pub fn encode_within<T: Serialize>(message: &T, limit: usize) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message).map_err(FrameError::Json)?;
    let length = frame.len() - 4;
    match u32::try_from(length) {
        Ok(prefix) if length <= limit => {
            frame.splice(..4, prefix.to_be_bytes());
            Ok(frame)
        }
        _ => Err(FrameError::TooLong { length, limit }),
    }
}

/// The length that a frame's first four bytes announce.
///
/// # Errors
/// [`FrameError::TooLong`] when it is over [`FRAME_LIMIT`]; nothing has been allocated by then.
pub const fn frame_length(prefix: [u8; 4]) -> Result<usize, FrameError> {
    frame_length_within(prefix, FRAME_LIMIT)
}

/// The same, on a socket with another limit.
///
/// # Errors
/// [`FrameError::TooLong`] when it is over `limit`.
pub const fn frame_length_within(prefix: [u8; 4], limit: usize) -> Result<usize, FrameError> {
    let length = u32::from_be_bytes(prefix) as usize;
    if length <= limit { Ok(length) } else { Err(FrameError::TooLong { length, limit }) }
}

/// Reads the message in a frame's body.
///
/// # Errors
/// [`FrameError::Json`].
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    serde_json::from_slice(body).map_err(FrameError::Json)
}

/// Writes one frame to a blocking socket.
///
/// # Errors
/// [`FrameError::TooLong`], or [`FrameError::Socket`] when the socket's own time limit passes.
pub fn write_frame<T: Serialize>(socket: &mut impl Write, message: &T) -> Result<(), FrameError> {
    socket.write_all(&encode(message)?).map_err(FrameError::Socket)
}

/// Reads one frame from a blocking socket.
///
/// # Errors
/// Any [`FrameError`].
pub fn read_frame<T: DeserializeOwned>(socket: &mut impl Read) -> Result<T, FrameError> {
    let mut prefix = [0; 4];
    read_exact(socket, &mut prefix)?;
    let mut body = vec![0; frame_length(prefix)?];
    read_exact(socket, &mut body)?;
    decode(&body)
}

fn read_exact(socket: &mut impl Read, buffer: &mut [u8]) -> Result<(), FrameError> {
    socket.read_exact(buffer).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => FrameError::Closed,
        _ => FrameError::Socket(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_announced_length_over_the_limit_is_refused_before_it_is_allocated() {
        let mut socket: &[u8] = &[0xff, 0xff, 0xff, 0xff, b'{'];
        let error = read_frame::<serde_json::Value>(&mut socket).unwrap_err();
        assert!(matches!(error, FrameError::TooLong { length, .. } if length == u32::MAX as usize), "{error}");
    }

    #[test]
    fn a_message_over_the_limit_is_not_sent() {
        assert!(matches!(encode(&"x".repeat(FRAME_LIMIT)), Err(FrameError::TooLong { .. })));
    }

    proptest! {
        #[test]
        fn frames_round_trip(text in ".{0,200}") {
            let frame = encode(&text).unwrap();
            prop_assert_eq!(read_frame::<String>(&mut frame.as_slice()).unwrap(), text);
        }

        #[test]
        fn a_cut_frame_is_closed_and_never_a_message(text in ".{1,50}", cut in 0usize..1000) {
            let frame = encode(&text).unwrap();
            let cut = cut % frame.len();
            prop_assert!(matches!(read_frame::<String>(&mut &frame[..cut]), Err(FrameError::Closed)));
        }

        #[test]
        fn garbage_is_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            // Only its not panicking is of interest: by chance the bytes may be a frame.
            drop(read_frame::<super::super::Request>(&mut bytes.as_slice()));
        }
    }
}
