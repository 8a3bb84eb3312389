use std::collections::BTreeSet;

use sluice_contract::id::{AttachmentId, SecurityGroupId, SubnetId};

use super::*;
use crate::fabric::router::IGW_LINK;
use crate::model::address::{AddressSpace, Ipv6Space};
use crate::model::state::{
    Association, Attachment, InternetGateway, NatGateway, Peering, RouteTable, Subnet, Tags, Vpc,
};
use crate::model::{InternetGatewayId, NatGatewayId, PeeringId, RouteTableId};

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

pub(crate) fn vpc_id(n: u8) -> VpcId {
    VpcId::new(format!("vpc-0000000000000000{n}")).unwrap()
}

pub(crate) fn eni_id(n: u8) -> EniId {
    EniId::new(format!("eni-0000000000000000{n}")).unwrap()
}

pub(crate) fn subnet_id(n: u8) -> SubnetId {
    SubnetId::new(format!("subnet-0000000000000000{n}")).unwrap()
}

pub(crate) fn table_id(n: u8) -> RouteTableId {
    RouteTableId::new(format!("rtb-0000000000000000{n}"))
}

pub(crate) fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

pub(crate) fn add_vpc(state: &mut State, n: u8, cidr: &str) {
    let vpc = Vpc {
        id: vpc_id(n),
        cidrs: vec![net(cidr)],
        ipv6_cidrs: vec![],
        main_route_table: table_id(n),
        default_security_group: SecurityGroupId::new("sg-00000000000000001").unwrap(),
        enforces_groups: false,
        tags: Tags::new(),
    };
    state.vpcs.insert(vpc_id(n), vpc);
    let table = RouteTable { id: table_id(n), vpc: vpc_id(n), subnets: BTreeSet::new(), routes: BTreeMap::new() };
    state.route_tables.insert(table_id(n), table);
}

pub(crate) fn add_subnet(state: &mut State, n: u8, vpc: u8, cidr: &str) {
    let subnet = Subnet {
        id: subnet_id(n),
        vpc: vpc_id(vpc),
        cidr: net(cidr),
        ipv6_cidr: None,
        availability_zone: "us-east-1a".into(),
        map_public_ip: false,
        tags: Tags::new(),
        space: AddressSpace::new(net(cidr)),
        ipv6_space: Ipv6Space::new(None),
    };
    state.subnets.insert(subnet_id(n), subnet);
}

pub(crate) fn add_eni(state: &mut State, n: u8, subnet: u8, primary: &str, instance: Option<&str>) {
    let attachment = Attachment {
        id: AttachmentId::new(format!("eni-attach-0000000000000000{n}")).unwrap(),
        instance: instance.map(|id| InstanceId::new(id).unwrap()),
        card: 0,
        device: 0,
        delete_on_termination: true,
        requested: Duration::ZERO,
        link_at: HOUR,
        detached_at: Some(HOUR * 2),
    };
    let eni = Eni {
        id: eni_id(n),
        subnet: subnet_id(subnet),
        vpc: state.subnets[&subnet_id(subnet)].vpc.clone(),
        availability_zone: "us-east-1a".into(),
        mac: MacAddr([2, 0, 0, 0, 0, n]),
        description: String::new(),
        interface_type: if instance.is_some() { InterfaceType::Interface } else { InterfaceType::NatGateway },
        primary: primary.parse().unwrap(),
        secondaries: BTreeSet::new(),
        prefixes: BTreeSet::new(),
        ipv6: BTreeSet::new(),
        ipv6_prefixes: BTreeSet::new(),
        groups: vec![],
        source_dest_check: true,
        association: None,
        attachment: Some(attachment),
        tags: Tags::new(),
    };
    state.enis.insert(eni_id(n), eni);
}

pub(crate) fn route(state: &mut State, table: u8, to: &str, target: RouteTarget) {
    state.route_tables.get_mut(&table_id(table)).unwrap().routes.insert(net(to).into(), target);
}

pub(crate) fn project(state: &State, now: Duration) -> Projection {
    Projection::of(state, now, &state.links(now).map(|link| link.instance.clone()).collect())
}

/// VPC 1 with a gateway, a NAT gateway (ENI 9) and an instance (ENI 1); VPC 2, peered.
pub(crate) fn state() -> State {
    let mut state = State::default();
    add_vpc(&mut state, 1, "10.0.0.0/16");
    add_vpc(&mut state, 2, "10.1.0.0/16");
    add_subnet(&mut state, 1, 1, "10.0.1.0/24");
    add_eni(&mut state, 1, 1, "10.0.1.10", Some("i-00000000000000001"));
    add_eni(&mut state, 9, 1, "10.0.1.90", None);
    let igw = InternetGatewayId::new("igw-1");
    state.internet_gateways.insert(igw.clone(), InternetGateway { id: igw.clone(), vpc: Some(vpc_id(1)) });
    let nat = NatGatewayId::new("nat-1");
    let gateway = NatGateway {
        id: nat.clone(),
        subnet: subnet_id(1),
        eni: eni_id(9),
        private_ip: "10.0.1.90".parse().unwrap(),
        public_ip: "203.0.113.90".parse().unwrap(),
    };
    state.nat_gateways.insert(nat.clone(), gateway);
    let pcx = PeeringId::new("pcx-1");
    state.peerings.insert(pcx.clone(), Peering { id: pcx.clone(), requester: vpc_id(1), accepter: vpc_id(2) });
    route(&mut state, 1, "0.0.0.0/0", RouteTarget::InternetGateway(igw));
    route(&mut state, 1, "10.1.0.0/16", RouteTarget::Peering(pcx));
    route(&mut state, 1, "192.0.2.0/24", RouteTarget::NatGateway(nat));
    route(&mut state, 1, "198.18.0.0/15", RouteTarget::Eni(eni_id(7)));
    state
}

#[test]
pub(crate) fn an_eni_is_plugged_in_while_its_link_shows() {
    let state = state();
    let plugged = |now| project(&state, now).plugs.contains_key(&port_link(&eni_id(1)));
    assert!(!plugged(HOUR - Duration::from_millis(1)));
    assert!(plugged(HOUR));
    assert!(plugged(HOUR * 2 - Duration::from_millis(1)));
    assert!(!plugged(HOUR * 2));
}

#[test]
pub(crate) fn all_that_is_assigned_may_send_and_public_addresses_are_one_to_one() {
    let mut state = state();
    let eni = state.enis.get_mut(&eni_id(1)).unwrap();
    eni.secondaries.insert("10.0.1.20".parse().unwrap());
    eni.prefixes.insert(net("10.0.1.32/28"));
    eni.association =
        Some(Association { public_ip: "203.0.113.10".parse().unwrap(), private_ip: "10.0.1.10".parse().unwrap() });
    let projection = project(&state, HOUR);
    let router = &projection.routers[&vpc_id(1)];
    let port = router.ports.iter().find(|port| port.primary.octets()[3] == 10).unwrap();
    assert_eq!(port.assigned, ["10.0.1.10/32", "10.0.1.20/32", "10.0.1.32/28"].map(|text| IpNet::V4(net(text))));
    assert!(port.source_check);
    let public: Vec<String> = router.public.iter().map(|(a, b)| format!("{a}={b}")).collect();
    assert_eq!(public, ["10.0.1.10=203.0.113.10", "10.0.1.90=203.0.113.90"]);
}

#[test]
pub(crate) fn routes_lead_to_what_they_name_and_into_a_black_hole_when_it_is_gone() {
    let mut state = state();
    let projection = project(&state, HOUR);
    let router = &projection.routers[&vpc_id(1)];
    let nat = Target::Port { link: port_link(&eni_id(9)), via: "10.0.1.90".parse().unwrap() };
    assert_eq!(
        router.tables[&0],
        [
            (net("0.0.0.0/0").into(), Target::InternetGateway),
            (net("10.1.0.0/16").into(), Target::Peer { link: "p1".into() }),
            (net("192.0.2.0/24").into(), nat),
            (net("198.18.0.0/15").into(), Target::Blackhole),
        ]
    );
    assert_ne!(router.peers["p1"], projection.routers[&vpc_id(2)].peers["p1"], "the far end's MAC, each");
    assert!(!router.ports.iter().find(|port| port.primary.octets()[3] == 90).unwrap().source_check);

    route(&mut state, 1, "198.18.0.0/15", RouteTarget::Eni(eni_id(1)));
    let last = |state: &State| project(state, HOUR).routers[&vpc_id(1)].tables[&0][3].1.clone();
    assert_eq!(last(&state), Target::Blackhole, "its check is on");
    state.enis.get_mut(&eni_id(1)).unwrap().source_dest_check = false;
    assert!(matches!(last(&state), Target::Port { .. }));

    route(&mut state, 1, "198.18.0.0/15", RouteTarget::Eni(eni_id(7)));
    state.nat_gateways.clear();
    state.peerings.clear();
    state.internet_gateways.clear();
    let gone = project(&state, HOUR);
    assert!(gone.routers[&vpc_id(1)].tables[&0].iter().all(|(_, target)| *target == Target::Blackhole));
}

#[test]
pub(crate) fn names_of_links_fit_the_kernel_and_differ() {
    let (a, b) = (port_link(&eni_id(1)), port_link(&eni_id(2)));
    assert_eq!(a.len(), 15);
    assert_ne!(a, b);
    assert_ne!(a, IGW_LINK);
}
