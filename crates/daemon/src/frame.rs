//! Frames of `sluice_contract::rpc` on a socket that does not block.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sluice_contract::rpc::{FrameError, decode, encode_within, frame_length_within};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Reads one frame of at most `limit` bytes. A call that is dropped before its end leaves the stream in the middle of a frame.
///
/// # Errors
/// Any [`FrameError`].
pub async fn read<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin), limit: usize) -> Result<T, FrameError> {
    let mut prefix = [0; 4];
    match stream.read_exact(&mut prefix).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(FrameError::Closed),
        Err(error) => return Err(FrameError::Socket(error)),
    }
    let length = frame_length_within(prefix, limit)?;
    // Grows as bytes come, so that an announced length alone takes no memory.
    let mut body = Vec::with_capacity(length.min(4096));
    let take = u64::try_from(length).unwrap_or(u64::MAX);
    stream.take(take).read_to_end(&mut body).await.map_err(FrameError::Socket)?;
    if body.len() < length { Err(FrameError::Closed) } else { decode(&body) }
}

/// Writes one frame of at most `limit` bytes.
///
/// # Errors
/// [`FrameError::TooLong`], or the socket's error.
pub async fn write<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &T,
    limit: usize,
) -> Result<(), FrameError> {
    let frame = encode_within(message, limit)?;
    stream.write_all(&frame).await.map_err(FrameError::Socket)
}
