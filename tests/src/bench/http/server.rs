//! The server: as little as answers can cost.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::spawn_local;

/// The target that is answered with [`LARGE_BYTES`], and by how many.
pub(super) const LARGE: &str = "/large";
pub(super) const LARGE_BYTES: usize = 1 << 20;
/// Octets of a request's head at most.
const HEAD: usize = 8192;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 4096;

/// The answers, whole.
#[derive(Debug)]
struct Answers {
    small: Box<[u8]>,
    last: Box<[u8]>,
    large: Box<[u8]>,
}

impl Answers {
    fn new() -> Self {
        let answer = |more: &str, body: &[u8]| {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n{more}\r\n", body.len());
            [head.as_bytes(), body].concat().into_boxed_slice()
        };
        Self {
            small: answer("", b"hello"),
            last: answer("connection: close\r\n", b"hello"),
            large: answer("", &vec![b'x'; LARGE_BYTES]),
        }
    }
}

/// Listens, and serves in the background for as long as the thread lives.
///
/// # Errors
/// The address cannot be had.
pub(super) async fn serve(address: SocketAddr) -> io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener = socket.listen(BACKLOG)?;
    let answers = Arc::new(Answers::new());
    drop(spawn_local(async move {
        loop {
            // A client that has gone before it was accepted.
            let Ok((stream, _)) = listener.accept().await else { continue };
            let answers = Arc::clone(&answers);
            // A client that has gone needs no answer.
            drop(spawn_local(async move { drop(connection(stream, &answers).await) }));
        }
    }));
    Ok(())
}

async fn connection(mut stream: TcpStream, answers: &Answers) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut room = vec![0; HEAD];
    let mut held = 0;
    loop {
        let count = stream.read(room.get_mut(held..).unwrap_or_default()).await?;
        if count == 0 {
            return Ok(());
        }
        held += count;
        let request = room.get(..held).unwrap_or_default();
        if !request.ends_with(b"\r\n\r\n") {
            continue;
        }
        if request.starts_with(b"GET /large") {
            stream.write_all(&answers.large).await?;
        } else if request.to_ascii_lowercase().windows(17).any(|part| part == b"connection: close") {
            return stream.write_all(&answers.last).await;
        } else {
            stream.write_all(&answers.small).await?;
        }
        held = 0;
    }
}
