//! One stream of HTTP/2: a request, judged, and its response.

use std::cell::{Cell, OnceCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, TRAILER};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{Method, Response, StatusCode};
use sluice_policy_core::l7::Message;
use sluice_policy_core::l7::http::{Edit, Field, RawRequest, Request, Version};

use super::super::answer::{Answer, DENIED};
use super::super::judge::kind;
use crate::connect::Connect;
use crate::engine::{Engine, count};
use crate::policy::Policy;
use crate::record::Recorder;
use crate::session::{NoUpstream, Pending, Session, Since, unreadable};

/// gRPC's status codes that the proxy itself answers with.
#[derive(Debug, Clone, Copy)]
enum Grpc {
    PermissionDenied,
    Unavailable,
    Internal,
}

impl Grpc {
    const fn of(answer: &Answer) -> Self {
        match answer.status {
            403 => Self::PermissionDenied,
            502 | 504 => Self::Unavailable,
            _ => Self::Internal,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::PermissionDenied => "7",
            Self::Internal => "13",
            Self::Unavailable => "14",
        }
    }
}

/// A request that passes, and where its answer goes.
pub(super) struct Ready {
    outgoing: http::Request<()>,
    incoming: Incoming,
    /// As it came, if it may have to be judged again.
    original: http::request::Parts,
    pending: Pending,
}

/// What is left of a request as it came: its body, and where its answer goes.
struct Incoming {
    body: RecvStream,
    respond: SendResponse<Bytes>,
    is_grpc: bool,
    is_head: bool,
}

/// What became of a request at first.
pub(super) enum Judged {
    /// It has been answered.
    Answered,
    /// It passes.
    Passes(Box<Ready>),
}

/// Judges a request; answers it if it does not pass.
pub(super) fn judge<P: Policy, R: Recorder, C: Connect>(
    session: &Session<'_, P, R, C>,
    request: http::Request<RecvStream>,
    respond: SendResponse<Bytes>,
) -> Judged {
    let (parts, body) = request.into_parts();
    let is_grpc =
        parts.headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    let incoming = Incoming { body, respond, is_grpc, is_head: parts.method == Method::HEAD };
    judge_parts(session, parts, incoming)
}

/// Judges a request again that had passed by other rules.
pub(super) fn judge_again<P: Policy, R: Recorder, C: Connect>(
    session: &Session<'_, P, R, C>,
    ready: Box<Ready>,
) -> Judged {
    let Ready { original, incoming, .. } = *ready;
    judge_parts(session, original, incoming)
}

fn judge_parts<P: Policy, R: Recorder, C: Connect>(
    session: &Session<'_, P, R, C>,
    parts: http::request::Parts,
    mut incoming: Incoming,
) -> Judged {
    let counters = &session.engine.counters;
    match examine(session, &parts) {
        Ok((Some(outgoing), pending)) => {
            Judged::Passes(Box::new(Ready { outgoing, incoming, original: parts, pending }))
        }
        Ok((None, mut pending)) => {
            count(&counters.requests_refused);
            pending.answered(DENIED.status);
            session.engine.finish(pending);
            incoming.answer(&DENIED);
            Judged::Answered
        }
        Err(answer) => {
            count(counters.unjudged(answer.status));
            session.record_failed(unreadable(Version::Http2, answer.status), &answer.reason());
            incoming.answer(&answer);
            Judged::Answered
        }
    }
}

/// Judges a request; what goes on in its place, if it passes.
fn examine<P: Policy, R: Recorder, C: Connect>(
    session: &Session<'_, P, R, C>,
    parts: &http::request::Parts,
) -> Result<(Option<http::Request<()>>, Pending), Answer> {
    let fields = fields(parts);
    if fields.len() > session.engine.limits.fields {
        return Err(Answer::new(431, "the request has too many fields"));
    }
    let request = Request::new(raw(parts, &fields))?;
    let message = Message::Http(request);
    let ruling = session.rules().judge(&message);
    let Message::Http(request) = &message else { return Err(Answer::new(400, "this is no HTTP request")) };
    let pending = session.begin(kind(request, Version::Http2, ruling.mismatched()), &ruling, Since::Now);
    if !ruling.passes {
        return Ok((None, pending));
    }
    let uri = uri(request, parts.uri.scheme()).ok_or(Answer::new(400, "the target cannot go on as it is"))?;
    let mut headers = parts.headers.clone();
    headers.remove(HOST);
    for edit in ruling.edits() {
        apply(&mut headers, edit).ok_or(Answer::new(400, "the request cannot be changed as its rule says"))?;
    }
    let mut outgoing = http::Request::new(());
    *outgoing.method_mut() = parts.method.clone();
    *outgoing.uri_mut() = uri;
    *outgoing.version_mut() = http::Version::HTTP_2;
    *outgoing.headers_mut() = headers;
    Ok((Some(outgoing), pending))
}

/// Whether rules let a request pass that has passed by others.
fn passes<P: Policy, R: Recorder, C: Connect>(session: &Session<'_, P, R, C>, parts: &http::request::Parts) -> bool {
    let fields = fields(parts);
    Request::new(raw(parts, &fields)).is_ok_and(|request| session.rules().judge(&Message::Http(request)).passes)
}

fn fields(parts: &http::request::Parts) -> Vec<Field<'_>> {
    parts
        .headers
        .iter()
        .map(|(name, value)| Field { name: name.as_str().as_bytes(), value: value.as_bytes() })
        .collect()
}

fn raw<'r>(parts: &'r http::request::Parts, fields: &'r [Field<'r>]) -> RawRequest<'r> {
    RawRequest {
        version: Version::Http2,
        method: parts.method.as_str().as_bytes(),
        target: parts.uri.path_and_query().map(PathAndQuery::as_str).unwrap_or_default().as_bytes(),
        authority: parts.uri.authority().map(|authority| authority.as_str().as_bytes()),
        fields,
    }
}

/// The canonical form as a URI; a CONNECT has neither scheme nor path.
fn uri(request: &Request<'_>, scheme: Option<&Scheme>) -> Option<Uri> {
    let mut uri = http::uri::Parts::default();
    uri.authority = Some(Authority::try_from(request.authority()?).ok()?);
    if let Some(path) = request.path() {
        uri.scheme = Some(scheme.cloned().unwrap_or(Scheme::HTTP));
        uri.path_and_query = Some(PathAndQuery::try_from(path).ok().filter(|read| read.as_str() == path)?);
    }
    Uri::from_parts(uri).ok()
}

fn apply(headers: &mut HeaderMap, edit: Edit<'_>) -> Option<()> {
    let name = |name: &str| HeaderName::try_from(name).ok();
    match edit {
        Edit::Add { name: field, value } => {
            headers.append(name(field)?, HeaderValue::try_from(value).ok()?);
        }
        Edit::Delete { name: field } => {
            headers.remove(name(field)?);
        }
        Edit::Replace { name: field, value } => {
            headers.insert(name(field)?, HeaderValue::try_from(value).ok()?);
        }
    }
    Some(())
}

/// Answers a request whose server cannot be reached.
pub(super) fn fail<P: Policy, R: Recorder, C: Connect>(
    session: &Session<'_, P, R, C>,
    ready: Box<Ready>,
    failed: &NoUpstream,
) {
    let Ready { mut incoming, mut pending, .. } = *ready;
    let answer = match failed {
        NoUpstream::Refused(refused) => {
            pending.refused(&refused.to_string());
            session.engine.finish(pending);
            return;
        }
        NoUpstream::TimedOut => Answer::new(504, "the server could not be reached"),
        NoUpstream::Failed(_) => Answer::new(502, "the server could not be reached"),
    };
    pending.answered(answer.status);
    session.engine.finish(pending);
    incoming.answer(&answer);
}

/// Sends a request back unseen by the server, so that the client may send it elsewhere (RFC 9113, 8.7).
pub(super) fn send_back(mut ready: Box<Ready>) {
    ready.incoming.respond.send_reset(Reason::REFUSED_STREAM);
}

impl Incoming {
    /// The proxy's own answer, in the protocol's own words.
    fn answer(&mut self, answer: &Answer) {
        if let Err(error) = self.try_answer(answer) {
            tracing::trace!(%error, "the stream was reset before its answer");
        }
    }

    fn try_answer(&mut self, answer: &Answer) -> Result<(), h2::Error> {
        let mut response = Response::new(());
        let headers = response.headers_mut();
        if self.is_grpc {
            // "Trailers-Only" (gRPC over HTTP/2, "Responses").
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert("grpc-status", HeaderValue::from_static(Grpc::of(answer).as_str()));
            headers.insert("grpc-message", HeaderValue::from_static(answer.why));
            self.respond.send_response(response, true)?;
            return Ok(());
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(answer.why.len() + 2));
        if let Some(elsewhere) = answer.elsewhere.as_deref().and_then(|path| HeaderValue::try_from(path).ok()) {
            headers.insert(LOCATION, elsewhere);
        }
        *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::BAD_GATEWAY);
        let mut content = self.respond.send_response(response, self.is_head)?;
        if !self.is_head {
            let mut text = answer.why.as_bytes().to_vec();
            text.extend_from_slice(b"\r\n");
            content.send_data(text.into(), true)?;
        }
        Ok(())
    }
}

/// A request on its way.
pub(super) struct Sides {
    pub(super) ready: Box<Ready>,
    pub(super) sender: SendRequest<Bytes>,
}

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// As it should, or by the server.
    Well,
    /// The client has reset it.
    ClientReset,
    /// The server takes no more streams.
    ServerLeaves,
    /// Policy has changed, and it no longer passes.
    Refused,
}

/// The requests of a connection that are under way, to be judged again when policy changes.
#[derive(Debug, Default)]
pub(super) struct Passing(Vec<Weak<Under>>);

/// A request under way.
#[derive(Default)]
pub(super) struct Under {
    /// As it came.
    request: OnceCell<http::request::Parts>,
    refused: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

impl Passing {
    /// One more.
    pub(super) fn enter(&mut self) -> Rc<Under> {
        self.0.retain(|under| under.strong_count() > 0);
        let under = Rc::new(Under::default());
        self.0.push(Rc::downgrade(&under));
        under
    }

    /// Ends those that the session's rules do not let pass.
    pub(super) fn judge<P: Policy, R: Recorder, C: Connect>(&self, session: &Session<'_, P, R, C>) {
        for under in self.0.iter().filter_map(Weak::upgrade) {
            let Some(request) = under.request.get() else { continue };
            if !passes(session, request) {
                under.refused.set(true);
                if let Some(waker) = under.waker.take() {
                    waker.wake();
                }
            }
        }
    }
}

/// Why a direction ended before its end.
enum Broken {
    /// By the client.
    Client(Option<Reason>),
    /// By the server.
    Server(h2::Error),
}

/// Sends a request on, and its response back.
pub(super) async fn run<P: Policy, R: Recorder, C: Connect>(
    engine: &Engine<P, R, C>,
    sides: Sides,
    under: Rc<Under>,
) -> Ended {
    let Sides { ready, sender } = sides;
    let Ready { outgoing, mut incoming, original, pending } = *ready;
    let _first = under.request.set(original);
    let mut open = Open { engine, pending: Some(pending), sent: Cell::new(0), received: Cell::new(0) };
    let Some(pending) = &mut open.pending else { return Ended::Well };
    let ended = {
        let mut work = pin!(stream(outgoing, &mut incoming, sender, pending, (&open.sent, &open.received)));
        poll_fn(|cx| {
            if under.refused.get() {
                return Poll::Ready(Ended::Refused);
            }
            under.waker.set(Some(cx.waker().clone()));
            work.as_mut().poll(cx)
        })
        .await
    };
    if ended == Ended::Refused {
        // What the server knows of it went with the work.
        incoming.respond.send_reset(Reason::CANCEL);
        pending.refused("policy changed while it was answered");
    }
    ended
}

/// A request that the server may have seen: it is on record however it ends, with its client's connection too.
struct Open<'e, P, R: Recorder, C> {
    engine: &'e Engine<P, R, C>,
    pending: Option<Pending>,
    sent: Cell<u64>,
    received: Cell<u64>,
}

impl<P, R: Recorder, C> Drop for Open<'_, P, R, C> {
    fn drop(&mut self) {
        if let Some(mut pending) = self.pending.take() {
            pending.ended(self.sent.get(), self.received.get());
            self.engine.finish(pending);
        }
    }
}

async fn stream(
    outgoing: http::Request<()>,
    incoming: &mut Incoming,
    sender: SendRequest<Bytes>,
    pending: &mut Pending,
    (sent, received): (&Cell<u64>, &Cell<u64>),
) -> Ended {
    let mut wait = pin!(sender.ready());
    let waited = poll_fn(|cx| match incoming.respond.poll_reset(cx) {
        Poll::Ready(_) => Poll::Ready(None),
        Poll::Pending => wait.as_mut().poll(cx).map(Some),
    });
    let mut sender = match waited.await {
        Some(Ok(sender)) => sender,
        Some(Err(_)) => {
            incoming.respond.send_reset(Reason::REFUSED_STREAM);
            return Ended::ServerLeaves;
        }
        None => return Ended::ClientReset,
    };
    let whole = incoming.body.is_end_stream();
    let Ok((response, mut to_server)) = sender.send_request(outgoing, whole) else {
        incoming.respond.send_reset(Reason::REFUSED_STREAM);
        return Ended::ServerLeaves;
    };
    drop(sender);
    let mut to_client = None;
    let broken = {
        let Incoming { body, respond, .. } = &mut *incoming;
        let up = async { if whole { Ok(()) } else { pump(body, &mut to_server, sent, false).await } };
        let down = down(response, respond, &mut to_client, pending, received);
        both(up, down).await
    };
    let reset = |to_client: Option<SendStream<Bytes>>, respond: &mut SendResponse<Bytes>, reason| match to_client {
        Some(mut to_client) => to_client.send_reset(reason),
        None => respond.send_reset(reason),
    };
    match broken {
        Ok(()) => Ended::Well,
        Err(Broken::Client(reason)) => {
            to_server.send_reset(reason.unwrap_or(Reason::CANCEL));
            Ended::ClientReset
        }
        Err(Broken::Server(error)) => {
            match (error.is_reset(), error.reason()) {
                (true, Some(reason)) => reset(to_client, &mut incoming.respond, reason),
                _ if to_client.is_none() => {
                    let answer = Answer::new(502, "the server's connection failed");
                    pending.answered(answer.status);
                    incoming.answer(&answer);
                }
                _ => reset(to_client, &mut incoming.respond, Reason::INTERNAL_ERROR),
            }
            Ended::Well
        }
    }
}

/// Runs both directions to their ends. A server that has answered may still read the request, or not.
async fn both(
    up: impl Future<Output = Result<(), Broken>>,
    down: impl Future<Output = Result<(), Broken>>,
) -> Result<(), Broken> {
    let (mut up, mut down) = (pin!(up), pin!(down));
    let (mut up_ended, mut down_ended) = (false, false);
    poll_fn(|cx| {
        if !up_ended && let Poll::Ready(end) = up.as_mut().poll(cx) {
            match end {
                // What became of the request is for the response to say.
                Ok(()) | Err(Broken::Server(_)) => up_ended = true,
                client => return Poll::Ready(client),
            }
        }
        if !down_ended && let Poll::Ready(end) = down.as_mut().poll(cx) {
            match end {
                Ok(()) => down_ended = true,
                broken => return Poll::Ready(broken),
            }
        }
        if up_ended && down_ended { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

/// Passes the response back.
async fn down(
    mut response: ResponseFuture,
    respond: &mut SendResponse<Bytes>,
    to_client: &mut Option<SendStream<Bytes>>,
    pending: &mut Pending,
    received: &Cell<u64>,
) -> Result<(), Broken> {
    let response = poll_fn(|cx| {
        if let Poll::Ready(reason) = respond.poll_reset(cx) {
            return Poll::Ready(Err(Broken::Client(reason.ok())));
        }
        while let Poll::Ready(Some(Ok(interim))) = response.poll_informational(cx) {
            if let Err(error) = respond.send_informational(interim) {
                return Poll::Ready(Err(Broken::Client(error.reason())));
            }
        }
        pin!(&mut response).poll(cx).map_err(Broken::Server)
    })
    .await?;
    pending.answered(response.status().as_u16());
    let (parts, mut body) = response.into_parts();
    let whole = body.is_end_stream();
    let mut head = Response::new(());
    *head.status_mut() = parts.status;
    *head.headers_mut() = parts.headers;
    let sender = respond.send_response(head, whole).map_err(|error| Broken::Client(error.reason()))?;
    let sender = to_client.insert(sender);
    if whole { Ok(()) } else { pump(&mut body, sender, received, true).await }
}

/// Passes a body and its trailers on: to the client, or to the server.
async fn pump(
    from: &mut RecvStream,
    to: &mut SendStream<Bytes>,
    moved: &Cell<u64>,
    to_client: bool,
) -> Result<(), Broken> {
    let client = |error: h2::Error| Broken::Client(error.reason());
    let (source, target): (&dyn Fn(h2::Error) -> Broken, &dyn Fn(h2::Error) -> Broken) =
        if to_client { (&Broken::Server, &client) } else { (&client, &Broken::Server) };
    loop {
        let next = poll_fn(|cx| match to.poll_reset(cx) {
            Poll::Ready(reason) => Poll::Ready(Err(target(reason.map_or_else(|error| error, h2::Error::from)))),
            Poll::Pending => from.poll_data(cx).map(Ok),
        });
        let Some(data) = next.await? else { break };
        let mut data = match data {
            // A server that wants no more of the request says so after its whole response (RFC 9113, 8.1).
            Err(error) if to_client && error.is_reset() && error.reason() == Some(Reason::NO_ERROR) => {
                return to.send_data(Bytes::new(), true).map_err(target);
            }
            data => data.map_err(source)?,
        };
        moved.set(moved.get() + data.len() as u64);
        let last = from.is_end_stream();
        if data.is_empty() && last {
            return to.send_data(data, true).map_err(target);
        }
        while !data.is_empty() {
            to.reserve_capacity(data.len());
            let room = match poll_fn(|cx| to.poll_capacity(cx)).await {
                Some(Ok(room)) => room.min(data.len()),
                Some(Err(error)) => return Err(target(error)),
                None => return Err(target(Reason::CANCEL.into())),
            };
            let part = data.split_to(room);
            let ends = data.is_empty() && last;
            to.send_data(part, ends).map_err(target)?;
            from.flow_control().release_capacity(room).map_err(source)?;
            if ends {
                return Ok(());
            }
        }
    }
    let trailers = poll_fn(|cx| from.poll_trailers(cx)).await.map_err(source)?;
    let sent = match trailers {
        Some(mut trailers) => {
            for name in [HOST, CONTENT_LENGTH, TRAILER] {
                trailers.remove(name);
            }
            to.send_trailers(trailers)
        }
        None => to.send_data(Bytes::new(), true),
    };
    sent.map_err(target)
}
