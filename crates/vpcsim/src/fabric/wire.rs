//! The fabric's hands: links, operations, packet filter and sysctls in one namespace.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use sluice_contract::id::{IfName, InvalidId, MacAddr};
use sluice_hostnet::desired::LinkSettings;
use sluice_hostnet::host::{ExecuteError, Host};
use sluice_hostnet::netlink::{LinkError, OpenError, VethSpec};
use sluice_hostnet::netns::{Enter, Namespace, NamespaceError, NamespaceThread, ThreadError, ThreadSpec};
use sluice_hostnet::plan::{Op, Planned};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Why the fabric is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum FabricError {
    /// A namespace could not be made or entered.
    #[error("no namespace for {place}")]
    Namespace {
        /// The router, gateway or ENI.
        place: String,
        /// The reason.
        source: NamespaceError,
    },
    /// A namespace's thread has ended.
    #[error("{place} cannot be entered")]
    Thread {
        /// The router, gateway or ENI.
        place: String,
        /// The reason.
        source: ThreadError,
    },
    /// A file, socket or process made trouble.
    #[error("{place}: {what}")]
    Io {
        /// The router, gateway or ENI.
        place: String,
        /// What was being done.
        what: String,
        /// The system's reason.
        source: io::Error,
    },
    /// There is no netlink socket.
    #[error("{place} cannot be configured")]
    Open {
        /// The router, gateway or ENI.
        place: String,
        /// The reason.
        source: Box<OpenError>,
    },
    /// A link could not be made or taken away.
    #[error("{place}: its links cannot be changed")]
    Link {
        /// The router, gateway or ENI.
        place: String,
        /// The reason.
        source: Box<LinkError>,
    },
    /// Addresses, routes, rules or neighbours could not be changed.
    #[error("{place}: its network cannot be changed")]
    Execute {
        /// The router, gateway or ENI.
        place: String,
        /// The reason.
        source: Box<ExecuteError>,
    },
    /// A name that no link can have.
    #[error("{place}: a link cannot be named so")]
    Name {
        /// The router, gateway or ENI.
        place: String,
        /// The name.
        source: InvalidId,
    },
}

/// One end of a link.
#[derive(Debug, Clone)]
pub(super) struct End {
    /// The name in its namespace.
    pub name: String,
    /// Its MAC.
    pub mac: MacAddr,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// Starts a namespace with loopback up and `sysctls`, given relative to `net`.
pub(super) async fn start(
    place: &str,
    sysctls: &'static [(&'static str, &'static str)],
) -> Result<Arc<NamespaceThread>, FabricError> {
    let spec = ThreadSpec { name: place.chars().take(15).collect(), net: Enter::New, ..ThreadSpec::default() };
    let thread =
        NamespaceThread::spawn(spec).map_err(|source| FabricError::Namespace { place: place.into(), source })?;
    let written = thread.run(move || async move {
        for (key, value) in sysctls {
            std::fs::write(Path::new("/proc/sys/net").join(key), value)
                .map_err(|error| io::Error::new(error.kind(), format!("{key}: {error}")))?;
        }
        io::Result::Ok(())
    });
    let io = |what: &str, source| FabricError::Io { place: place.into(), what: what.into(), source };
    let lost = |source| FabricError::Thread { place: place.into(), source };
    written.await.map_err(lost)?.map_err(|source| io("its sysctls", source))?;
    loopback_up(place, thread.net()).await?;
    Ok(Arc::new(thread))
}

/// Access to one namespace.
#[derive(Debug, Clone)]
pub(super) struct Wire {
    place: String,
    host: Host,
    thread: Arc<NamespaceThread>,
}

impl Wire {
    /// Access to the namespace of `thread`; `place` names it in errors.
    pub(super) fn open(place: &str, thread: Arc<NamespaceThread>) -> Result<Self, FabricError> {
        let host = Host::of(thread.net().clone())
            .map_err(|source| FabricError::Open { place: place.into(), source: Box::new(source) })?;
        Ok(Self { place: place.into(), host, thread })
    }

    /// Makes a link from here to `there`. The near end is up, the far end down.
    pub(super) async fn plug(&self, near: &End, far: &End, there: &Namespace) -> Result<(), FabricError> {
        let name = |name: &str| IfName::new(name).map_err(|source| self.bad_name(source));
        let (near_name, far_name) = (name(&near.name)?, name(&far.name)?);
        let spec = VethSpec {
            name: &near_name,
            mac: Some(near.mac),
            up: true,
            peer_name: &far_name,
            peer_mac: Some(far.mac),
            peer_namespace: Some(there),
            mtu: far.mtu,
        };
        let netlink = self.host.netlink();
        let link = netlink.create_veth(&spec).await.map_err(|source| self.link(source))?;
        if near.mtu != far.mtu {
            netlink.set_link(link.index, None, Some(near.mtu)).await.map_err(|source| self.link(source))?;
        }
        // Proxy ARP answers after a random delay of up to 0.8 s unless told otherwise; a namespace has no default to
        // set.
        let key = format!("/proc/sys/net/ipv4/neigh/{near_name}/proxy_delay");
        self.run(key.clone(), move || async move { std::fs::write(key, "0") }).await
    }

    /// Takes a link away, at both ends.
    pub(super) async fn unplug(&self, link: &str) -> Result<(), FabricError> {
        let name = IfName::new(link).map_err(|source| self.bad_name(source))?;
        let netlink = self.host.netlink();
        match netlink.link_by_name(&name).await.map_err(|source| self.link(source))? {
            Some(link) => netlink.delete_link(link.index).await.map_err(|source| self.link(source)),
            // It went with the namespace at its other end.
            None => Ok(()),
        }
    }

    /// Switches a link on.
    pub(super) async fn up(&self, link: &str) -> Result<(), FabricError> {
        up(&self.place, &self.host, link).await
    }

    /// Carries operations out.
    pub(super) async fn apply(&self, ops: Vec<Planned>) -> Result<(), FabricError> {
        execute(&self.place, &self.host, &ops).await
    }

    /// Runs an nft script as one transaction.
    pub(super) async fn nft(&self, script: String) -> Result<(), FabricError> {
        self.feed("nft", &["-f", "-"], script).await.map(drop)
    }

    /// What the source check refused: link, source, destination, packets.
    pub(super) async fn dropped(&self) -> Result<Vec<(String, IpAddr, IpAddr, u64)>, FabricError> {
        let mut dropped = Vec::new();
        for words in
            [&["-j", "list", "set", "ip", "vpcsim", "dropped"], &["-j", "list", "set", "ip6", "vpcsim", "dropped"]]
        {
            let list = self.feed("nft", words, String::new()).await?;
            let list: serde_json::Value = serde_json::from_slice(&list).map_err(|error| {
                self.io("nft lists no JSON".into(), io::Error::new(io::ErrorKind::InvalidData, error))
            })?;
            dropped.extend(parse_dropped(&list));
        }
        Ok(dropped)
    }

    /// Makes a future in the namespace and drives it.
    pub(super) async fn run<F: Future<Output = io::Result<()>> + 'static>(
        &self,
        what: String,
        make: impl FnOnce() -> F + Send + 'static,
    ) -> Result<(), FabricError> {
        let done = self.thread.run(make).await;
        done.map_err(|source| FabricError::Thread { place: self.place.clone(), source })?
            .map_err(|source| self.io(what, source))
    }

    pub(super) fn bad_name(&self, source: InvalidId) -> FabricError {
        FabricError::Name { place: self.place.clone(), source }
    }

    fn link(&self, source: LinkError) -> FabricError {
        FabricError::Link { place: self.place.clone(), source: Box::new(source) }
    }

    fn io(&self, what: String, source: io::Error) -> FabricError {
        FabricError::Io { place: self.place.clone(), what, source }
    }

    async fn feed(
        &self,
        program: &'static str,
        args: &'static [&'static str],
        script: String,
    ) -> Result<Vec<u8>, FabricError> {
        let what = format!("{program} refused: {}", script.chars().take(400).collect::<String>());
        let run = move || async move {
            let mut command = Command::new(program);
            command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
            let mut child = command.spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(script.as_bytes()).await?;
            }
            let output = child.wait_with_output().await?;
            if output.status.success() {
                Ok(output.stdout)
            } else {
                Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
            }
        };
        let done = self.thread.run(run).await;
        done.map_err(|source| FabricError::Thread { place: self.place.clone(), source })?
            .map_err(|source| self.io(what, source))
    }
}

/// Carries operations out in a namespace that has a thread of its own, or none.
pub(super) async fn execute(place: &str, host: &Host, ops: &[Planned]) -> Result<(), FabricError> {
    if ops.is_empty() {
        return Ok(());
    }
    let done = host.execute(ops).await;
    done.map(drop).map_err(|source| FabricError::Execute { place: place.into(), source: Box::new(source) })
}

/// Switches a link on.
async fn up(place: &str, host: &Host, link: &str) -> Result<(), FabricError> {
    let dev = IfName::new(link).map_err(|source| FabricError::Name { place: place.into(), source })?;
    let settings = |up| LinkSettings { dev: dev.clone(), up: Some(up), mtu: None };
    let op = Op::SetLink { to: settings(true), before: settings(false) };
    execute(place, host, &[Planned::new(op, "it carries packets")]).await
}

/// Switches the loopback of a namespace on.
pub(crate) async fn loopback_up(place: &str, namespace: &Namespace) -> Result<(), FabricError> {
    up(place, &visit(place, namespace)?, "lo").await
}

/// Access to a namespace that something else lives in.
pub(super) fn visit(place: &str, namespace: &Namespace) -> Result<Host, FabricError> {
    let opened = Host::of(namespace.clone());
    opened.map_err(|source| FabricError::Open { place: place.into(), source: Box::new(source) })
}

fn parse_dropped(list: &serde_json::Value) -> Vec<(String, IpAddr, IpAddr, u64)> {
    let sets = list.get("nftables").and_then(serde_json::Value::as_array).into_iter().flatten();
    let elements = sets.filter_map(|item| item.get("set")?.get("elem")?.as_array()).flatten();
    let parsed = elements.filter_map(|element| {
        let element = element.get("elem")?;
        let [link, source, destination] = element.get("val")?.get("concat")?.as_array()?.as_slice() else {
            return None;
        };
        let packets = element.get("counter").and_then(|c| c.get("packets")?.as_u64()).unwrap_or(1);
        Some((link.as_str()?.to_owned(), source.as_str()?.parse().ok()?, destination.as_str()?.parse().ok()?, packets))
    });
    parsed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_refused_packets_is_read() {
        let list = serde_json::json!({"nftables": [
            {"metainfo": {"version": "1.0.6"}},
            {"set": {"name": "dropped", "elem": [
                {"elem": {"val": {"concat": ["r1", "10.0.1.9", "10.0.2.1"]}, "counter": {"packets": 3, "bytes": 180}}}
            ]}}
        ]});
        let expected = ("r1".to_owned(), IpAddr::from([10, 0, 1, 9]), IpAddr::from([10, 0, 2, 1]), 3);
        assert_eq!(parse_dropped(&list), [expected]);
        assert_eq!(parse_dropped(&serde_json::json!({})), []);
    }
}
