//! TLS: the ClientHello is read for its server name, and nothing is decrypted.
//!
//! The first octets go on as they came once the rules let the name pass; then both sides are relayed. A refusal is said by
//! the alert `access_denied` (RFC 8446, 6.2).
//!
//! A ClientHello with an encrypted part (RFC 9849) is judged by its outer name: it is what the server at that address is
//! trusted to be. Such connections are counted.

#[cfg(test)]
mod fuzz;
mod hello;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use sluice_policy_core::l7::Message;
use sluice_policy_core::l7::sni::server_name;
use tokio::net::TcpStream;

use self::hello::{Hello, MOST_READ};
use crate::connect::Connect;
use crate::engine::{count, reset};
use crate::policy::{Policy, Rules, Ruling};
use crate::record::{Kind, Recorder};
use crate::relay::{self, Buffer, Ends, Progress, Stalled, Timer, write_two};
use crate::session::{Session, Since};

/// Fatal alerts as records: `access_denied`, `decode_error`.
const ACCESS_DENIED: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];
const DECODE_ERROR: [u8; 7] = [21, 3, 3, 0, 2, 2, 50];

/// What a connection asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Asked {
    /// A server by its name.
    Named(Message<'static>, Box<str>),
    /// A server, by its address alone.
    Unnamed,
}

impl Asked {
    fn judge<'r>(&self, rules: &'r Rules) -> Ruling<'r> {
        match self {
            Self::Named(message, _) => rules.judge(message),
            Self::Unnamed => rules.judge_unread(),
        }
    }

    fn kind(&self) -> Kind {
        let server_name = match self {
            Self::Named(_, name) => Some(name.clone()),
            Self::Unnamed => None,
        };
        Kind::Tls { server_name }
    }
}

/// What the first octets of a connection led to.
enum First {
    Hello(Hello),
    Bad(&'static str),
    /// The server has spoken.
    Server,
    Ended,
}

/// Serves a connection whose server name is judged. What has been read of it is in `from_client`.
pub(crate) async fn serve<P: Policy, R: Recorder, C: Connect>(
    mut session: Session<'_, P, R, C>,
    mut client: TcpStream,
    mut from_client: Buffer,
) {
    let (limits, counters) = (&session.engine.limits, &session.engine.counters);
    let (mut upstream, mut from_server) = (None, Buffer::default());
    // The server may be the one that speaks first, and may be reached whatever the client says.
    if from_client.is_empty() && session.rules().judge_unread().passes {
        let kind = Kind::Tls { server_name: None };
        let Some(stream) = relay::reach(&mut session, &client, kind).await else { return };
        upstream = Some(stream);
    }
    let progress = Progress::within(limits.head_time);
    let listening = listen(&mut client, &mut from_client, upstream.as_mut(), &mut from_server);
    let first = match Timer::default().guard(&progress, listening).await {
        Ok(First::Ended) => return,
        Ok(First::Server) => Err("the server speaks first"),
        Ok(First::Hello(hello)) => {
            if hello.encrypted {
                count(&counters.tls_encrypted_hello);
            }
            match hello.server_name.map(|octets| server_name(&octets)) {
                None => Ok(Asked::Unnamed),
                Some(Ok(name)) => {
                    let text = name.as_str().into();
                    Ok(Asked::Named(Message::ServerName(name), text))
                }
                Some(Err(_)) => Err("the server's name is no host name"),
            }
        }
        Ok(First::Bad(why)) => Err(why),
        Err(Stalled) => {
            count(&counters.heads_too_slow);
            Err("the ClientHello took too long")
        }
    };
    let asked = match first {
        Ok(asked) => asked,
        // What all may pass does not have to be TLS.
        Err(_) if session.rules().judge_unread().passes => {
            count(&counters.other_protocols);
            Asked::Unnamed
        }
        Err(why) => {
            count(&counters.tls_bad);
            session.record_failed(Kind::Tls { server_name: None }, why);
            refuse(&mut client, from_client, &DECODE_ERROR).await;
            return;
        }
    };
    if session.refresh().await.is_err() {
        reset(&client);
        return;
    }
    // As far as is known before the backend is, and then by the backend's rules.
    loop {
        let rules = Arc::clone(session.rules());
        let ruling = asked.judge(&rules);
        if !ruling.passes {
            count(&counters.tls_refused);
            session.finish(session.begin(asked.kind(), &ruling, Since::Start));
            refuse(&mut client, from_client, &ACCESS_DENIED).await;
            return;
        }
        if let Some(upstream) = upstream.take() {
            count(&counters.tls_passed);
            let pending = session.begin(asked.kind(), &ruling, Since::Start);
            let ends = Ends { client, upstream, from_client, from_server };
            relay::run(session, ends, pending, move |rules| asked.judge(rules).passes).await;
            return;
        }
        let Some(stream) = relay::reach(&mut session, &client, asked.kind()).await else { return };
        upstream = Some(stream);
    }
}

/// Waits for the ClientHello, or for the server to speak. What comes stays in the buffers.
async fn listen(
    client: &mut TcpStream,
    from_client: &mut Buffer,
    upstream: Option<&mut TcpStream>,
    from_server: &mut Buffer,
) -> First {
    let (mut read, _) = client.split();
    let mut upstream_read = upstream.map(|upstream| upstream.split().0);
    poll_fn(|cx| {
        loop {
            match hello::read(from_client.octets()) {
                Ok(Some(hello)) => return Poll::Ready(First::Hello(hello)),
                Ok(None) => {}
                Err(why) => return Poll::Ready(First::Bad(why)),
            }
            if !from_client.has_room() && !from_client.grow(MOST_READ) {
                return Poll::Ready(First::Bad("the ClientHello is too large"));
            }
            match from_client.poll_fill(cx, &mut read) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(First::Ended),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => break,
            }
        }
        if let Some(upstream_read) = &mut upstream_read
            && let Poll::Ready(read) = from_server.poll_fill(cx, upstream_read)
        {
            return Poll::Ready(if matches!(read, Ok(1..)) { First::Server } else { First::Ended });
        }
        Poll::Pending
    })
    .await
}

/// Sends an alert, and ends the connection so that the client gets to read it.
async fn refuse(client: &mut TcpStream, mut from_client: Buffer, alert: &[u8]) {
    let progress = Progress::within(crate::http::LINGER);
    let work = async {
        let (mut read, mut write) = client.split();
        if write_two(&mut write, alert, &[], |_| {}).await.is_ok() {
            crate::http::linger(&mut read, &mut write, &mut from_client).await;
        }
    };
    // One that reads nothing is closed all the same.
    Timer::default().guard(&progress, work).await.ok();
}
