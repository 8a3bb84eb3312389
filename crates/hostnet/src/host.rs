//! One network namespace, as a thing to look at and to change.
//!
//! It makes no decisions: [`crate::plan::plan`] does.

mod execute;

use std::future::Future;
use std::sync::Arc;

use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;
use tokio::sync::OnceCell;

use crate::desired::{Desired, View};
use crate::netlink::decode::{decode_address, decode_neighbour, decode_route, decode_rule};
use crate::netlink::encode::{addresses_of, neighbours_of, routes_of, rules_of};
use crate::netlink::{LinkError, Names, Netlink, NetlinkError, OpenError};
use crate::netns::{Namespace, NamespaceError, NamespaceThread, ThreadError, ThreadSpec};
use crate::nft::{self, NftError};
use crate::plan::plan;
use crate::state::{NftRuleset, NftTableId, Observed};
use crate::sysctl::{self, SysctlError};

#[cfg(test)]
pub(crate) use execute::request;
pub use execute::{ExecuteError, Executed, OpError};

/// Why a namespace could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// Its links.
    #[error("cannot read the links")]
    Links(#[source] LinkError),
    /// One of its tables.
    #[error("cannot read the {what}")]
    Table {
        /// Which.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: NetlinkError,
    },
    /// A sysctl.
    #[error("cannot read the sysctls")]
    Sysctl(#[source] SysctlError),
    /// An nftables table.
    #[error("cannot read the nftables tables")]
    Nft(#[source] NftError),
    /// The namespace cannot be entered (any more).
    #[error("cannot enter the namespace")]
    Namespace(#[source] NamespaceError),
}

/// Why [`Host::reconcile`] failed.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// It could not be seen what there is.
    #[error("cannot see what the network is like")]
    Observe(#[source] ObserveError),
    /// It could not be changed; what had been changed was taken back.
    #[error("cannot bring the network to what it should be")]
    Execute(#[source] ExecuteError),
}

/// One network namespace. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Host {
    netlink: Netlink,
    namespace: Namespace,
    /// For programs that must run in a namespace other than the caller's. Started when first needed.
    thread: Arc<OnceCell<NamespaceThread>>,
}

impl Host {
    /// The calling thread's namespace.
    ///
    /// # Errors
    /// [`OpenError`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn current() -> Result<Self, OpenError> {
        let namespace = Namespace::current().map_err(OpenError::Namespace)?;
        Ok(Self { netlink: Netlink::open()?, namespace, thread: Arc::default() })
    }

    /// Another namespace; the calling thread stays where it is.
    ///
    /// # Errors
    /// [`OpenError`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn of(namespace: Namespace) -> Result<Self, OpenError> {
        Ok(Self { netlink: Netlink::open_in(&namespace)?, namespace, thread: Arc::default() })
    }

    /// The socket, for what concerns one link.
    #[must_use]
    pub const fn netlink(&self) -> &Netlink {
        &self.netlink
    }

    /// Which namespace this is.
    #[must_use]
    pub const fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Looks at what `view` names, and at all links.
    ///
    /// # Errors
    /// [`ObserveError`]. A table that does not exist is an empty one.
    pub async fn observe(&self, view: &View) -> Result<Observed, ObserveError> {
        let links = self.netlink.links().await.map_err(ObserveError::Links)?;
        let names: Names = links.iter().map(|link| (link.index, link.name.clone())).collect();
        let mut seen = Observed { links, ..Observed::default() };
        for family in &view.addresses {
            for answer in self.table("addresses", RouteNetlinkMessage::GetAddress(addresses_of(*family))).await? {
                if let RouteNetlinkMessage::NewAddress(message) = answer {
                    seen.addresses.extend(decode_address(&message, &names));
                }
            }
        }
        for (family, table) in &view.routes {
            for answer in self.table("routes", RouteNetlinkMessage::GetRoute(routes_of(*family, *table))).await? {
                if let RouteNetlinkMessage::NewRoute(message) = answer {
                    let route = decode_route(&message, &names);
                    seen.routes.extend(route.filter(|route| route.table == *table));
                }
            }
        }
        for family in &view.rules {
            for answer in self.table("rules", RouteNetlinkMessage::GetRule(rules_of(*family))).await? {
                if let RouteNetlinkMessage::NewRule(message) = answer {
                    seen.rules.extend(decode_rule(&message));
                }
            }
        }
        for family in &view.neighbours {
            for proxy in [false, true] {
                let question = RouteNetlinkMessage::GetNeighbour(neighbours_of(*family, proxy));
                for answer in self.table("neighbours", question).await? {
                    if let RouteNetlinkMessage::NewNeighbour(message) = answer {
                        seen.neighbours.extend(decode_neighbour(&message, &names));
                    }
                }
            }
        }
        if !view.sysctls.is_empty() {
            let read = || view.sysctls.iter().filter_map(|key| sysctl::read(key).transpose()).collect();
            let sysctls: Result<_, _> = self.namespace.run(read).map_err(ObserveError::Namespace)?;
            seen.sysctls = sysctls.map_err(ObserveError::Sysctl)?;
        }
        for id in &view.nft {
            let id = id.clone();
            let table = self.within(|| async move { nft::list(&id).await }).await.map_err(ObserveError::Nft)?;
            seen.nft.extend(table);
        }
        Ok(seen)
    }

    async fn table(
        &self,
        what: &'static str,
        question: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, ObserveError> {
        match self.netlink.dump(question).await {
            // A route table comes into being with its first route.
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(Vec::new()),
            // The kernel has no such family.
            Err(error) if matches!(error.errno(), Some(Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT)) => Ok(Vec::new()),
            answers => answers.map_err(|source| ObserveError::Table { what, source }),
        }
    }

    /// Looks, plans, and carries the plan out. Gives what was done; nothing where all was right.
    ///
    /// # Errors
    /// [`ReconcileError`]. After a failure, what had been changed was taken back.
    pub async fn reconcile(&self, desired: &Desired) -> Result<Executed, ReconcileError> {
        let observed = self.observe(&desired.view()).await.map_err(ReconcileError::Observe)?;
        self.execute(&plan(&observed, desired)).await.map_err(ReconcileError::Execute)
    }

    /// A table that should be there: `body` is what stands between the braces of `table FAMILY NAME { ... }`. Loads it as a
    /// dormant draft ([`nft::draft`]) to learn its content, and finds mistakes on the way; `nft` runs for each chain, so keep
    /// the result, and let no two callers learn the same table at once.
    ///
    /// # Errors
    /// [`NftError::Refused`] for a body that `nft` or the kernel does not take; [`NftError::Missing`]; others.
    pub async fn ruleset(&self, id: NftTableId, body: impl Into<String>) -> Result<NftRuleset, NftError> {
        let body = body.into();
        self.within(|| nft::learn(id, body)).await
    }

    /// Runs a future in the namespace: here, if the calling thread is in it, else on a thread that is. Processes
    /// that it starts are in the namespace.
    ///
    /// # Errors
    /// As the future, or [`NftError::Namespace`] and [`NftError::Thread`] when there is no thread to run it.
    pub(crate) async fn within<F, Fut, T>(&self, work: F) -> Result<T, NftError>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, NftError>> + 'static,
        T: Send + 'static,
    {
        let start = || async {
            NamespaceThread::spawn(ThreadSpec::in_net("netns", self.namespace.clone())).map_err(NftError::Namespace)
        };
        if self.namespace.is_current() {
            return work().await;
        }
        let thread = self.thread.get_or_try_init(start).await?;
        thread.run(work).await.unwrap_or_else(|error: ThreadError| Err(NftError::Thread(error)))
    }
}

#[cfg(test)]
mod tests;
