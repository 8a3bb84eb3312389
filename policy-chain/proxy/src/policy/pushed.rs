//! Policy as policyd pushes it, for flows as the kernel's maps have them.

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use sluice_contract::proxy::{Snapshot, Update};
use sluice_daemon::log::ErrorChain;
use sluice_policy_bpf::layout::Verdict;
use sluice_policy_core::cluster::PodKey;
use tokio::sync::Notify;

use super::table::Table;
use super::{Lists, Looks, Outcome, Policy, Refused, Rules};
use crate::flow::{Direction, Flow, Protocol};

/// What the gates know. Calls are lookups in the kernel: they wait for nothing.
pub trait Gates: Send + Sync + 'static {
    /// What the gate of the flow's pod says of it; none if it does not know it.
    ///
    /// # Errors
    /// The maps cannot be read.
    fn flow(&self, flow: &Flow, protocol: Protocol) -> Result<Option<Entry>, Unreadable>;

    /// What the egress policy of the pod with the address `own` says of a backend; none if nothing is found where something
    /// has to be.
    ///
    /// # Errors
    /// The maps cannot be read.
    fn judge_backend(&self, own: IpAddr, protocol: Protocol, backend: SocketAddr)
    -> Result<Option<Judged>, Unreadable>;
}

/// The kernel's maps cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the gate's maps cannot be read")]
pub struct Unreadable(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// What its gate says of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The number of the pod's endpoint.
    pub endpoint: u32,
    /// The pod's gate is a dry run: whatever the verdict, the flow passes.
    pub audit: bool,
    /// The pod is locked down: everything is dropped.
    pub locked: bool,
    /// What is said.
    pub judged: Judged,
}

/// A verdict and the decision that it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judged {
    /// What happens to packets.
    pub verdict: Verdict,
    /// The number of the decision, if one decided.
    pub decision: Option<u32>,
}

/// What is known at one moment.
#[derive(Debug)]
struct State<G> {
    table: Table,
    /// The kernel's maps; none before policyd has made them.
    gates: Option<Arc<G>>,
}

/// The policy that is in force.
#[derive(Debug)]
pub struct Pushed<G> {
    state: RwLock<Arc<State<G>>>,
    version: AtomicU64,
    changed: Notify,
    /// Parts of what policyd told that cannot be used.
    faults: AtomicU64,
}

/// Numbers of what is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Sizes {
    /// Lists of application rules.
    pub lists: usize,
    /// Decisions that redirect.
    pub decisions: usize,
    /// Pods.
    pub endpoints: usize,
}

impl<G: Gates> Pushed<G> {
    /// Knows what a snapshot says, and no gates yet.
    #[must_use]
    pub fn new(snapshot: &Snapshot) -> Self {
        Self {
            state: RwLock::new(Arc::new(State { table: Table::of(snapshot), gates: None })),
            version: AtomicU64::new(1),
            changed: Notify::new(),
            faults: AtomicU64::new(0),
        }
    }

    /// Takes a whole update in; when this returns, it is in force.
    pub fn apply(&self, update: &Update) {
        let mut table = self.state().table.clone();
        let faults = table.apply(update);
        self.faults.fetch_add(u64::try_from(faults).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.put(|old| State { table, gates: old.gates.clone() });
    }

    /// From now on flows are looked up here.
    pub fn set_gates(&self, gates: Arc<G>) {
        self.put(|old| State { table: old.table.clone(), gates: Some(gates) });
    }

    /// Whether flows can be looked up.
    #[must_use]
    pub fn has_gates(&self) -> bool {
        self.state().gates.is_some()
    }

    /// Parts of what policyd told, since the start, that cannot be used.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    /// How much is known.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        let [lists, decisions, endpoints] = self.state().table.sizes();
        Sizes { lists, decisions, endpoints }
    }

    fn state(&self) -> Arc<State<G>> {
        Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn put(&self, next: impl FnOnce(&State<G>) -> State<G>) {
        // Whatever took its time is done: the lock is held for two pointers.
        let old = self.state();
        let next = Arc::new(next(&old));
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = next;
        self.version.fetch_add(1, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// The rules that a gate's word means.
    fn meant(state: &State<G>, entry: &Entry, judged: Judged) -> Result<Rules, Refused> {
        let pod = state.table.pod(entry.endpoint).ok_or(Refused::NoPod(entry.endpoint))?;
        match (judged.verdict, judged.decision) {
            (Verdict::Redirect, Some(decision)) => {
                let rules = state.table.rules(pod, decision).ok_or(Refused::NoDecision(decision))?;
                Ok(if entry.audit { dry_run(rules) } else { rules })
            }
            (Verdict::Redirect, None) => Err(Refused::NoFlow),
            // What is deferred is judged by its backend: by the gate there, if the proxy does not know it.
            (Verdict::Allow | Verdict::Defer, decision) => {
                // It comes here so that the dry runs' rules see it; the number's meaning of before may be another.
                let rules = decision.and_then(|decision| state.table.rules(pod, decision));
                let seen = rules.filter(|rules| rules.lists.is_empty() && rules.otherwise.passes);
                Ok(seen.unwrap_or_else(|| passes(pod.clone(), decision)))
            }
            (Verdict::Deny, decision) if entry.audit => Ok(passes(pod.clone(), decision)),
            (Verdict::Deny, decision) => Err(Refused::Denied(match decision {
                Some(decision) => format!("the gate's decision {decision} denies it").into(),
                None => "the gate denies it".into(),
            })),
        }
    }
}

/// Everything passes, and nothing is looked at.
fn passes(pod: PodKey, decision: Option<u32>) -> Rules {
    let reason = match decision {
        Some(decision) => format!("the gate's decision {decision} allows it").into(),
        None => "the gate allows it".into(),
    };
    Rules {
        pod,
        lists: Lists::default(),
        otherwise: Outcome { passes: true, reason },
        audit: None,
        looks: Looks::Nothing,
    }
}

/// The rules at a gate that is a dry run: what all policies say is told beside, and everything passes.
fn dry_run(mut rules: Rules) -> Rules {
    let full = rules.audit.take().unwrap_or_else(|| Arc::new(rules.clone()));
    Rules {
        lists: full.lists.clone(),
        otherwise: Outcome { passes: true, reason: "the pod's gate is a dry run".into() },
        audit: Some(full),
        ..rules
    }
}

impl<G: Gates> Policy for Pushed<G> {
    fn rules(&self, flow: &Flow, protocol: Protocol, backend: SocketAddr) -> Result<Arc<Rules>, Refused> {
        let state = self.state();
        let gates = state.gates.as_ref().ok_or(Refused::NoMaps)?;
        let failed = |error: Unreadable| {
            tracing::error!(error = %ErrorChain(&error), "a flow could not be looked up");
            Refused::NoMaps
        };
        let entry = gates.flow(flow, protocol).map_err(failed)?.ok_or(Refused::NoFlow)?;
        if entry.locked {
            return Err(Refused::Denied("the pod is locked down".into()));
        }
        let translated = flow.direction == Direction::Egress && backend != flow.server;
        let judged = if translated {
            let judged = gates.judge_backend(flow.client.ip(), protocol, backend).map_err(failed)?;
            judged.ok_or_else(|| Refused::Denied("the gate knows no verdict for the backend".into()))?
        } else {
            entry.judged
        };
        Self::meant(&state, &entry, judged).map(Arc::new)
    }

    fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    async fn changed(&self, version: u64) {
        loop {
            let mut changed = pin!(self.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            if self.version() != version {
                return;
            }
            changed.await;
        }
    }
}
