//! Connections: HTTP/1.1, faults, and the log.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::Shared;
use super::error::ApiError;
use super::fault::{Fault, Outage};
use super::handle::{Answer, Asked, handle};
use super::kind::Path;
use super::log;

/// Bytes of a body that are read; etcd takes no larger objects.
const MAX_BODY: usize = 3 * 1024 * 1024;

/// The body of an answer. An error in it cuts the connection.
type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Serves connections until dropped, and ends them with itself.
pub(super) async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        // An accept fails when file descriptors run out; the next one comes with the next client.
        let Ok((stream, _)) = listener.accept().await else {
            tokio::task::yield_now().await;
            continue;
        };
        connections.spawn(connection(stream, tls.clone(), Arc::clone(&shared)));
    }
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let mut cut = shared.cut.subscribe();
    // Without delay, as Go does it: a watch is many small writes.
    let _without = stream.set_nodelay(true);
    let outage = shared.state().faults.outage;
    match outage {
        Some(Outage::Refuse) => return,
        Some(Outage::Hang) => {
            // Held until the next cut, and beyond the end of the outage: such a connection is lost for good.
            let _ended = cut.changed().await;
            return;
        }
        None => {}
    }
    let exchange = async {
        match tls {
            None => exchange(stream, &shared).await,
            // A client that does not get on with us goes away.
            Some(tls) => match tls.accept(stream).await {
                Ok(stream) => exchange(stream, &shared).await,
                Err(_unlike) => {}
            },
        }
    };
    tokio::select! {
        () = exchange => {}
        _cut = cut.changed() => {}
    }
}

async fn exchange(stream: impl AsyncRead + AsyncWrite + Unpin, shared: &Arc<Shared>) {
    let service = service_fn(|request| answer(Arc::clone(shared), request));
    let connection = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
    // Whoever goes away goes away.
    let _ended = connection.await;
}

/// Whether a request brings what it has to bring.
fn is_authorized(shared: &Shared, header: &str) -> bool {
    let token = shared.token.lock().unwrap_or_else(PoisonError::into_inner);
    token.as_ref().is_none_or(|token| header.strip_prefix("Bearer ") == Some(token))
}

/// An error, so that the connection is closed without an answer.
fn dropped() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "a fault on demand")
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, io::Error> {
    let (parts, body) = request.into_parts();
    let header = |name| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let body = Limited::new(body, MAX_BODY).collect().await;
    let asked = Asked {
        path: Path::parse(parts.uri.path()),
        query: Asked::parse_query(parts.uri.query().unwrap_or_default()),
        accept: header(ACCEPT),
        content_type: header(CONTENT_TYPE),
        body: body.map(http_body_util::Collected::to_bytes).unwrap_or_default(),
        method: parts.method,
    };
    let authorized = is_authorized(&shared, &header(AUTHORIZATION));
    shared.thaw().await;
    let verb = asked.verb();
    let plural = asked.objects().map_or_else(|| parts.uri.path().to_owned(), |path| path.table.plural.clone());
    let fault = shared.state().faults.take(verb, &plural);
    let mut most = None;
    let (result, retry_after) = match fault {
        Some(Fault::Drop) => {
            record(&shared, &asked, verb, plural, None);
            return Err(dropped());
        }
        Some(Fault::Status { code, retry_after }) => (Err(ApiError::injected(code)), retry_after),
        Some(Fault::Garbage(text)) => {
            record(&shared, &asked, verb, plural, Some(200));
            return Ok(response(200, None, full(text.into())));
        }
        Some(Fault::Slow(delay)) => {
            tokio::time::sleep(delay).await;
            (handle(&shared, &asked), None)
        }
        Some(Fault::Truncate(bytes)) => {
            most = Some(bytes);
            (handle(&shared, &asked), None)
        }
        None if !authorized => (Err(ApiError::injected(401)), None),
        None => (handle(&shared, &asked), None),
    };
    let (code, body) = match result {
        Ok(Answer::Object(code, value)) => (code, full(value.to_string().into())),
        Ok(Answer::List(text)) => (200, full(text.into())),
        Ok(Answer::Watch(body)) => (200, body.map_err(never).boxed_unsync()),
        Err(error) => (error.code, full(error.status().to_string().into())),
    };
    record(&shared, &asked, verb, plural, Some(code));
    let body = match most {
        Some(most) => truncated(body, most),
        None => body,
    };
    Ok(response(code, retry_after, body))
}

fn never(never: Infallible) -> io::Error {
    match never {}
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(never).boxed_unsync()
}

/// The beginning of a body, and then the end of the connection.
fn truncated(body: Body, most: usize) -> Body {
    let frames = futures_util::stream::unfold(Some((body, most)), |rest| async move {
        let (mut body, left) = rest?;
        if left == 0 {
            return Some((Err(dropped()), None));
        }
        let data = body.frame().await?.and_then(|frame| frame.into_data().map_err(|_trailers| dropped()));
        let next = data.as_ref().ok().map(|data| (body, left.saturating_sub(data.len())));
        Some((data.map(|data| Frame::data(data.slice(..left.min(data.len())))), next))
    });
    StreamBody::new(frames).boxed_unsync()
}

fn response(code: u16, retry_after: Option<u64>, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = hyper::StatusCode::from_u16(code).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

fn record(shared: &Shared, asked: &Asked, verb: &'static str, plural: String, status: Option<u16>) {
    let path = asked.objects();
    let part = |part: fn(&super::ObjectPath) -> &String| path.map(part).cloned().unwrap_or_default();
    shared.state().log.add(log::Request {
        verb,
        group: part(|path| &path.table.group),
        plural,
        namespace: part(|path| &path.namespace),
        name: part(|path| &path.name),
        subresource: part(|path| &path.subresource),
        query: asked.query.clone(),
        content_type: asked.content_type.clone(),
        body: serde_json::from_slice(&asked.body).unwrap_or(Value::Null),
        status,
    });
}
