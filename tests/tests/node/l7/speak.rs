//! The protocols that are judged: for each a server that tells whom it sees, and a client that knows what a refusal looks
//! like.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper_util::rt::TokioIo;
use sluice_tests::directory::Directory;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{self, AlertDescription, ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// How long an exchange may take.
pub(super) const LIMIT: Duration = Duration::from_secs(10);
/// The example of RFC 6455, 1.3: what a client sends, and what its server answers.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// The first octet of a text frame that is whole, and of its mask.
const TEXT: u8 = 0x81;
const MASKED: u8 = 0x80;

/// What is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Speaks {
    Http1,
    Http2,
    Grpc,
    WebSocket,
    Tls,
}

/// What came of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// It was served to whom the server saw.
    Served(IpAddr),
    /// It was refused in the protocol's own words.
    Refused,
}

/// Certificates of the TLS servers, and how many requests came to servers that no rule lets pass.
#[derive(Debug, Clone)]
pub(super) struct Common {
    accept: Arc<ServerConfig>,
    connect: Arc<ClientConfig>,
    pub(super) strays: Arc<AtomicUsize>,
}

impl Common {
    pub(super) fn new() -> Self {
        let (certificate, key) = certificate();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let certificate = CertificateDer::from_pem_slice(&certificate).unwrap();
        let key = PrivateKeyDer::from_pem_slice(&key).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let accept = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let accept = accept.unwrap().with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
        let connect = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let connect = connect.unwrap().with_root_certificates(roots).with_no_client_auth();
        Self { accept: Arc::new(accept), connect: Arc::new(connect), strays: Arc::default() }
    }

    fn stray(&self) {
        self.strays.fetch_add(1, Ordering::Relaxed);
    }
}

/// A certificate of both names, which is its own authority, and its key; as PEM.
fn certificate() -> (Vec<u8>, Vec<u8>) {
    let directory = Directory::new("tls").unwrap();
    let settings = "[req]\ndistinguished_name = name\nx509_extensions = more\nprompt = no\n[name]\nCN = test\n\
                    [more]\nbasicConstraints = critical,CA:FALSE\nsubjectAltName = DNS:allowed.example, DNS:refused.example\n";
    directory.write("settings", settings).unwrap();
    let arguments = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -config settings -keyout key -out certificate";
    let made = Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(directory.path())
        .output()
        .expect("openssl is needed");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let [certificate, key] = ["certificate", "key"].map(|file| std::fs::read(directory.path().join(file)).unwrap());
    (certificate, key)
}

impl Speaks {
    pub(super) const ALL: [Self; 5] = [Self::Http1, Self::Http2, Self::Grpc, Self::WebSocket, Self::Tls];

    const fn index(self) -> u16 {
        match self {
            Self::Http1 => 0,
            Self::Http2 => 1,
            Self::Grpc => 2,
            Self::WebSocket => 3,
            Self::Tls => 4,
        }
    }

    /// Where its servers listen.
    pub(super) const fn port(self) -> u16 {
        8081 + self.index()
    }

    /// Which port a Service has for it, by its first one.
    pub(super) const fn after(self, first: u16) -> u16 {
        first + self.index()
    }

    /// The rule that lets `GET /public`, `/t.S/Allowed` and `allowed.example` pass.
    pub(super) fn rule(self) -> &'static str {
        match self {
            Self::Http1 | Self::Http2 | Self::WebSocket => "rules: {http: [{method: GET, path: /public}]}",
            Self::Grpc => "rules: {http: [{method: POST, path: /t.S/Allowed}]}",
            Self::Tls => "serverNames: [allowed.example]",
        }
    }

    /// Serves at an address, on the thread that calls it, from the moment at which this returns.
    pub(super) async fn serve(self, at: SocketAddr, common: Common) -> io::Result<()> {
        let listener = TcpListener::bind(at).await?;
        spawn_local(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                let common = common.clone();
                // A client that goes away takes its answer with it.
                spawn_local(async move { drop(timeout(self.answer(stream, peer.ip(), &common)).await) });
            }
        });
        Ok(())
    }

    async fn answer(self, stream: TcpStream, peer: IpAddr, common: &Common) -> Result<(), Error> {
        match self {
            Self::Http1 => {
                let service = hyper::service::service_fn(async |request: Request<hyper::body::Incoming>| {
                    if request.uri().path() != "/public" {
                        common.stray();
                    }
                    Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from(peer.to_string()))))
                });
                Ok(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await?)
            }
            Self::Http2 | Self::Grpc => {
                let mut server = h2::server::handshake(stream).await?;
                while let Some((request, mut respond)) = server.accept().await.transpose()? {
                    if !matches!(request.uri().path(), "/public" | "/t.S/Allowed") {
                        common.stray();
                    }
                    let text = peer.to_string();
                    if self == Self::Http2 {
                        respond.send_response(Response::new(()), false)?.send_data(text.into(), true)?;
                        continue;
                    }
                    let head = Response::builder().header("content-type", "application/grpc").body(())?;
                    let mut send = respond.send_response(head, false)?;
                    send.send_data(grpc(&text).into(), false)?;
                    send.send_trailers(http::HeaderMap::from_iter([("grpc-status".parse()?, "0".parse()?)]))?;
                }
                Ok(())
            }
            Self::WebSocket => {
                let mut stream = stream;
                let head = head(&mut stream).await?;
                if !head.starts_with("GET /public ") {
                    common.stray();
                }
                let answer = format!(
                    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                     Sec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
                );
                stream.write_all(answer.as_bytes()).await?;
                stream.write_all(&frame(peer.to_string().as_bytes(), None)).await?;
                let heard = unframe(&mut stream).await?;
                Ok(stream.write_all(&frame(&heard, None)).await?)
            }
            Self::Tls => {
                let mut tls = TlsAcceptor::from(Arc::clone(&common.accept)).accept(stream).await?;
                if tls.get_ref().1.server_name() != Some("allowed.example") {
                    common.stray();
                }
                tls.write_all(peer.to_string().as_bytes()).await?;
                Ok(tls.shutdown().await?)
            }
        }
    }

    /// Asks on a connection of its own, in the caller's namespace, for what rules let pass or for something else.
    pub(super) async fn ask(self, to: SocketAddr, allowed: bool, common: Common) -> Result<Said, String> {
        let asked = async {
            let stream = TcpStream::connect(to).await?;
            self.ask_on(stream, to, allowed, &common).await
        };
        timeout(asked).await.map_err(|error| {
            let mut text = error.to_string();
            let mut next = error.source();
            while let Some(error) = next {
                text = format!("{text}: {error}");
                next = error.source();
            }
            text
        })
    }

    async fn ask_on(self, stream: TcpStream, to: SocketAddr, allowed: bool, common: &Common) -> Result<Said, Error> {
        match self {
            Self::Http1 => {
                let path = if allowed { "/public" } else { "/private" };
                let request = Request::get(path).header("host", to.to_string()).body(Empty::<Bytes>::new())?;
                let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
                spawn_local(connection);
                let answer = sender.send_request(request).await?;
                let status = answer.status().as_u16();
                let body = answer.into_body().collect().await?.to_bytes();
                told(status, &String::from_utf8_lossy(&body))
            }
            Self::Http2 => {
                let path = if allowed { "/public" } else { "/private" };
                let request = Request::get(format!("http://{to}{path}")).body(())?;
                let (status, _, body, _) = ask_h2(stream, request, Bytes::new()).await?;
                told(status, &String::from_utf8_lossy(&body))
            }
            Self::Grpc => {
                let path = if allowed { "/t.S/Allowed" } else { "/t.S/Other" };
                let request = Request::post(format!("http://{to}{path}"));
                let request = request.header("content-type", "application/grpc").header("te", "trailers").body(())?;
                let (status, head, body, trailers) = ask_h2(stream, request, grpc("hello").into()).await?;
                let code = |map: &http::HeaderMap| map.get("grpc-status").map(|code| code.as_bytes().to_vec());
                match (status, code(&head), trailers.as_ref().and_then(code)) {
                    (200, None, Some(code)) if code == b"0" => {
                        let text = body.get(5..).map(String::from_utf8_lossy).unwrap_or_default();
                        Ok(Said::Served(text.parse()?))
                    }
                    (200, Some(code), None) if code == b"7" && body.is_empty() => {
                        let words = head.get("grpc-message").map(|words| words.as_bytes().to_vec());
                        if words.as_deref() == Some(b"Access denied") {
                            return Ok(Said::Refused);
                        }
                        Err(format!("status 7 says {words:?}").into())
                    }
                    other => Err(format!("{other:?} {body:?}").into()),
                }
            }
            Self::WebSocket => {
                let path = if allowed { "/public" } else { "/private" };
                let mut stream = stream;
                let request = format!(
                    "GET {path} HTTP/1.1\r\nHost: {to}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: \
                     {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
                );
                stream.write_all(request.as_bytes()).await?;
                let head = head(&mut stream).await?;
                if head.starts_with("HTTP/1.1 403 ") {
                    let mut body = [0; 15];
                    stream.read_exact(&mut body).await?;
                    return told(403, &String::from_utf8_lossy(&body));
                }
                if !head.starts_with("HTTP/1.1 101 ") || !head.contains(ACCEPT) {
                    return Err(head.into());
                }
                let seen = String::from_utf8(unframe(&mut stream).await?)?;
                stream.write_all(&frame(b"hello", Some([1, 2, 3, 4]))).await?;
                if unframe(&mut stream).await? != b"hello" {
                    return Err("the echo is another".into());
                }
                Ok(Said::Served(seen.parse()?))
            }
            Self::Tls => {
                let name = if allowed { "allowed.example" } else { "refused.example" };
                let name = ServerName::try_from(name)?;
                match TlsConnector::from(Arc::clone(&common.connect)).connect(name, stream).await {
                    Ok(mut tls) => {
                        let mut text = String::new();
                        tls.read_to_string(&mut text).await?;
                        Ok(Said::Served(text.parse()?))
                    }
                    Err(error) => match error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()) {
                        Some(rustls::Error::AlertReceived(AlertDescription::AccessDenied)) => Ok(Said::Refused),
                        _ => Err(error.into()),
                    },
                }
            }
        }
    }
}

type Error = Box<dyn std::error::Error + Send + Sync>;

async fn timeout<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(LIMIT, work).await.unwrap_or_else(|_| Err("no answer".into()))
}

/// What a status and a body mean.
fn told(status: u16, body: &str) -> Result<Said, Error> {
    match (status, body) {
        (200, body) => Ok(Said::Served(body.parse()?)),
        (403, "Access denied\r\n") => Ok(Said::Refused),
        _ => Err(format!("{status} {body:?}").into()),
    }
}

/// A message of gRPC: not compressed, and its length before it.
fn grpc(text: &str) -> Vec<u8> {
    [&[0][..], &u32::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat()
}

async fn ask_h2(
    stream: TcpStream,
    request: Request<()>,
    body: Bytes,
) -> Result<(u16, http::HeaderMap, Vec<u8>, Option<http::HeaderMap>), Error> {
    let (sender, connection) = h2::client::handshake(stream).await?;
    spawn_local(connection);
    let mut sender = sender.ready().await?;
    let empty = body.is_empty();
    let (response, mut send) = sender.send_request(request, empty)?;
    if !empty {
        // One that is refused is reset meanwhile; the answer says so.
        send.send_data(body, true).ok();
    }
    let (head, mut body) = response.await?.into_parts();
    let mut octets = Vec::new();
    while let Some(data) = body.data().await.transpose()? {
        body.flow_control().release_capacity(data.len())?;
        octets.extend(data);
    }
    Ok((head.status.as_u16(), head.headers, octets, body.trailers().await?))
}

/// Reads up to an empty line.
async fn head(stream: &mut TcpStream) -> io::Result<String> {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        text.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// A text frame of less than 126 octets (RFC 6455, 5.2).
fn frame(text: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let length = u8::try_from(text.len()).unwrap();
    match mask {
        None => [&[TEXT, length][..], text].concat(),
        Some(mask) => {
            let masked = text.iter().zip(mask.iter().cycle()).map(|(octet, mask)| octet ^ mask);
            [&[TEXT, length | MASKED][..], &mask, &masked.collect::<Vec<u8>>()].concat()
        }
    }
}

async fn unframe(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let (kind, length) = (stream.read_u8().await?, stream.read_u8().await?);
    assert_eq!(kind, TEXT);
    let mut mask = [0; 4];
    if length & MASKED != 0 {
        stream.read_exact(&mut mask).await?;
    }
    let mut text = vec![0; usize::from(length & !MASKED)];
    stream.read_exact(&mut text).await?;
    Ok(text.iter().zip(mask.iter().cycle()).map(|(octet, mask)| octet ^ mask).collect())
}
