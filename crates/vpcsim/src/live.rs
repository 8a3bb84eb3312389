//! A model with a clock: what the servers and the fabric share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::Instant;

use crate::model::{ApiError, CallFailure, Model, Outcome, Request, State};

/// How long a call waits for the packets to follow.
const FOLLOW: Duration = Duration::from_secs(10);

/// A model whose time is the runtime's. Clones share it.
///
/// The clock is tokio's, so a test with a paused clock runs the servers in virtual time.
#[derive(Debug, Clone)]
pub struct LiveModel {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    model: Mutex<Model>,
    began: Instant,
    version: watch::Sender<u64>,
    /// The version that the packets follow, where there are packets.
    followed: watch::Sender<Option<u64>>,
}

impl LiveModel {
    /// Starts the clock of `model`: it is 0 now, and its calendar is the system's, because clients compare what they are
    /// told (when credentials expire) with their own.
    #[must_use]
    pub fn new(mut model: Model) -> Self {
        if let Ok(since_1970) = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
            model.settings_mut().epoch = since_1970;
        }
        let (version, _) = watch::channel(model.version());
        let (followed, _) = watch::channel(None);
        Self { inner: Arc::new(Inner { model: Mutex::new(model), began: Instant::now(), version, followed }) }
    }

    /// The time since the world began.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.inner.began.elapsed()
    }

    /// Reads or changes the model as of now. It is locked for that long, so `look` does nothing slow.
    pub fn with<T>(&self, look: impl FnOnce(&mut Model, Duration) -> T) -> T {
        let mut model = self.lock();
        let now = self.now();
        model.settle(now);
        let value = look(&mut model, now);
        self.publish(&model);
        value
    }

    /// What is true now, and when that is.
    #[must_use]
    pub fn snapshot(&self) -> (Arc<State>, Duration) {
        self.with(|model, now| (model.snapshot(), now))
    }

    /// Calls EC2 and waits as long as EC2 takes. Where no answer ever comes, this comes back after
    /// [`Outcome::answer_after`] all the same: how long a caller waits in vain is its own affair.
    pub async fn call(&self, caller: &str, request: impl Into<Request>) -> Outcome {
        let request = request.into();
        let outcome = self.with(|model, now| model.call_from(caller, request, now));
        if !outcome.answer_after.is_zero() {
            tokio::time::sleep(outcome.answer_after).await;
        }
        self.settled().await;
        outcome
    }

    /// Says that the packets follow the model up to `version`; from now on calls wait for them to do so.
    pub fn followed(&self, version: u64) {
        self.inner.followed.send_replace(Some(version));
    }

    /// Waits until the packets, where there are any, follow what is true now. Not for ever: what is wrong with them is
    /// told elsewhere.
    pub async fn settled(&self) {
        let version = self.with(|model, _| model.version());
        let mut followed = self.inner.followed.subscribe();
        let caught_up = followed.wait_for(|done| done.is_none_or(|done| done >= version));
        if tokio::time::timeout(FOLLOW, caught_up).await.is_err() {
            tracing::warn!(version, "the packets do not follow the model");
        }
    }

    /// Notes a call that never became a request.
    pub fn refused(&self, caller: &str, action: &str, error: &ApiError) {
        self.with(|model, now| model.record_refused(caller, action, error, now));
    }

    /// Waits until the state may differ from what it was at version `version` and time `since`: because of a call, or
    /// because a link came or went.
    pub async fn changed(&self, version: u64, since: Duration) {
        let mut versions = self.inner.version.subscribe();
        loop {
            let (current, next) = self.with(|model, _| (model.version(), model.next_change(since)));
            let due = next.is_some_and(|time| time <= self.now());
            if current != version || due {
                return;
            }
            let timer = async {
                match next {
                    Some(time) => tokio::time::sleep_until(self.inner.began + time).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = versions.changed() => if changed.is_err() { return },
                () = timer => {}
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Model> {
        // A panic in the middle of a change leaves a state that the next call can go on with: changes are made on a
        // copy.
        self.inner.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, model: &Model) {
        let version = model.version();
        self.inner.version.send_if_modified(|seen| std::mem::replace(seen, version) != version);
    }
}

impl Outcome {
    /// The error that a caller sees, if it sees one.
    #[must_use]
    pub fn error(&self) -> Option<&ApiError> {
        match &self.result {
            Err(CallFailure::Api(error)) => Some(error),
            Err(CallFailure::NoAnswer) | Ok(_) => None,
        }
    }
}

/// A point in time since 1970 as EC2 writes it, e.g. `2026-01-01T00:00:00.000Z`.
#[must_use]
pub fn iso8601(since_1970: Duration) -> String {
    let seconds = since_1970.as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (rest / 3600, rest % 3600 / 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since_1970.subsec_millis())
}

/// Year, month and day of a day since 1970 (Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days.saturating_add(719_468);
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Settings;
    use crate::model::api::{CreateNetworkInterface, CreateSubnet};
    use crate::model::state::Tags;

    #[test]
    fn times_are_written_as_ec2_does() {
        assert_eq!(iso8601(Duration::ZERO), "1970-01-01T00:00:00.000Z");
        assert_eq!(iso8601(Duration::from_millis(951_782_400_123)), "2000-02-29T00:00:00.123Z");
        assert_eq!(iso8601(Duration::from_secs(1_767_225_599)), "2025-12-31T23:59:59.000Z");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_takes_its_time_and_wakes_who_waits() {
        let mut model = Model::new(Settings { throttle: false, ..Settings::aws() });
        let vpc = model.add_vpc(&["10.0.0.0/16".parse().unwrap()], None, Tags::new()).unwrap();
        let cidr = "10.0.0.0/24".parse().unwrap();
        let subnet = CreateSubnet { vpc, cidr, ipv6_cidr: None, availability_zone: None, tags: Tags::new() };
        let subnet = model.add_subnet(&subnet, false).unwrap();
        let version = model.version();
        let live = LiveModel::new(model);
        let waiter = tokio::spawn({
            let live = live.clone();
            async move { live.changed(version, Duration::ZERO).await }
        });
        let before = Instant::now();
        let outcome = live.call("test", CreateNetworkInterface::new(subnet)).await;
        assert!(outcome.result.is_ok());
        assert_eq!(outcome.error(), None);
        assert!((Duration::from_millis(500)..Duration::from_millis(1100)).contains(&before.elapsed()));
        waiter.await.unwrap();
    }
}
