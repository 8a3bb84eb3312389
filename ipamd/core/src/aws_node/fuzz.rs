//! Hostile allocations of the VPC CNI.

use std::collections::BTreeSet;
use std::error::Error;

use sluice_fuzz::{Grammar, Shape, Target};

use super::read;

#[test]
fn fuzz_aws_node() {
    const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/aws-node");
    const WORDS: &[&str] = &[
        "version",
        "vpc-cni-ipam/1",
        "allocations",
        "networkName",
        "aws-cni",
        "_migrated-from-cri",
        "containerID",
        "ifName",
        "eth0",
        "unknown",
        "ipv4",
        "10.0.0.1",
        "ipv6",
        "2001:db8::1",
        "allocationTimestamp",
        "metadata",
        "k8sPodNamespace",
        "k8sPodName",
        "interfacesCount",
    ];
    Target { name: "aws-node", corpus: CORPUS.as_ref(), grammar: Grammar::Text, words: WORDS }.run(
        |octets| match read(octets) {
            Ok(read) => {
                let addresses: BTreeSet<_> = read.iter().map(|one| one.address).collect();
                assert_eq!(addresses.len(), read.len(), "an address is two pods'");
                let v6 = addresses.iter().filter(|address| address.is_ipv6()).count();
                Shape::of(&(
                    read.len().min(4),
                    v6.min(4),
                    read.iter().filter(|one| one.pod.name.is_empty()).count().min(4),
                ))
            }
            Err(error) => Shape::said(&error).and(error.source().map(|cause| Shape::said(&cause))),
        },
    );
}
