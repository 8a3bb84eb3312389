//! What reaches the daemon's loop from outside, and the handle by which it is sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sluice_contract::id::Attachment;
use sluice_contract::rpc::{Call, Outcome, Refusal};
use sluice_ipamd_core::cloud::EniConfig;
use sluice_ipamd_core::queue::Token;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::cluster::Told;
use crate::config::Config;
use crate::view::View;

/// Inputs that may wait for the loop at once; senders wait when it is full.
pub(crate) const INBOX_LIMIT: usize = 1024;

/// How long whoever looks waits for the loop.
const LOOK_TAKES: Duration = Duration::from_secs(2);

/// An input of the loop.
#[derive(Debug)]
pub(crate) enum Input {
    /// A request of a plugin.
    Call(Box<Asked>),
    /// The socket of a request has closed before its reply.
    Withdrawn(Token),
    /// The reply to an ADD could not be written.
    Undelivered(Token, Attachment),
    /// The cluster's source has told something.
    Told(Told),
    /// Somebody wants to look at the state.
    Look(oneshot::Sender<View>),
    /// Somebody wants to look at the settings.
    LookAtSettings(oneshot::Sender<Box<InForce>>),
}

/// The settings by which the loop works: a cluster may have changed those of the start.
#[derive(Debug, Clone)]
pub(crate) struct InForce {
    /// What is configured.
    pub(crate) config: Config,
    /// The node's ENIConfig, where it has one.
    pub(crate) eni_config: Option<EniConfig>,
}

/// A request and where its reply goes.
#[derive(Debug)]
pub(crate) struct Asked {
    /// The request's number.
    pub(crate) token: Token,
    /// What is asked.
    pub(crate) call: Call,
    /// When it was asked.
    pub(crate) since: Instant,
    /// The reply is due then.
    pub(crate) deadline: Instant,
    /// Where the reply goes.
    pub(crate) answer: oneshot::Sender<Answer>,
}

/// The name in greetings and refusals.
pub(crate) const SOFTWARE: &str = "sluice-ipamd";

/// A reply. Granted is the attachment that was given an address by this very request: if the reply cannot be written, the
/// address goes back.
pub(crate) type Answer = sluice_daemon::rpc::Answer<Outcome, Attachment>;

/// Sends inputs to the loop.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    inbox: mpsc::Sender<Input>,
    tokens: Arc<AtomicU64>,
}

/// The refusal of a daemon that is on its way out.
pub(crate) fn stopping() -> Refusal {
    sluice_daemon::rpc::stopping(SOFTWARE)
}

impl Handle {
    /// A handle and the receiving end of its inputs.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Input>) {
        let (inbox, inputs) = mpsc::channel(INBOX_LIMIT);
        (Self { inbox, tokens: Arc::default() }, inputs)
    }

    /// Asks; the reply comes by the receiver.
    pub(crate) async fn ask(&self, call: Call, deadline: Instant) -> (Token, oneshot::Receiver<Answer>) {
        let (answer, reply) = oneshot::channel();
        let token = Token(self.tokens.fetch_add(1, Ordering::Relaxed));
        let asked = Asked { token, call, since: Instant::now(), deadline, answer };
        self.send(Input::Call(Box::new(asked))).await;
        (token, reply)
    }

    /// Sends an input. When the loop has ended, nobody is interested any more.
    pub(crate) async fn send(&self, input: Input) {
        if self.inbox.send(input).await.is_err() {
            tracing::debug!("the daemon has ended before an input");
        }
    }

    /// Looks at the state; none when the loop does not answer.
    pub(crate) async fn look(&self) -> Option<View> {
        self.asked(Input::Look).await
    }

    /// Looks at the settings; none when the loop does not answer.
    pub(crate) async fn in_force(&self) -> Option<InForce> {
        self.asked(Input::LookAtSettings).await.map(|in_force| *in_force)
    }

    /// Asks the loop. One that does not take its inputs may have so many of them that none has room: that takes no longer.
    async fn asked<T>(&self, input: impl FnOnce(oneshot::Sender<T>) -> Input) -> Option<T> {
        let (sender, answer) = oneshot::channel();
        let asks = async {
            self.send(input(sender)).await;
            answer.await.ok()
        };
        tokio::time::timeout(LOOK_TAKES, asks).await.ok()?
    }
}
