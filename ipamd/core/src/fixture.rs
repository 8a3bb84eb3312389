//! Nodes and ENIs for the unit tests.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use sluice_contract::id::{
    Attachment, AttachmentId, ContainerId, EniId, IfName, InstanceId, MacAddr, NetworkName, PodRef, SubnetId, VpcId,
};

use crate::cloud::{
    Api, CloudError, CloudErrorKind, Ec2Attachment, Ec2Eni, Ec2Subnet, InstanceIdentity, InstanceLimits, InterfaceType,
};
use crate::ipv6::Families;
use crate::ledger::Owner;
use crate::op::{Failure, Op, Outcome};
use crate::state::{Event, Node, State, tag};
use crate::time::Timestamp;

pub(crate) const COOLDOWN: Duration = Duration::from_secs(30);

pub(crate) fn at(seconds: u64) -> Timestamp {
    Timestamp::from_millis(1_700_000_000_000) + Duration::from_secs(seconds)
}

pub(crate) fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}

pub(crate) fn net(net: &str) -> Ipv4Net {
    net.parse().unwrap()
}

pub(crate) fn eni_id(n: u32) -> EniId {
    EniId::new(format!("eni-{n:08x}")).unwrap()
}

pub(crate) fn subnet_id(n: u32) -> SubnetId {
    SubnetId::new(format!("subnet-{n:08x}")).unwrap()
}

pub(crate) fn attachment_id(n: u32) -> AttachmentId {
    AttachmentId::new(format!("eni-attach-{n:08x}")).unwrap()
}

pub(crate) fn owner(name: &str) -> Arc<Owner> {
    Arc::new(Owner {
        attachment: Attachment {
            container: ContainerId::new(name).unwrap(),
            ifname: IfName::new("eth0").unwrap(),
            network: NetworkName::new("sluice").unwrap(),
        },
        pod: PodRef { namespace: "default".to_owned(), name: name.to_owned(), uid: None },
        host_ifname: IfName::new(format!("eni{name:.11}")).unwrap(),
        netns: format!("/run/netns/{name}"),
    })
}

/// An m5.large.
pub(crate) fn node() -> Node {
    Node {
        identity: InstanceIdentity {
            instance: InstanceId::new("i-00000001").unwrap(),
            instance_type: "m5.large".to_owned(),
            availability_zone: "xx-1a".to_owned(),
            region: "xx-1".to_owned(),
            primary_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            vpc: VpcId::new("vpc-00000001").unwrap(),
        },
        limits: InstanceLimits { enis: 3, further_cards: Vec::new(), ipv4_per_eni: 10, prefixes: true },
        vpc_cidrs: vec![net("10.0.0.0/16")],
        security_groups: Vec::new(),
        tags: BTreeMap::from([(tag::INSTANCE.to_owned(), "i-00000001".to_owned())]),
        manage_untagged_enis: true,
        families: Families::V4,
        custom_networking: false,
        subnet_discovery: true,
        imds_only: false,
        multi_nic: false,
    }
}

/// ENI `n`, attached as device `n - 1`, with these addresses and prefixes.
pub(crate) fn eni(n: u32, blocks: &[&str]) -> Ec2Eni {
    let blocks: BTreeSet<Ipv4Net> = blocks.iter().map(|block| net(block)).collect();
    let (prefixes, singles): (BTreeSet<Ipv4Net>, BTreeSet<Ipv4Net>) =
        blocks.into_iter().partition(|net| net.prefix_len() < 32);
    Ec2Eni {
        eni: eni_id(n),
        mac: MacAddr([2, 0, 0, 0, 0, n.to_be_bytes()[3]]),
        attachment: Some(Ec2Attachment {
            attachment: attachment_id(n),
            instance: Some(node().identity.instance),
            device: n - 1,
            card: 0,
            delete_on_termination: true,
        }),
        subnet: subnet_id(1),
        primary_ip: Ipv4Addr::new(10, 0, 255, n.to_be_bytes()[3]),
        secondary_ips: singles.iter().map(Ipv4Net::addr).collect(),
        prefixes,
        ipv6_prefixes: BTreeSet::new(),
        security_groups: Vec::new(),
        tags: node().tags,
        interface_type: InterfaceType::Interface,
        description: String::new(),
        connection_tracking: None,
    }
}

pub(crate) fn subnet(n: u32, available: u32, tags: &[(&str, &str)]) -> Ec2Subnet {
    Ec2Subnet {
        subnet: subnet_id(n),
        cidr: net("10.0.0.0/16"),
        ipv6_cidr: None,
        availability_zone: "xx-1a".to_owned(),
        available,
        tags: tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
    }
}

/// A node that EC2 has said everything about, all ENIs set up.
pub(crate) fn state(enis: Vec<Ec2Eni>) -> State {
    let mut state = State::new(1);
    let ids: Vec<EniId> = enis.iter().map(|eni| eni.eni.clone()).collect();
    state.apply(Event::NodeKnown(node()), at(0)).unwrap();
    state.apply(Event::SubnetsKnown(vec![subnet(1, 1000, &[])]), at(0)).unwrap();
    state.apply(Event::Surveyed(enis), at(0)).unwrap();
    for id in ids {
        // Long since.
        state.ledger.eni_mut(&id).unwrap().recheck = None;
        state.apply(Event::EniReady(id), at(0)).unwrap();
    }
    state
}

/// An operation from its beginning to its end.
pub(crate) fn done(state: &mut State, op: &Op, outcome: Outcome, now: Timestamp) {
    state.apply(Event::Begin(op.clone()), now).unwrap();
    state.apply(Event::End(op.clone(), Ok(outcome)), now).unwrap();
}

pub(crate) fn failed(state: &mut State, op: &Op, kind: CloudErrorKind, now: Timestamp) {
    state.apply(Event::Begin(op.clone()), now).unwrap();
    state.apply(Event::End(op.clone(), Err(failure(op.api(), kind))), now).unwrap();
}

pub(crate) fn failure(api: Api, kind: CloudErrorKind) -> Failure {
    let error = CloudError { api, kind, code: "Code".to_owned(), message: "as told".to_owned(), retry_after: None };
    Failure { error, retry_after: Duration::from_secs(10) }
}
