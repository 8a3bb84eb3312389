//! One kind: list everything, watch what changes, and list again when the watch has lost its place.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep};

use crate::backoff::{Backoff, Dice};
use crate::call::{self, CallError};
use crate::kind::{Kind, Scope, escaped};
use crate::known::number;
use crate::line::{self, Lines};
use crate::list::{ListReader, Part};
use crate::session::{Objects, Served, Session, Tell as _, Verb, Watched};

/// Objects a page. A list from the server's cache comes in one page, whatever is asked for.
const PAGE: usize = 500;

/// A kind that is not found although it is said to be served counts as failing after so many times the time in which a kind
/// that is missing is found to be gone.
const NOT_FOUND: u32 = 5;

/// Why a list or a watch is over.
enum Stop {
    /// Nobody listens any more.
    Closed,
    /// The kind is not served any more, or it is to be asked anew.
    Changed,
    /// The revision that it began at is too old, or what came cannot be read: everything has to be listed.
    Lost,
    Failed(CallError),
}

impl From<CallError> for Stop {
    fn from(error: CallError) -> Self {
        Self::Failed(error)
    }
}

/// How to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// What the server has at hand, though it may be a little old.
    Cached,
    /// Not older than what is known.
    Newer(u64),
    /// As it is now.
    Now,
    /// As it is now, and in one page: the pages took too long.
    Whole,
}

/// The loop of one kind.
pub(crate) struct Reflector<O: Objects> {
    run: Arc<Session<O::Told>>,
    number: usize,
    kind: &'static Kind,
    scope: Scope,
    known: Arc<Mutex<O>>,
    backoff: Backoff,
    dice: Dice,
    mode: Mode,
    not_found: Option<Instant>,
    back: watch::Receiver<u64>,
    /// Its name, and the revision up to which it was told.
    name: Arc<str>,
    upto: u64,
}

impl<O: Objects> Reflector<O> {
    pub(crate) fn new(run: Arc<Session<O::Told>>, number: usize, watched: Watched, known: Arc<Mutex<O>>) -> Self {
        let Watched { kind, scope } = watched;
        let name = format!("{}/{}", kind.group, kind.kind);
        Self {
            backoff: run.backoff(&name),
            dice: run.dice(&name),
            mode: if kind.fresh { Mode::Now } else { Mode::Cached },
            not_found: None,
            back: run.back.subscribe(),
            name: kind.table().into(),
            upto: 0,
            run,
            number,
            kind,
            scope,
            known,
        }
    }

    /// Goes on until nobody listens any more.
    pub(crate) async fn follow(mut self) {
        loop {
            let Some(version) = self.served().await else { return };
            match self.list(version).await {
                Ok(()) => {}
                Err(stop) => {
                    if !self.pause("listing", stop).await {
                        return;
                    }
                    continue;
                }
            }
            self.backoff.reset();
            self.not_found = None;
            if !self.run.up(self.number).await {
                return;
            }
            loop {
                let began = Instant::now();
                match self.watch(version).await {
                    // Servers end watches now and then. One that ends at once is not to be begun again at once.
                    Ok(()) if began.elapsed() > self.run.options.timing.quick => self.backoff.reset(),
                    Ok(()) => tokio::select! {
                        () = sleep(self.backoff.next(None)) => {}
                        Ok(()) = self.back.changed() => {}
                    },
                    Err(Stop::Failed(error)) if error.code() != Some(404) => {
                        if !self.pause("watching", Stop::Failed(error)).await {
                            return;
                        }
                    }
                    Err(stop) => {
                        let revision = self.known.lock().await.revision();
                        self.mode = match revision {
                            0 => Mode::Now,
                            revision => Mode::Newer(revision),
                        };
                        self.run.metrics.relists.inc();
                        if !self.pause("watching", stop).await {
                            return;
                        }
                        break;
                    }
                }
            }
        }
    }

    /// Waits until the kind is served. None: nobody listens any more.
    async fn served(&mut self) -> Option<&'static str> {
        if self.kind.required {
            return self.kind.versions.first().copied();
        }
        let mut served = self.run.served.subscribe();
        loop {
            let found = served.borrow_and_update().as_ref().map(|kinds| kinds.get(&self.number).copied());
            match found {
                Some(Some(version)) => return Some(version),
                Some(None) => {
                    let mut known = self.known.lock().await;
                    let mut out = Vec::new();
                    known.clear(&mut out);
                    self.tell(out).await.ok()?;
                    drop(known);
                    self.mode = Mode::Now;
                    if !self.run.up(self.number).await {
                        return None;
                    }
                }
                None => {}
            }
            served.changed().await.ok()?;
        }
    }

    async fn tell(&self, out: Vec<O::Told>) -> Result<(), Stop> {
        for told in out {
            self.run.told.send(told).await.map_err(|_closed| Stop::Closed)?;
        }
        Ok(())
    }

    /// Waits before the next attempt. Whether there is to be one.
    async fn pause(&mut self, doing: &str, stop: Stop) -> bool {
        let error = match stop {
            Stop::Closed => return false,
            Stop::Changed => return true,
            Stop::Lost => {
                sleep(self.backoff.next(None)).await;
                return !self.run.told.is_closed();
            }
            Stop::Failed(error) => error,
        };
        self.run.metrics.failures.inc();
        // What is no failure of the server: it is only asked in another way.
        let expected = match (error.code(), self.mode) {
            (Some(404), _) if !self.kind.required => {
                self.run.discover.notify_one();
                let since = *self.not_found.get_or_insert_with(Instant::now);
                since.elapsed() < self.run.options.timing.gone_after * NOT_FOUND
            }
            // A token of a continued list is too old: the pages took too long.
            (Some(410), Mode::Now) => {
                self.mode = Mode::Whole;
                true
            }
            // A revision that the server has not seen yet, or never will.
            (Some(410 | 504), Mode::Newer(_) | Mode::Cached) => {
                self.mode = Mode::Now;
                true
            }
            _ => false,
        };
        if !expected {
            let doing = format!("{doing} {}", self.kind.plural);
            if !self.run.down(self.number, &doing, &error).await {
                return false;
            }
        }
        // What a server refuses it refuses; but nobody waits any longer than it is away.
        let refused = matches!(error, CallError::Refused { .. });
        if !refused {
            self.run.away.store(true, Ordering::Relaxed);
        }
        tokio::select! {
            () = sleep(self.backoff.next(error.retry_after())) => {}
            Ok(()) = self.back.changed(), if !refused => self.backoff.reset(),
        }
        !self.run.told.is_closed()
    }

    async fn list(&mut self, version: &str) -> Result<(), Stop> {
        // Not all kinds at once: it would be the moment of the greatest memory.
        let run = Arc::clone(&self.run);
        let _turn = run.lists.acquire().await.map_err(|_closed| Stop::Closed)?;
        self.run.metrics.lists.inc();
        let mut out = Vec::new();
        self.known.lock().await.begin(&mut out);
        self.tell(out).await?;
        let mut token = String::new();
        loop {
            let mut path = self.kind.query(version, &self.scope);
            path.push_str(&match self.mode {
                Mode::Whole => "limit=0".to_owned(),
                _ if !token.is_empty() => format!("limit={PAGE}&continue={}", escaped(&token)),
                Mode::Now => format!("limit={PAGE}"),
                Mode::Cached => format!("limit={PAGE}&resourceVersion=0"),
                Mode::Newer(revision) => {
                    format!("limit={PAGE}&resourceVersion={revision}&resourceVersionMatch=NotOlderThan")
                }
            });
            let page = self.page(&path, version).await?;
            let revision = number(&page, "/resourceVersion");
            token = page.get("continue").and_then(Value::as_str).unwrap_or_default().to_owned();
            if !token.is_empty() {
                continue;
            }
            let mut known = self.known.lock().await;
            if matches!(self.mode, Mode::Now | Mode::Whole) && revision < known.revision() {
                // The server's past is not the one that we know: its storage was restored. Everything is to be read again.
                tracing::warn!(kind = self.kind.plural, "revisions have been set back");
                known.set_back();
                return Err(Stop::Lost);
            }
            let mut out = Vec::new();
            known.end(revision, &mut out);
            Self::told_upto((&self.name, &mut self.upto), &known, &mut out);
            self.tell(out).await?;
            drop(known);
            self.mode = Mode::Now;
            return Ok(());
        }
    }

    /// Reads a page. Its metadata.
    async fn page(&mut self, path: &str, version: &str) -> Result<Value, Stop> {
        // A server that is back does not know what it was asked before.
        self.back.mark_unchanged();
        let mut body = tokio::select! {
            body = self.run.api.get(path, call::JSON) => body?,
            Ok(()) = self.back.changed() => return Err(Stop::Changed),
        };
        let mut reader = ListReader::default();
        let mut metadata = Value::Null;
        while let Some(bytes) = call::part(&mut body, self.run.options.timing.patience).await? {
            self.run.heard();
            let mut parts = Vec::new();
            reader.feed(&bytes, |part| parts.push(part)).map_err(CallError::NoList)?;
            if parts.is_empty() {
                continue;
            }
            let mut known = self.known.lock().await;
            let mut out = Vec::new();
            for part in parts {
                match part {
                    Part::Metadata(json) => {
                        metadata = serde_json::from_slice(&json).map_err(CallError::Garbled)?;
                        known.listed_at(number(&metadata, "/resourceVersion"));
                    }
                    Part::TooLarge => known.garbled("an element", &mut out),
                    Part::Item(json) => match self.kind.keep.read(&json) {
                        Ok(object) => known.item(version, object, &mut out),
                        Err(_) => known.garbled("an element", &mut out),
                    },
                }
            }
            self.count(&mut known, &out);
            self.tell(out).await?;
        }
        reader.finish().map_err(CallError::NoList)?;
        if metadata.get("resourceVersion").is_none() {
            return Err(CallError::Odd("a list without resourceVersion").into());
        }
        Ok(metadata)
    }

    /// What is told goes up to the revision that is known.
    fn told_upto((name, upto): (&Arc<str>, &mut u64), known: &O, out: &mut Vec<O::Told>) {
        let revision = known.revision();
        if *upto != revision {
            *upto = revision;
            out.extend(O::Told::upto(name, revision));
        }
    }

    fn count(&self, known: &mut O, out: &[O::Told]) {
        let events = out.iter().filter(|told| told.is_object()).count();
        self.run.metrics.events.inc_by(events.try_into().unwrap_or(u64::MAX));
        self.run.metrics.malformed.inc_by(known.take_malformed());
    }

    /// One watch, to its end. `Ok`: it ended in good order and can go on where it ended.
    async fn watch(&mut self, version: &str) -> Result<(), Stop> {
        let timing = self.run.options.timing.clone();
        let revision = self.known.lock().await.revision();
        // Not all watches end at once.
        let seconds = self.dice.between(timing.watch, timing.watch * 2).as_secs();
        let path = format!(
            "{}watch=true&allowWatchBookmarks=true&resourceVersion={revision}&timeoutSeconds={seconds}",
            self.kind.query(version, &self.scope)
        );
        let mut served = self.run.served.subscribe();
        let mut reopen = self.run.reopen.subscribe();
        self.run.metrics.watches.inc();
        self.back.mark_unchanged();
        let answer = tokio::select! {
            answer = self.run.api.get(&path, call::JSON) => answer,
            Ok(()) = self.back.changed() => return Ok(()),
        };
        let mut body = match answer {
            Ok(answer) => answer,
            // It begins before what the server remembers, or after all that it knows.
            Err(error) if matches!(error.code(), Some(410)) => return Err(Stop::Lost),
            Err(error @ CallError::Refused { code: 504, .. }) => return Err(self.beyond(error)),
            Err(error) => return Err(error.into()),
        };
        if !self.run.up(self.number).await {
            return Err(Stop::Closed);
        }
        let mut lines = Lines::default();
        loop {
            let next = tokio::select! {
                next = call::part(&mut body, timing.idle) => next,
                () = self.gone(version, &mut served) => return Err(Stop::Changed),
                Ok(()) = reopen.changed() => return Ok(()),
                () = self.run.told.closed() => return Err(Stop::Closed),
            };
            let bytes = match next {
                Ok(Some(bytes)) => bytes,
                // Silence may be a connection that is dead without saying so; that it is cut is no failure as long as
                // the next one comes about.
                Ok(None) | Err(CallError::Slow(_) | CallError::Broken(_)) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            self.run.heard();
            let mut known = self.known.lock().await;
            let mut out = Vec::new();
            let mut stop = None;
            let fed = lines.feed(&bytes, |line| {
                if stop.is_none() {
                    stop = Self::line(self.kind, &mut known, version, line, &mut out);
                }
            });
            self.count(&mut known, &out);
            if fed.is_ok() && stop.is_none() {
                Self::told_upto((&self.name, &mut self.upto), &known, &mut out);
            }
            self.tell(out).await?;
            if fed.is_err() || stop.is_some() {
                return Err(stop.unwrap_or(Stop::Lost));
            }
            self.backoff.reset();
        }
    }

    /// A revision beyond the server's own: a replica that is behind, or a storage that was restored.
    fn beyond(&self, error: CallError) -> Stop {
        match &error {
            CallError::Refused { message, .. } if message.contains("resource version") => Stop::Lost,
            _ => Stop::Failed(error),
        }
    }

    /// Waits until the kind is not served any more in this version.
    async fn gone(&self, version: &str, served: &mut watch::Receiver<Served>) {
        let still = |served: &Served| {
            served.as_ref().is_none_or(|kinds| kinds.get(&self.number).is_some_and(|found| *found == version))
        };
        if self.kind.required || served.wait_for(|served| !still(served)).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// A line of a watch. Why the watch is over, if it is.
    fn line(kind: &Kind, known: &mut O, version: &str, line: &[u8], out: &mut Vec<O::Told>) -> Option<Stop> {
        let Ok(event) = line::read(line, kind.keep) else {
            // What it said is lost: only a list can tell.
            known.garbled("an event", out);
            return Some(Stop::Lost);
        };
        match event.kind.as_str() {
            "ADDED" | "MODIFIED" => known.event(Verb::Is, version, event.object, out),
            "DELETED" => known.event(Verb::Gone, version, event.object, out),
            "BOOKMARK" => known.bookmark(number(&event.object, "/metadata/resourceVersion")),
            "ERROR" => {
                let text = |name: &str| event.object.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
                let code = event.object.get("code").and_then(Value::as_u64).and_then(|code| code.try_into().ok());
                return Some(match code.unwrap_or(500) {
                    410 => Stop::Lost,
                    code => Stop::Failed(CallError::Refused {
                        code,
                        reason: text("reason"),
                        message: text("message"),
                        retry_after: event
                            .object
                            .pointer("/details/retryAfterSeconds")
                            .and_then(Value::as_u64)
                            .map(Duration::from_secs),
                    }),
                });
            }
            other => tracing::debug!(kind = kind.plural, event = other, "an unknown event of a watch"),
        }
        None
    }
}
