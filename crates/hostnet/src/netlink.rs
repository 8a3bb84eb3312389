//! The one door to the kernel's routing tables: a netlink socket in one network namespace.
//!
//! A socket stays in the namespace in which it was opened, so a [`Netlink`] can be used from any thread. It keeps the
//! kernel's own words for an error (extended acks), asks for strict checks, and repeats a dump that changed under it.

pub(crate) mod decode;
pub(crate) mod encode;
mod link;
mod route;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_ECHO, NLM_F_REQUEST,
    NetlinkMessage, NetlinkPayload, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_proto::{ConnectionHandle, NetlinkCodec};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, SocketAddr, TokioSocket};
use nix::errno::Errno;
use tokio::sync::Mutex;
use tokio::task::AbortHandle;

use crate::netns::{Namespace, NamespaceError};

pub(crate) use decode::{Names, decode_link};
#[cfg(test)]
pub(crate) use link::delete_request;
pub use link::{LinkError, VethSpec, VlanSpec};

/// How often a dump is begun again when the tables changed while it ran, before it counts as failed.
const DUMP_ATTEMPTS: u32 = 30;
/// The kernel answers within its own call; an answer that takes so long was lost on the way.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Changes in one datagram: their acks must fit into the socket's receive buffer (208 KiB, at 1 KiB an ack).
pub(crate) const MAX_BATCH: usize = 128;
/// Questions for links in one datagram: an answer takes some 8 KiB of the receive buffer.
const MAX_LINK_BATCH: usize = 16;

/// Length of `struct nlmsghdr`.
const NLMSG_HEADER: usize = 16;
/// The kernel's words, among the attributes of an extended ack (`NLMSGERR_ATTR_MSG`).
const NLMSGERR_ATTR_MSG: u16 = 1;

/// Why a netlink request failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel refused it.
    #[error("{}", extack.as_deref().map_or_else(|| "the kernel refuses".to_owned(), |text| format!("the kernel says: {text}")))]
    Refused {
        /// Its error number.
        errno: Errno,
        /// Its own words, where it had any.
        extack: Option<String>,
        /// The error number as the system explains it.
        #[source]
        source: io::Error,
    },
    /// The tables changed during every attempt to read them.
    #[error("the kernel's tables changed during each of {DUMP_ATTEMPTS} attempts to read them")]
    Unstable,
    /// The answer was lost: there was no room for it in the socket.
    #[error("the kernel's answer was lost for lack of room in the socket")]
    Overrun,
    /// No answer came.
    #[error("no answer from the kernel within {} s", ANSWER_TIMEOUT.as_secs())]
    Timeout,
    /// The socket was closed.
    #[error("the netlink socket is closed")]
    Closed,
    /// The kernel answered with something else than was asked for.
    #[error("the kernel answered with something that was not asked for")]
    Unexpected,
}

impl NetlinkError {
    /// The kernel's error number, if it is the kernel that refused.
    #[must_use]
    pub const fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    fn refused(message: &ErrorMessage, flags: u16) -> Self {
        let errno = Errno::from_raw(message.raw_code().saturating_neg());
        Self::Refused { errno, extack: extack(message, flags), source: errno.into() }
    }
}

/// Why a netlink socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The namespace could not be entered to open it there.
    #[error("cannot open a netlink socket in the namespace")]
    Namespace(#[source] NamespaceError),
    /// There is no socket.
    #[error("cannot open a netlink socket")]
    Socket(#[source] io::Error),
}

type Message = NetlinkMessage<RouteNetlinkMessage>;

/// A netlink socket in one network namespace. Cloning is cheap; the socket closes with the last clone, or with the
/// runtime in which it was opened.
#[derive(Debug, Clone)]
pub struct Netlink {
    requests: ConnectionHandle<RouteNetlinkMessage>,
    /// The kernel runs one dump a socket at a time, and says EBUSY to a second.
    dumping: Arc<Mutex<()>>,
    _driver: Arc<Driver>,
}

#[derive(Debug)]
struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Netlink {
    /// Opens a socket in the calling thread's namespace.
    ///
    /// # Errors
    /// [`OpenError::Socket`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn open() -> Result<Self, OpenError> {
        Ok(Self::drive(socket().map_err(OpenError::Socket)?))
    }

    /// Opens a socket in `namespace`. The thread that enters it for that ends at once; the socket stays.
    ///
    /// # Errors
    /// [`OpenError`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn open_in(namespace: &Namespace) -> Result<Self, OpenError> {
        let runtime = tokio::runtime::Handle::current();
        let socket = namespace.run(|| {
            let _guard = runtime.enter();
            socket()
        });
        Ok(Self::drive(socket.map_err(OpenError::Namespace)?.map_err(OpenError::Socket)?))
    }

    fn drive(socket: TokioSocket) -> Self {
        let (mut connection, requests, _unsolicited) =
            netlink_proto::from_socket_with_codec::<RouteNetlinkMessage, TokioSocket, NetlinkCodec>(socket);
        // Each request then has one last message in the stream of answers, which keeps a batch's answers apart.
        connection.set_forward_ack(true);
        connection.set_forward_done(true);
        let driver = tokio::spawn(connection).abort_handle();
        Self { requests, dumping: Arc::new(Mutex::new(())), _driver: Arc::new(Driver(driver)) }
    }

    /// Sends requests in one datagram and gives one answer for each, in order. Each is carried out whether or not
    /// those before it failed. At most [`MAX_BATCH`].
    pub(crate) async fn batch(&self, requests: Vec<Request>) -> Vec<Result<Option<RouteNetlinkMessage>, NetlinkError>> {
        let count = requests.len();
        let mut answers = Vec::with_capacity(count);
        let messages: Vec<Message> = requests.into_iter().map(Request::into_message).collect();
        let Ok(mut stream) = self.requests.request_batch(messages, SocketAddr::new(0, 0)) else {
            return std::iter::repeat_with(|| Err(NetlinkError::Closed)).take(count).collect();
        };
        while answers.len() < count {
            let lost: fn() -> NetlinkError = match tokio::time::timeout(ANSWER_TIMEOUT, stream.next()).await {
                Ok(Some(message)) => match message.payload {
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        answers.push(Err(NetlinkError::refused(&error, message.header.flags)));
                        continue;
                    }
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => {
                        answers.push(Ok(None));
                        continue;
                    }
                    NetlinkPayload::InnerMessage(inner) => {
                        answers.push(Ok(Some(inner)));
                        continue;
                    }
                    NetlinkPayload::Overrun(_) => || NetlinkError::Overrun,
                    _ => || NetlinkError::Unexpected,
                },
                Ok(None) => || NetlinkError::Closed,
                Err(_) => || NetlinkError::Timeout,
            };
            // Which request a later answer is for cannot be told any more.
            answers.resize_with(count, || Err(lost()));
        }
        answers
    }

    /// One request that changes something.
    pub(crate) async fn change(&self, request: Request) -> Result<(), NetlinkError> {
        self.batch(vec![request]).await.pop().unwrap_or(Err(NetlinkError::Closed)).map(drop)
    }

    /// One request for one object.
    pub(crate) async fn get(&self, message: RouteNetlinkMessage) -> Result<RouteNetlinkMessage, NetlinkError> {
        let answer = self.batch(vec![Request::get(message)]).await.pop().unwrap_or(Err(NetlinkError::Closed))?;
        answer.ok_or(NetlinkError::Unexpected)
    }

    /// All objects that `message` asks for. A dump that was interrupted by a change is begun again.
    pub(crate) async fn dump(&self, message: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let _one_at_a_time = self.dumping.lock().await;
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(objects) = self.dump_once(message.clone()).await? {
                return Ok(objects);
            }
        }
        Err(NetlinkError::Unstable)
    }

    /// None when the dump is not consistent.
    async fn dump_once(&self, message: RouteNetlinkMessage) -> Result<Option<Vec<RouteNetlinkMessage>>, NetlinkError> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let mut stream = self.requests.request(request, SocketAddr::new(0, 0)).or(Err(NetlinkError::Closed))?;
        let mut objects = Vec::new();
        let mut consistent = true;
        loop {
            let message = match tokio::time::timeout(ANSWER_TIMEOUT, stream.next()).await {
                Ok(Some(message)) => message,
                Ok(None) => return Err(NetlinkError::Closed),
                Err(_) => return Err(NetlinkError::Timeout),
            };
            consistent &= message.header.flags & NLM_F_DUMP_INTR == 0;
            match message.payload {
                NetlinkPayload::InnerMessage(object) => objects.push(object),
                NetlinkPayload::Done(done) if done.code == 0 => return Ok(consistent.then_some(objects)),
                NetlinkPayload::Done(done) => {
                    let errno = Errno::from_raw(done.code.saturating_neg());
                    if errno == Errno::EINTR {
                        return Ok(None);
                    }
                    let extack = find_message(&done.extended_ack);
                    return Err(NetlinkError::Refused { errno, extack, source: errno.into() });
                }
                NetlinkPayload::Error(error) => return Err(NetlinkError::refused(&error, message.header.flags)),
                NetlinkPayload::Overrun(_) => return Ok(None),
                _ => return Err(NetlinkError::Unexpected),
            }
        }
    }
}

/// A request and how the kernel should take it.
#[derive(Debug)]
pub(crate) struct Request {
    message: RouteNetlinkMessage,
    flags: u16,
}

impl Request {
    /// A change, with the flags that say what may be there already (`NLM_F_CREATE`, ...).
    pub(crate) const fn change(message: RouteNetlinkMessage, flags: u16) -> Self {
        Self { message, flags: NLM_F_REQUEST | NLM_F_ACK | flags }
    }

    /// A question for one object. Without an ack, or there would be two answers.
    pub(crate) const fn get(message: RouteNetlinkMessage) -> Self {
        Self { message, flags: NLM_F_REQUEST }
    }

    /// A question whose answer old kernels send to nobody but those who listen for changes, unless they are asked to
    /// echo it (`rtnetlink_send`), and to which the kernel may have nothing to say: the answer is then the ack. To be sent
    /// alone, because where there is an answer, the ack is a second one.
    pub(crate) const fn echo(message: RouteNetlinkMessage) -> Self {
        Self { message, flags: NLM_F_REQUEST | NLM_F_ECHO | NLM_F_ACK }
    }

    /// The message as it goes to the kernel, without a sequence number.
    #[cfg(test)]
    pub(crate) fn bytes(self) -> Vec<u8> {
        let mut message = self.into_message();
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    fn into_message(self) -> Message {
        let mut message = NetlinkMessage::from(self.message);
        message.header.flags = self.flags;
        message
    }
}

fn socket() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    configure(&mut socket)?;
    Ok(socket)
}

pub(crate) fn configure(socket: &mut TokioSocket) -> io::Result<()> {
    let socket = socket.socket_mut();
    socket.set_ext_ack(true)?;
    socket.set_cap_ack(true)?;
    socket.set_netlink_get_strict_chk(true)
}

/// The kernel's words in an error message (`netlink(7)`, extended acks; since Linux 4.12).
fn extack(message: &ErrorMessage, flags: u16) -> Option<String> {
    if flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    // The request's header, and, unless it was cut off, the request itself.
    let length = u32::from_ne_bytes(*message.header.first_chunk()?);
    let skip = if flags & NLM_F_CAPPED != 0 { NLMSG_HEADER } else { usize::try_from(length).ok()?.next_multiple_of(4) };
    find_message(message.header.get(skip..)?)
}

fn find_message(attributes: &[u8]) -> Option<String> {
    let text = NlasIterator::new(attributes).flatten().find(|nla| nla.kind() == NLMSGERR_ATTR_MSG)?;
    let text = text.value();
    let text = text.strip_suffix(&[0]).unwrap_or(text);
    Some(String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests;
