//! Watches: what changed since a revision, and then what changes.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::StreamBody;
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::Shared;
use super::answer::Shape;
use super::error::ApiError;
use super::kind::TableId;
use super::selector::Filter;
use super::store::{Change, Did};

/// How long a watch lasts that does not say.
const LIFE: Duration = Duration::from_secs(300);

/// The annotation of the bookmark after which a streamed list is complete (KEP-3157).
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// What is watched.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) table: TableId,
    pub(super) filter: Filter,
    pub(super) shape: Shape,
    pub(super) bookmarks: bool,
    pub(super) life: Option<Duration>,
}

/// Where a watch begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    /// With everything that is there, as new; then a bookmark that says so, if it is asked for.
    Everything { bookmark: bool },
    /// After a revision.
    Revision(u64),
}

/// Means to reach into the watches under way.
#[derive(Debug)]
pub(super) struct Watches {
    /// The store's revision; every change is told here.
    pub(super) revision: watch::Sender<u64>,
    /// Ends all of them.
    pub(super) end: Notify,
    /// The number of lines to send in all of them, and the latest: as they are, whatever they are.
    pub(super) lines: watch::Sender<(u64, Option<(TableId, String)>)>,
    /// Counts the bookmarks that are asked for.
    pub(super) bookmarks: watch::Sender<u64>,
    /// How often a bookmark is sent by itself.
    pub(super) every: Duration,
}

impl Watches {
    pub(super) fn new(every: Duration) -> Self {
        Self {
            revision: watch::Sender::new(0),
            end: Notify::new(),
            lines: watch::Sender::new((0, None)),
            bookmarks: watch::Sender::new(0),
            every,
        }
    }
}

/// A watch under way.
struct Running {
    shared: Arc<Shared>,
    watched: Watched,
    /// Revision up to which everything was sent.
    at: u64,
    pending: Vec<String>,
    revisions: watch::Receiver<u64>,
    lines: watch::Receiver<(u64, Option<(TableId, String)>)>,
    bookmarks: watch::Receiver<u64>,
    until: Instant,
    next_bookmark: Instant,
    over: bool,
}

/// The body of a watch's answer.
pub(super) type WatchBody =
    StreamBody<std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<Frame<Bytes>, Infallible>> + Send>>>;

/// Begins a watch.
pub(super) fn begin(shared: &Arc<Shared>, watched: Watched, from: From) -> WatchBody {
    let watches = &shared.watches;
    let now = Instant::now();
    let mut running = Running {
        at: 0,
        pending: Vec::new(),
        revisions: watches.revision.subscribe(),
        lines: watches.lines.subscribe(),
        bookmarks: watches.bookmarks.subscribe(),
        until: now + watched.life.unwrap_or(LIFE),
        next_bookmark: now + watches.every,
        over: false,
        shared: Arc::clone(shared),
        watched,
    };
    running.lines.mark_unchanged();
    running.bookmarks.mark_unchanged();
    match from {
        From::Revision(revision) => running.at = revision,
        From::Everything { bookmark } => running.everything(bookmark),
    }
    running.catch_up();
    StreamBody::new(Box::pin(stream::unfold(running, |mut running| async move {
        let line = running.next().await?;
        Some((Ok(Frame::data(Bytes::from(line))), running))
    })))
}

impl Running {
    async fn next(&mut self) -> Option<String> {
        loop {
            if !self.pending.is_empty() {
                return Some(std::mem::take(&mut self.pending).concat());
            }
            if self.over {
                return None;
            }
            let shared = Arc::clone(&self.shared);
            shared.thaw().await;
            tokio::select! {
                biased;
                () = shared.watches.end.notified() => self.over = true,
                Ok(()) = self.lines.changed() => {
                    let line = self.lines.borrow_and_update().1.clone();
                    if let Some((_, line)) = line.filter(|(table, _)| *table == self.watched.table) {
                        self.pending.push(format!("{line}\n"));
                    }
                }
                Ok(()) = self.revisions.changed() => {
                    self.revisions.mark_unchanged();
                    self.catch_up();
                }
                Ok(()) = self.bookmarks.changed() => {
                    self.bookmarks.mark_unchanged();
                    self.bookmark(false);
                }
                () = tokio::time::sleep_until(self.next_bookmark) => self.bookmark(false),
                () = tokio::time::sleep_until(self.until) => self.over = true,
            }
        }
    }

    fn everything(&mut self, bookmark: bool) {
        let listed = {
            let state = self.shared.state();
            self.at = state.store.revision();
            state.store.list(&self.watched.table, &self.watched.filter, None, 0)
        };
        match listed {
            Ok(page) => {
                for object in page.items {
                    self.send("ADDED", &object);
                }
                if bookmark {
                    self.bookmark(true);
                }
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Sends what changed meanwhile.
    fn catch_up(&mut self) {
        let (changes, revision) = {
            let state = self.shared.state();
            (state.store.changes(&self.watched.table, self.at), state.store.revision())
        };
        match changes {
            Err(error) => self.fail(&error),
            Ok(changes) => {
                for change in changes {
                    self.change(&change);
                }
                self.at = self.at.max(revision);
            }
        }
    }

    /// An object that comes to be selected is new to this watch, one that is so no more is gone.
    fn change(&mut self, change: &Change) {
        let before = change.before.as_ref().is_some_and(|before| self.watched.filter.selects(before));
        let after = change.did != Did::Delete && self.watched.filter.selects(&change.object);
        match (before, after) {
            (false, true) => self.send("ADDED", &change.object),
            (true, true) => self.send("MODIFIED", &change.object),
            (true, false) => self.send("DELETED", &change.object),
            (false, false) => {}
        }
    }

    fn send(&mut self, what: &str, object: &Value) {
        let object = self.watched.shape.object(object);
        self.line(what, &object);
    }

    /// The type comes first, as the real server has it: clients rely on it.
    fn line(&mut self, what: &str, object: &Value) {
        self.pending.push(format!("{{\"type\":\"{what}\",\"object\":{object}}}\n"));
    }

    fn bookmark(&mut self, initial_end: bool) {
        self.next_bookmark = Instant::now() + self.shared.watches.every;
        if !self.watched.bookmarks && !initial_end {
            return;
        }
        let mut object = self.watched.shape.bare();
        let mut metadata = json!({"resourceVersion": self.at.to_string(), "creationTimestamp": null});
        if initial_end && let Some(fields) = metadata.as_object_mut() {
            fields.insert("annotations".to_owned(), json!({ INITIAL_EVENTS_END: "true" }));
        }
        if let Some(fields) = object.as_object_mut() {
            fields.insert("metadata".to_owned(), metadata);
        }
        self.line("BOOKMARK", &object);
    }

    fn fail(&mut self, error: &ApiError) {
        self.line("ERROR", &error.status());
        self.over = true;
    }
}
