//! What names were seen to resolve to, told to policyd, which writes it to the kernel's maps.
//!
//! An answer is held until the gates know its addresses: then the first packet to one of them is judged by the rules that
//! mean the name. What was told is remembered for all worker threads, so that a name that is asked for again, by whichever
//! pod, is not waited for; names that are asked for often stay remembered, however many others somebody makes up.
//!
//! Without policyd known names go on: [`Alone`] writes addresses itself as far as it saw policyd do the same.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::Shared;
use moka::sync::Cache;
use sluice_policy_core::cluster::PodKey;
use sluice_policy_core::l7::dns::{Name, NamePattern};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

pub mod alone;

pub use self::alone::Alone;

/// Resolutions that may wait for the connection to policyd. What there is no room for is released without a wait.
const ASKS: usize = 4_096;
/// Names that are remembered to have been told, and names of which a thread remembers whether a rule means them. What falls
/// out is told once more.
const REMEMBERED: usize = 16_384;
/// How long a name is remembered that nobody asks for.
const FORGOTTEN: Duration = Duration::from_secs(3_600);
/// How soon a name that policyd had no room for is told again.
const AGAIN: Duration = Duration::from_secs(5);

/// What policyd has to be told of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The patterns that some rule in force has for names.
    pub patterns: Vec<NamePattern>,
    /// How long an address is kept at least, whatever its record says.
    pub least: Duration,
    /// The identities that addresses of names have.
    pub classes: Vec<Class>,
}

/// What an address becomes by its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Class {
    /// The identity that it has without a name: what the map `ipcache` says.
    pub base: u32,
    /// The patterns that mean its names.
    pub patterns: Vec<NamePattern>,
    /// The identity that it has then.
    pub identity: u32,
}

/// A name that resolved to addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolution {
    /// The pod that asked.
    pub pod: PodKey,
    /// The name that it asked for.
    pub name: Name,
    /// All addresses in the answer.
    pub addresses: Arc<[IpAddr]>,
    /// For how many seconds.
    pub ttl: u32,
}

/// A resolution on its way to policyd.
#[derive(Debug)]
pub struct Ask {
    /// What is told.
    pub resolution: Resolution,
    /// To be told whether policyd keeps it, once the kernel's maps have it. Dropped: there is no policyd.
    pub done: oneshot::Sender<bool>,
}

/// The end of the connection to policyd.
#[derive(Debug)]
pub struct Link {
    /// What is to be told.
    pub asks: mpsc::Receiver<Ask>,
    /// What policyd wants to be told of.
    pub wanted: watch::Sender<Arc<Wanted>>,
}

/// Counts, since the start.
#[derive(Debug, Default)]
pub struct Counters {
    told: AtomicU64,
    known: AtomicU64,
    late: AtomicU64,
    full: AtomicU64,
    not_kept: AtomicU64,
    alone: AtomicU64,
    unwritten: AtomicU64,
}

impl Counters {
    fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Each with its name and meaning.
    #[must_use]
    pub fn each(&self) -> [(&'static str, &'static str, u64); 7] {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            ("sluice_proxy_names_told", "Resolutions that policyd was told of", get(&self.told)),
            ("sluice_proxy_names_known", "Answers whose addresses the gates knew already", get(&self.known)),
            ("sluice_proxy_names_late", "Answers released before the gates knew their addresses", get(&self.late)),
            ("sluice_proxy_names_overflowed", "Resolutions not told: too many waited", get(&self.full)),
            ("sluice_proxy_names_not_kept", "Resolutions that policyd had no room for", get(&self.not_kept)),
            ("sluice_proxy_names_alone", "Resolutions written without policyd", get(&self.alone)),
            (
                "sluice_proxy_names_unwritten",
                "Resolutions not written without policyd: it had never written one like them",
                get(&self.unwritten),
            ),
        ]
    }
}

/// Where threads tell what they learn. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Names {
    asks: mpsc::Sender<Ask>,
    wanted: watch::Receiver<Arc<Wanted>>,
    alone: Option<Arc<Alone>>,
    counters: Arc<Counters>,
    told: Cache<Name, Arc<[Told]>>,
}

impl Names {
    /// A handle, and the end that the connection to policyd serves.
    #[must_use]
    pub fn new(alone: Option<Alone>) -> (Self, Link) {
        let (asks, asked) = mpsc::channel(ASKS);
        let (sender, wanted) = watch::channel(Arc::default());
        let told = Cache::builder().max_capacity(REMEMBERED as u64).time_to_idle(FORGOTTEN).build();
        let names = Self { asks, wanted, alone: alone.map(Arc::new), counters: Arc::default(), told };
        (names, Link { asks: asked, wanted: sender })
    }

    /// The counts.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }
}

type Reply = Shared<oneshot::Receiver<bool>>;

/// What one thread learns.
#[derive(Debug)]
pub struct Learner {
    names: Names,
    wanted: Arc<Wanted>,
    /// Whether some rule means a name.
    meant: HashMap<Name, bool>,
}

/// An address that policyd was told of.
#[derive(Debug, Clone)]
struct Told {
    address: IpAddr,
    /// It is known until then; from halfway on it is told again, without a wait.
    until: Instant,
    again: Instant,
    /// The reply, as long as there is none.
    reply: Option<Reply>,
}

/// An answer that is held.
pub struct Held {
    resolution: Resolution,
    reply: Reply,
    names: Names,
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("resolution", &self.resolution).finish_non_exhaustive()
    }
}

/// What became of a resolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Learned {
    /// The gates know it.
    Known,
    /// The time was over before they did; they may know it later.
    Late,
    /// They do not know it: policyd had no room for it, or there is no policyd and no rule of its kind.
    Unknown,
}

impl Held {
    /// The resolution.
    #[must_use]
    pub const fn resolution(&self) -> &Resolution {
        &self.resolution
    }

    /// Waits until the gates know it, `longest` at most.
    pub fn settle(self, longest: Duration) -> impl Future<Output = (Resolution, Learned)> + Send {
        let Self { resolution, reply, names } = self;
        async move {
            let learned = match tokio::time::timeout(longest, reply).await {
                Err(_elapsed) => {
                    Counters::add(&names.counters.late);
                    Learned::Late
                }
                Ok(Ok(true)) => Learned::Known,
                Ok(Ok(false)) => {
                    Counters::add(&names.counters.not_kept);
                    Learned::Unknown
                }
                Ok(Err(_no_policyd)) => names.write_alone(&resolution),
            };
            (resolution, learned)
        }
    }
}

impl Names {
    /// Changes what is remembered of a name, whatever other threads do meanwhile.
    fn change(&self, name: &Name, change: impl FnOnce(&mut Vec<Told>)) {
        self.told.entry_by_ref(name).and_upsert_with(|before| {
            let mut known = before.map_or_else(Vec::new, |entry| entry.into_value().to_vec());
            change(&mut known);
            known.into()
        });
    }

    fn write_alone(&self, resolution: &Resolution) -> Learned {
        let wanted = Arc::clone(&self.wanted.borrow());
        match &self.alone {
            Some(alone) if alone.write(resolution, &wanted) => {
                Counters::add(&self.counters.alone);
                Learned::Known
            }
            _ => {
                Counters::add(&self.counters.unwritten);
                Learned::Unknown
            }
        }
    }
}

impl Learner {
    /// A thread's.
    #[must_use]
    pub fn new(mut names: Names) -> Self {
        let wanted = Arc::clone(&names.wanted.borrow_and_update());
        Self { names, wanted, meant: HashMap::new() }
    }

    /// Takes in what a name resolved to. None: the answer may go at once, because no rule means the name, or because the
    /// gates know all of its addresses.
    pub fn learn(&mut self, pod: &PodKey, name: &Name, addresses: &[IpAddr], ttl: u32) -> Option<Held> {
        if addresses.is_empty() || !self.is_meant(name) {
            return None;
        }
        let now = Instant::now();
        let known = self.names.told.get(name);
        let of = |address: &IpAddr| known.as_deref()?.iter().find(|told| told.address == *address && told.until > now);
        let (mut all_known, mut waiting, mut due) = (true, None, false);
        for address in addresses {
            match of(address) {
                Some(told) => {
                    if told.reply.is_some() {
                        all_known = false;
                        waiting.clone_from(&told.reply);
                    }
                    due |= told.again <= now;
                }
                None => (all_known, due) = (false, true),
            }
        }
        if all_known {
            Counters::add(&self.names.counters.known);
        }
        if all_known && !due {
            return None;
        }
        let resolution = Resolution { pod: pod.clone(), name: name.clone(), addresses: Arc::from(addresses), ttl };
        if due {
            waiting = Some(self.tell(&resolution, now)?);
        }
        if all_known {
            return None;
        }
        Some(Held { resolution, reply: waiting?, names: self.names.clone() })
    }

    fn tell(&mut self, resolution: &Resolution, now: Instant) -> Option<Reply> {
        let (done, reply) = oneshot::channel();
        let ask = Ask { resolution: resolution.clone(), done };
        match self.names.asks.try_send(ask) {
            Ok(()) => Counters::add(&self.names.counters.told),
            // Nobody serves the other end: as good as no policyd. The reply says so when it is waited for.
            Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                Counters::add(&self.names.counters.full);
                return None;
            }
        }
        let reply = reply.shared();
        let lasts = Duration::from_secs(resolution.ttl.into()).max(self.wanted.least);
        self.names.change(&resolution.name, |known| {
            for address in resolution.addresses.iter() {
                let again = now + lasts / 2;
                let new = || Told { address: *address, until: now + lasts, again, reply: Some(reply.clone()) };
                match known.iter_mut().find(|told| told.address == *address) {
                    // Told again while it is known: nobody has to wait.
                    Some(told) if told.until > now && told.reply.is_none() => {
                        (told.until, told.again) = (told.until.max(now + lasts), again);
                    }
                    Some(told) => *told = new(),
                    None => known.push(new()),
                }
            }
            known.retain(|told| told.until > now);
        });
        Some(reply)
    }

    /// Notes what became of a resolution that was held.
    pub fn settled(&mut self, resolution: &Resolution, learned: Learned) {
        // Whoever asks next waits for the same reply.
        if learned == Learned::Late {
            return;
        }
        let now = Instant::now();
        self.names.change(&resolution.name, |known| {
            for told in known.iter_mut().filter(|told| resolution.addresses.contains(&told.address)) {
                told.reply = None;
                if learned == Learned::Unknown {
                    told.again = told.again.min(now + AGAIN);
                    told.until = told.until.min(now + AGAIN);
                }
            }
        });
    }

    fn is_meant(&mut self, name: &Name) -> bool {
        if self.names.wanted.has_changed().unwrap_or(false) {
            self.wanted = Arc::clone(&self.names.wanted.borrow_and_update());
            self.meant.clear();
            self.names.told.invalidate_all();
        }
        if self.wanted.patterns.is_empty() {
            return false;
        }
        if let Some(meant) = self.meant.get(name) {
            return *meant;
        }
        if self.meant.len() >= REMEMBERED {
            self.meant.clear();
        }
        let meant = self.wanted.patterns.iter().any(|pattern| pattern.matches(name));
        self.meant.insert(name.clone(), meant);
        meant
    }
}

#[cfg(test)]
mod tests;
