//! What one node does for all: it deletes the ENIs that nodes which are gone have left behind.

use std::collections::BTreeSet;
use std::time::Duration;

use sluice_contract::id::{EniId, InstanceId};
use sluice_ipamd_core::cloud::{Api, CloudErrorKind, Ec2Eni};
use sluice_ipamd_core::leak::{LOOK_EVERY, Search, made_for};
use sluice_ipamd_core::op::Failure;
use tokio::time::Instant;

use super::jobs::Job;
use super::{Daemon, Timer};
use crate::cloud::Cloud;
use crate::cluster::{About, Weight};
use crate::executor::Executor;
use crate::kernel::Kernel;
use crate::log::ErrorChain;

/// The search, while this node is the one that searches.
#[derive(Debug)]
pub(super) struct Searching {
    cluster: String,
    search: Search,
    pub(super) timer: Timer,
}

/// What EC2 showed at one look.
#[derive(Debug)]
pub(super) struct Look {
    enis: Vec<Ec2Eni>,
    living: BTreeSet<InstanceId>,
}

impl<C: Cloud, K: Kernel> Daemon<C, K> {
    /// Whether this node is the one of the cluster that does what one has to do.
    pub(super) fn elected(&mut self, elected: bool) {
        let config = &self.parts.config;
        self.parts.metrics.elected(elected);
        // In IMDS-only mode EC2 is never asked.
        self.resolving.elected(elected && !config.pool.imds_only);
        if !elected {
            self.searching = None;
        } else if self.searching.is_none() && config.leaked_eni_cleanup {
            let Some(cluster) = config.pool.cluster_name.clone() else {
                tracing::warn!("CLUSTER_NAME is not set: ENIs that nodes leave behind are not deleted");
                // The log of whichever node is elected is not looked at.
                let message = "CLUSTER_NAME is not set: ENIs that nodes leave behind cannot be told from other clusters', \
                               and nobody deletes them; set it to the cluster's name (env.CLUSTER_NAME of the chart)";
                self.notice(About::Node, Weight::Warning, "ClusterNameNotSet", message.to_owned());
                return;
            };
            let timer = Timer::due(Instant::now(), LOOK_EVERY);
            self.searching = Some(Searching { cluster, search: Search::default(), timer });
        }
    }

    /// Looks, if it is time to.
    pub(super) fn search(&mut self, now: Instant) {
        let Some(searching) = &mut self.searching else { return };
        if searching.timer.begin(now) {
            let cluster = searching.cluster.clone();
            self.spawn(Job::Leaks(cluster));
        }
    }

    /// What a look showed.
    pub(super) fn looked(&mut self, looked: Result<Look, Failure>) {
        let now = Instant::now();
        // It may have been another's turn meanwhile.
        let Some(searching) = &mut self.searching else { return };
        let look = match looked {
            Ok(look) => look,
            Err(failure) => {
                tracing::warn!(error = %failure.error, "ENIs that are left behind could not be looked for");
                self.parts.metrics.error("search");
                return searching.timer.failed(now, failure.retry_after, &mut self.random);
            }
        };
        searching.timer.succeeded(now);
        let leaked = searching.search.look(&look.enis, &searching.cluster, &look.living, self.parts.clock.now());
        let (cluster, alone) = (searching.cluster.clone(), searching.search.alone());
        self.parts.metrics.leaks_seen(alone);
        for eni in leaked {
            tracing::info!(%eni, "an ENI of an instance that is gone is deleted");
            self.spawn(Job::Reap(eni, cluster.clone()));
        }
    }

    /// What became of an ENI that had leaked. One that could not be deleted is found again by the next look.
    pub(super) fn reaped(&self, eni: &EniId, reaped: &Result<bool, Failure>) {
        match reaped {
            Ok(true) => {
                self.parts.metrics.leak_deleted();
                let message = format!("{eni} was deleted: it was attached to nothing, and its instance is gone");
                self.notice(About::Node, Weight::Normal, "LeakedENIDeleted", message);
            }
            Ok(false) => tracing::info!(%eni, "it is used, or gone, by now"),
            Err(failure) => {
                self.parts.metrics.error("reap");
                let error = &failure.error;
                if error.kind == CloudErrorKind::Timeout && error.api == Api::DeleteNetworkInterface {
                    tracing::warn!(%eni, error = %ErrorChain(error), "EC2 does not say whether it was deleted: the next look does");
                } else {
                    tracing::warn!(%eni, error = %ErrorChain(error), "it could not be deleted");
                }
            }
        }
    }
}

/// Asks EC2 which ENIs of a cluster are attached to nothing, and which of their instances live.
pub(super) async fn look<C: Cloud>(executor: &Executor<C>, cluster: &str) -> Result<Look, Failure> {
    let cloud = executor.cloud();
    let enis = executor.call(Api::DescribeNetworkInterfaces, cloud.unattached_enis(cluster)).await?;
    let instances: BTreeSet<InstanceId> = enis.iter().filter_map(|eni| made_for(eni, cluster)).collect();
    let living = if instances.is_empty() {
        BTreeSet::new()
    } else {
        executor.call(Api::DescribeInstances, cloud.living(&instances)).await?
    };
    Ok(Look { enis, living })
}

/// Deletes an ENI, unless EC2 says by now that somebody uses it. Whether it was deleted.
pub(super) async fn reap<C: Cloud>(executor: &Executor<C>, eni: &EniId, cluster: &str) -> Result<bool, Failure> {
    let cloud = executor.cloud();
    let described =
        executor.call(Api::DescribeNetworkInterfaces, cloud.describe_enis(std::slice::from_ref(eni))).await?;
    let alone = described.iter().any(|found| found.eni == *eni && made_for(found, cluster).is_some());
    if alone {
        executor.call(Api::DeleteNetworkInterface, cloud.delete_eni(eni)).await?;
    }
    Ok(alone)
}

/// The pause after a look that ended badly.
pub(super) const AGAIN: Duration = Duration::from_secs(60);
