//! How Sluice's daemons speak to the Kubernetes API: what does not depend on what they read there.
//!
//! ```text
//! discover ── which kinds are served ──> reflect, one for each kind: list, then watch, then on from where it broke off
//!                                          │ keep: what nobody looks at is dropped while it is decoded
//!                                          ▼
//!                                        Objects: what was told of a kind, and so what there is to tell ──> Tell
//! event, lease: what goes back
//! ```
//!
//! A daemon gives the [`Kind`]s that it reads, says by [`Objects`] what an object means to it, and starts a [`Session`].
//! Objects are read as JSON; of one only what its kind [`Keep`]s is decoded.
//!
//! Nothing is told to be gone because it is not found: a kind that is missing must be missing twice, an
//! object that a list lacks must be older than the list, and a list with an element that cannot be told by name takes nothing
//! away.
#![forbid(unsafe_code)]

mod backoff;
mod call;
mod discover;
mod event;
mod fresh;
mod keep;
mod kind;
mod known;
mod lease;
mod line;
mod list;
mod metrics;
mod reflect;
mod session;
mod timing;

pub use backoff::{Backoff, Dice, hash};
pub use call::{Api, CallError, ConnectError, JSON, connect};
pub use event::{Events, Outgoing, Reporter, Weight};
pub use keep::Keep;
pub use kind::{Kind, Scope, escaped};
pub use known::{Known, number};
pub use lease::Lease;
pub use list::ListError;
pub use metrics::Metrics;
pub use session::{Objects, Session, Tell, Verb, Watched};
pub use timing::{Options, Timing};
