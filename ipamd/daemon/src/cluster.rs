//! The `Cluster` seam: what ipamd learns of Kubernetes.
//!
//! A source tells; it decides nothing, and the daemon's loop takes in what it tells as it takes in everything else. Two
//! implementations exist: [`directory::Directory`], a directory of YAML files, and [`Nowhere`], for nodes that need nothing
//! of a cluster.

pub mod directory;
pub mod objects;

use std::future::Future;

use sluice_ipamd_core::cloud::EniConfig;
use tokio::sync::mpsc;

/// What may wait between a source and the loop.
pub const TOLD_LIMIT: usize = 64;

/// What a source tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Whether new pods may be scheduled to this node.
    Schedulable(bool),
    /// This node's ENIConfig is another than before, or there is none.
    EniConfig(Option<EniConfig>),
}

/// A source.
pub trait Cluster: Send + Sync + 'static {
    /// Tells what there is and what changes, until nobody listens.
    fn watch(&self, told: mpsc::Sender<Told>) -> impl Future<Output = ()> + Send;
}

/// No cluster: nothing is ever told.
#[derive(Debug, Clone, Copy)]
pub struct Nowhere;

impl Cluster for Nowhere {
    async fn watch(&self, told: mpsc::Sender<Told>) {
        told.closed().await;
    }
}
