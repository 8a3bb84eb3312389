//! HTTP/1.1: a server that tells what it was asked and by whom, and a client of one request.

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

use super::within;
use crate::http;

/// The port of the HTTP servers.
pub const HTTP_PORT: u16 = 8081;
/// The longest body of an answer that is read, in bytes.
const BODY: usize = 4096;

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The body.
    pub body: String,
}

/// Binds `address`, and returns once clients may come; the serving goes on, on this thread, until it ends. Every request is
/// answered with 200 and `METHOD PATH CLIENT-ADDRESS`.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve_in_background(address: SocketAddrV4) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    drop(tokio::task::spawn_local(http::serve(listener, answer)));
    Ok(())
}

async fn answer(request: Request<Incoming>, peer: SocketAddr) -> Option<Response<http::Body>> {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let text = format!("{} {path} {}\n", request.method(), peer.ip());
    Some(Response::new(Full::new(Bytes::from(text))))
}

/// Sends one request without a body, on a connection of its own.
///
/// # Errors
/// `TimedOut` after `limit`; `InvalidInput` for what is no method or path, `InvalidData` for what is no answer; else the
/// system's reason.
pub async fn get(to: SocketAddrV4, method: &str, path: &str, limit: Duration) -> io::Result<Answer> {
    let wrong = |error: String| io::Error::new(io::ErrorKind::InvalidInput, error);
    let invalid = |error: String| io::Error::new(io::ErrorKind::InvalidData, error);
    let method = Method::from_bytes(method.as_bytes()).map_err(|error| wrong(error.to_string()))?;
    let request =
        Request::builder().method(method).uri(path).header("host", to.to_string()).body(Empty::<Bytes>::new());
    let request = request.map_err(|error| wrong(error.to_string()))?;
    within(limit, async {
        let stream = TcpStream::connect(to).await?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| invalid(error.to_string()))?;
        // Takes the sender with it: the connection ends when it is dropped.
        let exchange = async move {
            let answer = sender.send_request(request).await.map_err(|error| invalid(error.to_string()))?;
            let status = answer.status().as_u16();
            let body = Limited::new(answer.into_body(), BODY).collect().await;
            let body = body.map_err(|error| invalid(error.to_string()))?.to_bytes();
            Ok(Answer { status, body: String::from_utf8_lossy(&body).into_owned() })
        };
        let (answer, _ended) = tokio::join!(exchange, connection);
        answer
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[tokio::test]
    async fn a_server_tells_what_it_was_asked() {
        let local = tokio::task::LocalSet::new();
        let address = SocketAddrV4::new(Ipv4Addr::new(127, 0, 7, 3), 40_703);
        local
            .run_until(async {
                serve_in_background(address).await.unwrap();
                let answer = get(address, "POST", "/public?a=1", Duration::from_secs(5)).await.unwrap();
                assert_eq!(answer, Answer { status: 200, body: "POST /public?a=1 127.0.0.1\n".into() });
                let nonsense = get(address, "GE T", "/", Duration::from_secs(5)).await.unwrap_err();
                assert_eq!(nonsense.kind(), io::ErrorKind::InvalidInput);
            })
            .await;
    }
}
