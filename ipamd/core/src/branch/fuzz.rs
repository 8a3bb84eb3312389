//! Hostile annotations.

use std::error::Error;

use sluice_fuzz::{Grammar, Shape, Target};

use super::PodEni;
use crate::ipv6::Families;

#[test]
fn fuzz_pod_eni() {
    const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/pod-eni");
    const WORDS: &[&str] = &[
        "eniId",
        "eni-0a1b2c3d4e5f60718",
        "ifAddress",
        "02:00:00:00:00:30",
        "privateIp",
        "10.0.2.30",
        "ipv6Addr",
        "2001:db8::30",
        "vlanId",
        "4094",
        "subnetCidr",
        "10.0.2.0/24",
        "0.0.0.0/0",
        "subnetV6Cidr",
        "2001:db8::/64",
    ];
    Target { name: "pod-eni", corpus: CORPUS.as_ref(), grammar: Grammar::Text, words: WORDS }.run(|octets| {
        let text = String::from_utf8_lossy(octets);
        match PodEni::read(&text, Families::Dual) {
            Ok(read) => {
                for (ip, gateway) in &read.addresses {
                    assert!(ip != gateway && ip.is_ipv4() == gateway.is_ipv4(), "{read:?}");
                }
                Shape::of(&(read.addresses.len(), read.vlan.get() > 121))
            }
            Err(error) => Shape::said(&error).and(error.source().map(|cause| Shape::said(&cause))),
        }
    });
}
