//! A node that the AWS VPC CNI ran on before.
//!
//! The two never run together: while the VPC CNI's daemon answers, this one waits and touches nothing. Then its allocations
//! are believed as far as the kernel shows them: the address lives on the host interface of just that pod. Interfaces, rules,
//! routes and ENIs stand as they are, since they are what this daemon would have made.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use sluice_contract::node::{nic, veth_hash};
use sluice_daemon::aws_node;
use sluice_ipamd_core::aws_node::{Allocation, AwsNodeError, read as read_allocations};
use sluice_ipamd_core::ledger::Owner;

use crate::kernel::Pods;
use crate::log::ErrorChain;
use crate::store::{Store, StoreError};

/// Network cards that allocations are looked for on; no instance type has more.
const CARDS: u32 = 64;

/// Why the VPC CNI's allocations are not used.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    File(#[from] StoreError),
    #[error("{} is not used", path.display())]
    Contents {
        path: PathBuf,
        #[source]
        source: AwsNodeError,
    },
}

/// The VPC CNI's daemon of this node, by the file that holds its allocations.
#[derive(Debug, Clone)]
pub(crate) struct AwsNode(aws_node::AwsNode);

impl AwsNode {
    pub(crate) const fn new(file: PathBuf) -> Self {
        Self(aws_node::AwsNode::new(file))
    }

    /// Returns when no daemon of the VPC CNI answers on this node.
    pub(crate) async fn has_gone(&self) {
        self.0.has_gone().await;
    }

    /// Whether one does.
    pub(crate) async fn serves(&self) -> bool {
        self.0.answers().await.is_some()
    }

    /// The allocations whose addresses live on the host interface of their pod, by address.
    pub(crate) fn owners(&self, pods: &Pods) -> BTreeMap<IpAddr, Owner> {
        let (mut owners, mut left) = (BTreeMap::new(), 0_usize);
        for allocation in self.allocations() {
            let address = allocation.address;
            match owner(allocation, pods) {
                Some(owner) => {
                    owners.insert(address, owner);
                }
                None => left += 1,
            }
        }
        if !owners.is_empty() || left > 0 {
            tracing::info!(pods = owners.len(), gone = left, path = %self.0.file().display(), "the AWS VPC CNI's pods");
        }
        owners
    }

    fn allocations(&self) -> Vec<Allocation> {
        let card = |card: u32| self.0.file().with_file_name(format!("ipam-nic-{card}.json"));
        let files = std::iter::once(self.0.file().to_owned()).chain((1..CARDS).map(card));
        let mut all = Vec::new();
        for path in files {
            match read(&path) {
                Ok(allocations) => all.extend(allocations),
                // Its pods' addresses live and are nobody's: they stay in quarantine until the pods go.
                Err(error) => tracing::error!(error = %ErrorChain(&error), "the AWS VPC CNI's allocations"),
            }
        }
        all
    }
}

fn read(path: &Path) -> Result<Vec<Allocation>, ReadError> {
    match Store::new(path.to_owned()).read() {
        Ok(Some(document)) => {
            read_allocations(&document).map_err(|source| ReadError::Contents { path: path.to_owned(), source })
        }
        Ok(None) => Ok(Vec::new()),
        Err(StoreError::File { source, .. }) if source.kind() == io::ErrorKind::NotADirectory => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// The owner of an allocation that the kernel bears out.
fn owner(allocation: Allocation, pods: &Pods) -> Option<Owner> {
    let Allocation { attachment, pod, address, .. } = allocation;
    let host_ifname = pods.view.pods.get(&address).filter(|_| !pods.dead.contains(&address))?;
    // In the file of its card each interface of a pod is the first; which one it is its name on the host tells. A pod that was
    // made anew under the same address has another name.
    let is_its = |index: &u8| host_ifname.as_str().ends_with(&veth_hash(&pod, *index));
    let index = if pod.name.is_empty() { Some(0) } else { (0..nic::INTERFACES_MAX).find(is_its) };
    let attachment = nic::attachment(&attachment, index?)?;
    Some(Owner { attachment, pod, host_ifname: host_ifname.clone(), netns: String::new() })
}

#[cfg(test)]
mod tests {
    use sluice_contract::id::PodRef;
    use sluice_contract::node::host_veth;

    use super::*;
    use crate::testing::TestDir;

    fn pod(name: &str) -> PodRef {
        PodRef { namespace: "default".into(), name: name.into(), uid: None }
    }

    fn allocations(pods: &[(&str, &str)]) -> String {
        let all: Vec<String> = pods
            .iter()
            .map(|(name, address)| {
                format!(
                    r#"{{"networkName":"aws-cni","containerID":"c-{name}","ifName":"eth0","ipv4":"{address}","metadata":{{"k8sPodNamespace":"default","k8sPodName":"{name}"}}}}"#
                )
            })
            .collect();
        format!(r#"{{"version":"vpc-cni-ipam/1","allocations":[{}]}}"#, all.join(","))
    }

    #[test]
    fn an_allocation_is_believed_as_far_as_the_kernel_bears_it_out() {
        let dir = TestDir::new();
        let file = dir.path().join("ipam.json");
        let all = [("a", "10.0.0.1"), ("gone", "10.0.0.2"), ("other", "10.0.0.3"), ("dead", "10.0.0.4")];
        std::fs::write(&file, allocations(&all)).unwrap();
        std::fs::write(dir.path().join("ipam-nic-1.json"), allocations(&[("b", "10.0.1.1")])).unwrap();
        std::fs::write(dir.path().join("ipam-nic-2.json"), "{").unwrap();
        std::fs::write(dir.path().join("ipam-nic-3.json"), allocations(&[("a", "10.0.3.1")])).unwrap();
        let mut pods = Pods::default();
        for (name, address) in [("a", "10.0.0.1"), ("x", "10.0.0.3"), ("dead", "10.0.0.4"), ("b", "10.0.1.1")] {
            pods.view.pods.insert(address.parse().unwrap(), host_veth("eni", &pod(name), 0).unwrap());
        }
        pods.dead.insert("10.0.0.4".parse().unwrap());
        pods.view.pods.insert("10.0.3.1".parse().unwrap(), host_veth("eni", &pod("a"), 1).unwrap());
        let owners = AwsNode::new(file).owners(&pods);
        let adopted: Vec<_> = owners.iter().map(|(ip, owner)| format!("{ip} {}", owner.attachment)).collect();
        assert_eq!(adopted, ["10.0.0.1 c-a/eth0@aws-cni", "10.0.1.1 c-b/eth0@aws-cni", "10.0.3.1 c-a/mNicIf1@aws-cni"]);
        assert_eq!(owners[&"10.0.0.1".parse::<IpAddr>().unwrap()].pod, pod("a"));
        assert_eq!(AwsNode::new(dir.path().join("none/ipam.json")).owners(&pods).len(), 0);
    }
}
