//! The `Cluster` seam: what ipamd learns of Kubernetes, and what it says there.
//!
//! A source tells; it decides nothing, and the daemon's loop takes in what it tells as it takes in everything else. What the
//! loop reports goes the other way. Neither waits for the other. The implementations are the Kubernetes API (the package
//! `sluice-ipamd-kube`), [`directory::Directory`], a directory of YAML files, and [`Nowhere`], for nodes that need nothing of a
//! cluster.

pub mod directory;
pub mod meaning;
pub mod objects;
mod quantity;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use sluice_contract::id::PodRef;
use sluice_daemon::metrics::Named;
use sluice_ipamd_core::cloud::EniConfig;
use sluice_ipamd_core::shared::Group;
use tokio::sync::mpsc;

use crate::config::overrides::Overrides;

/// What may wait between a source and the loop.
pub const TOLD_LIMIT: usize = 64;

/// Reports that may wait for the source; what is too much is counted and not made.
pub const REPORT_LIMIT: usize = 256;

/// What a source tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Whether new pods may be scheduled to this node.
    Schedulable(bool),
    /// How many pods this node's kubelet takes, those of the host's network among them.
    MaxPods(u32),
    /// This node's ENIConfig is another than before, or there is none.
    EniConfig(Option<EniConfig>),
    /// The pods that are bound to this node, want an address of their own and have no sandbox yet: all of them each time.
    PodsBound(BTreeSet<PodRef>),
    /// What the pods that are bound to this node say of a branch ENI, all of them each time: those too that say nothing. Told only
    /// where security groups of pods are on.
    Claims(Claims),
    /// The settings that the cluster has for this node, all of them each time; or what is wrong with them.
    Overrides(Result<Overrides, Vec<String>>),
    /// Whether this node is the one of the cluster that does what one has to do.
    Elected(bool),
    /// The groups of EC2's interfaces that policies name, by the names of the objects that stand for them: all of them each
    /// time. Only the elected node is told.
    Groups(BTreeMap<String, Group>),
    /// The private networks beside the VPC that its route tables lead to, as the elected node has found them.
    Routes(Vec<Ipv4Net>),
}

/// What a pod says of a branch ENI.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claim {
    /// The UID that its sandbox has, if it is known.
    pub uid: Option<String>,
    /// Whether it is to have one: it asks for the resource, or has the annotation.
    pub wants: bool,
    /// The annotation, once it is there.
    pub annotation: Option<String>,
}

/// What pods say of branch ENIs, by namespace and name.
pub type Claims = BTreeMap<(String, String), Claim>;

/// Something that AWS's VPC resource controller is asked to do for this node (`spec.features` of its CNINode).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Feature {
    /// `name`.
    pub name: String,
    /// `value`; empty where there is none.
    pub value: String,
}

/// What an operator should see beside the objects of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// Something has happened: an Event.
    Notice(Notice),
    /// Whether pods can have addresses on this node is other than before: a condition.
    Condition(Condition),
    /// The elected node has asked EC2 for all of the cluster.
    Shared(Shared),
    /// What is wanted of AWS's VPC resource controller for this node, beside what others want of it.
    Features(Vec<Feature>),
    /// What pods' annotations are to say of their addresses.
    PodIps(PodIps),
}

/// Addresses of pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodIps {
    /// By pod: that of its first interface first. None: it has no address any more.
    pub all: BTreeMap<PodRef, Vec<IpAddr>>,
    /// They were reported before this daemon's start, so that most pods say so already. All pods of the node have been told by
    /// then.
    pub again: bool,
}

/// What EC2 said, for all nodes: what is left out is not known better than before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shared {
    /// The CIDRs that stand for groups, by the names of their objects.
    pub groups: BTreeMap<String, Vec<IpNet>>,
    /// The private networks that the VPC's route tables lead to.
    pub routes: Option<Vec<Ipv4Net>>,
}

/// Something that has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// What it is about.
    pub about: About,
    /// How much it matters.
    pub weight: Weight,
    /// `reason` of the Event: one word in CamelCase, constant.
    pub reason: &'static str,
    /// What happened and what to do.
    pub message: String,
}

/// An object of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum About {
    /// This node.
    Node,
    /// A pod.
    Pod(PodRef),
}

/// How much something matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// For the record.
    Normal,
    /// Somebody has to do something.
    Warning,
}

/// Whether pods can have addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// They can.
    pub holds: bool,
    /// Why, or why not: one word in CamelCase.
    pub reason: &'static str,
    /// The same in words, with what to do.
    pub message: String,
}

/// A source.
pub trait Cluster: Send + Sync + 'static {
    /// Tells what there is and what changes, and passes on what is reported, until nobody listens.
    fn watch(&self, told: mpsc::Sender<Told>, reports: mpsc::Receiver<Report>) -> impl Future<Output = ()> + Send;

    /// Registers the metrics of its own.
    fn register(&self, _registry: &mut Named) {}
}

/// No cluster: nothing is ever told.
#[derive(Debug, Clone, Copy)]
pub struct Nowhere;

impl Cluster for Nowhere {
    async fn watch(&self, told: mpsc::Sender<Told>, mut reports: mpsc::Receiver<Report>) {
        // The log has them.
        let pass_over = async { while reports.recv().await.is_some() {} };
        tokio::join!(told.closed(), pass_over);
    }
}
