//! The policy agent of a node: it keeps the gates of the node's pods as the cluster's policies want them, and has a gate
//! ready before a pod's first packet.
//!
//! ```text
//! source (Kubernetes API, or files) ── Told ──> daemon's loop ── Operation ──> gates in the kernel
//!                                                 ▲      │ the engine of policy-core
//!              sluice-policy ── ADD, DEL ──> rpc ──┘      └── endpoints, checkpoint, journal on disk
//! ```
//!
//! One task owns the state. The [`cluster::Cluster`] and [`datapath::Datapath`] seams let it run in virtual time against
//! models as it runs on a node.
//!
//! `unsafe` is needed to have tokio wait for a file descriptor, in one place.

pub mod cluster;
pub mod config;
mod daemon;
pub mod datapath;
mod flows;
mod gates;
mod http;
mod inbox;
mod journal;
mod links;
mod metrics;
mod names;
mod outbox;
mod proxy;
mod registry;
pub mod run;
mod store;
pub mod view;

#[cfg(test)]
mod testing;

pub use config::Config;
pub use flows::{Export, TlsFiles};
pub use run::{RunError, run};
pub use sluice_daemon::log;
pub use sluice_daemon::rpc::ListenError;
pub use store::StoreError;
