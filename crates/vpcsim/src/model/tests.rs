use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use proptest::prelude::*;
use sluice_contract::id::{AttachmentId, EniId, InstanceId, SubnetId};

use super::api::*;
use super::behaviour::{Bucket, Span};
use super::state::{Eni, InstanceState, InterfaceType, RouteTarget, Tags};
use super::*;
use crate::limits::instance_type;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

struct World {
    model: Model,
    subnets: Vec<SubnetId>,
}

/// One VPC with an IPv6 block, two small subnets in one zone.
fn world(settings: Settings) -> World {
    let mut model = Model::new(settings);
    let block = "3fff:1:2:300::/56".parse().unwrap();
    let vpc = model.add_vpc(&["10.0.0.0/16".parse().unwrap()], Some(block), Tags::new()).unwrap();
    let subnets = ["10.0.0.0/26", "10.0.1.0/25"]
        .into_iter()
        .enumerate()
        .map(|(index, cidr)| {
            let subnet = CreateSubnet {
                vpc: vpc.clone(),
                cidr: cidr.parse().unwrap(),
                ipv6_cidr: Some(format!("3fff:1:2:30{index}::/64").parse().unwrap()),
                availability_zone: None,
                tags: Tags::new(),
            };
            model.add_subnet(&subnet, false).unwrap()
        })
        .collect();
    World { model, subnets }
}

impl World {
    fn instance(&mut self, instance_type: &str) -> InstanceId {
        self.model
            .add_instance(&SceneInstance {
                instance_type: instance_type.to_owned(),
                subnet: self.subnets[0].clone(),
                private_ip: None,
                public_ip: false,
                tags: Tags::new(),
            })
            .unwrap()
    }

    fn primary(&self, instance: &InstanceId) -> EniId {
        self.model.state().instances[instance].primary_eni.clone()
    }

    fn eni(&self, id: &EniId) -> &Eni {
        &self.model.state().enis[id]
    }

    fn create(&mut self, want: WantIpv4, now: Duration) -> EniId {
        let request = CreateNetworkInterface { want, ..CreateNetworkInterface::new(self.subnets[1].clone()) };
        match self.model.call(request, now).result.unwrap() {
            Reply::NetworkInterface(eni) => eni.id,
            other => panic!("{other:?}"),
        }
    }

    fn attach(&mut self, eni: &EniId, instance: &InstanceId, device: u32, now: Duration) -> Outcome {
        let request = AttachNetworkInterface { eni: eni.clone(), instance: instance.clone(), card: 0, device };
        self.model.call(request, now)
    }

    fn assign(&mut self, eni: &EniId, want: WantIpv4, now: Duration) -> Outcome {
        self.model.call(AssignPrivateIpAddresses { eni: eni.clone(), want, allow_reassignment: false }, now)
    }

    fn described(&mut self, ids: Vec<EniId>, now: Duration) -> Result<Vec<Eni>, CallFailure> {
        match self.model.call(DescribeNetworkInterfaces { ids, ..Describe::default() }, now).result? {
            Reply::NetworkInterfaces(listed) => Ok(listed.items),
            other => panic!("{other:?}"),
        }
    }
}

fn addresses(count: u32) -> WantIpv4 {
    WantIpv4 { count, ..WantIpv4::default() }
}

fn prefixes(prefix_count: u32) -> WantIpv4 {
    WantIpv4 { prefix_count, ..WantIpv4::default() }
}

fn code(outcome: &Outcome) -> String {
    match &outcome.result {
        Err(CallFailure::Api(error)) => error.code.to_string(),
        Err(CallFailure::NoAnswer) => "no answer".to_owned(),
        Ok(_) => "ok".to_owned(),
    }
}

fn attachment(outcome: &Outcome) -> AttachmentId {
    match &outcome.result {
        Ok(Reply::Attached { attachment, .. }) => attachment.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_eni_lives_and_dies() {
    let settings = Settings { time_scale: 1.0, describe_lag: Duration::ZERO, ..Settings::instant() };
    let mut world =
        world(Settings { link: Span::from_millis(3000, 3000), detach: Span::from_millis(2000, 2000), ..settings });
    let instance = world.instance("m5.large");
    let eni = world.create(addresses(9), seconds(1));
    assert_eq!(world.eni(&eni).secondaries.len(), 9);
    let outcome = world.attach(&eni, &instance, 1, seconds(10));
    let attached = attachment(&outcome);
    assert_eq!(world.eni(&eni).status(seconds(12)), "attaching");
    assert_eq!(world.model.state().links(seconds(12)).count(), 1);
    assert_eq!(world.model.next_change(seconds(12)), Some(seconds(13)));
    assert_eq!(world.model.state().links(seconds(13)).count(), 2);
    assert_eq!(world.eni(&eni).status(seconds(13)), "in-use");
    assert_eq!(
        code(&world.model.call(DeleteNetworkInterface { eni: eni.clone() }, seconds(14))),
        "InvalidParameterValue"
    );
    let detach = DetachNetworkInterface { attachment: attached, force: false };
    assert_eq!(code(&world.model.call(detach.clone(), seconds(20))), "ok");
    assert_eq!(code(&world.model.call(detach.clone(), seconds(20))), "IncorrectState");
    assert_eq!(world.model.state().links(seconds(21)).count(), 2);
    assert_eq!(code(&world.model.call(detach, seconds(22))), "InvalidAttachmentID.NotFound");
    let free = world.model.state().subnets[&world.subnets[1]].available();
    assert_eq!(code(&world.model.call(DeleteNetworkInterface { eni: eni.clone() }, seconds(23))), "ok");
    assert_eq!(world.model.state().subnets[&world.subnets[1]].available(), free + 10);
    assert_eq!(
        code(&world.model.call(DeleteNetworkInterface { eni }, seconds(24))),
        "InvalidNetworkInterfaceID.NotFound"
    );
}

#[test]
fn limits_are_those_of_the_instance_type() {
    let mut world = world(Settings::instant());
    let instance = world.instance("m5.large");
    let primary = world.primary(&instance);
    assert_eq!(code(&world.assign(&primary, addresses(10), seconds(1))), "PrivateIpAddressLimitExceeded");
    assert_eq!(code(&world.assign(&primary, addresses(9), seconds(1))), "ok");
    assert_eq!(code(&world.assign(&primary, prefixes(1), seconds(1))), "PrivateIpAddressLimitExceeded");
    for device in [1, 2] {
        let eni = world.create(addresses(0), seconds(1));
        assert_eq!(code(&world.attach(&eni, &instance, device, seconds(1))), "ok");
    }
    let eni = world.create(addresses(0), seconds(1));
    let outcome = world.attach(&eni, &instance, 3, seconds(1));
    let Err(CallFailure::Api(error)) = outcome.result else { panic!("{outcome:?}") };
    assert_eq!(error.to_string(), "AttachmentLimitExceeded: Interface count 4 exceeds the limit for m5.large");
    assert_eq!(code(&world.attach(&eni, &instance, 1, seconds(1))), "InvalidParameterValue");
    let xen = world.instance("m4.large");
    let primary = world.primary(&xen);
    assert_eq!(code(&world.assign(&primary, prefixes(1), seconds(1))), "UnsupportedOperation");
}

#[test]
fn each_network_card_has_room_and_device_indexes_of_its_own() {
    let mut world = world(Settings::instant());
    let instance = world.instance("hpc7a.96xlarge");
    let mut attach = |card, device| {
        let eni = world.create(addresses(0), seconds(1));
        let request = AttachNetworkInterface { eni, instance: instance.clone(), card, device };
        world.model.call(request, seconds(1))
    };
    assert_eq!(code(&attach(0, 0)), "InvalidParameterValue", "the primary ENI is there");
    let first = attach(1, 0);
    for (card, device, expected) in [
        (1, 0, "InvalidParameterValue"),
        (1, 7, "ok"),
        (1, 1, "AttachmentLimitExceeded"),
        (0, 1, "ok"),
        (0, 2, "AttachmentLimitExceeded"),
        (2, 0, "InvalidParameterValue"),
    ] {
        assert_eq!(code(&attach(card, device)), expected, "card {card}, device {device}");
    }
    let Ok(Reply::Attached { card, .. }) = &first.result else { panic!("{first:?}") };
    assert_eq!(*card, 1);
    let places: Vec<(u32, u32)> = world
        .model
        .state()
        .attached(&instance)
        .into_iter()
        .filter_map(|eni| eni.attachment.as_ref().map(|at| (at.card, at.device)))
        .collect();
    assert_eq!(places, [(0, 0), (0, 1), (1, 0), (1, 7)]);
    // Of all devices of number 0 that of the first card alone cannot be detached.
    let detach = DetachNetworkInterface { attachment: attachment(&first), force: false };
    assert_eq!(code(&world.model.call(detach, seconds(2))), "ok");
}

#[test]
fn a_subnet_runs_out_of_prefixes_before_addresses() {
    let mut world = world(Settings { placement: address::Placement::Scattered, ..Settings::instant() });
    let instance = world.instance("m5.4xlarge");
    let eni = world.primary(&instance);
    // 10.0.0.0/26 has two whole /28s; the instance's address is in one of four blocks.
    let before = world.model.state().subnets[&world.subnets[0]].space.free_prefixes();
    for _ in 0..before {
        assert_eq!(code(&world.assign(&eni, prefixes(1), seconds(1))), "ok");
    }
    assert_eq!(code(&world.assign(&eni, prefixes(1), seconds(1))), "InsufficientCidrBlocks");
    let create = CreateNetworkInterface { want: prefixes(1), ..CreateNetworkInterface::new(world.subnets[0].clone()) };
    let outcome = world.model.call(create, seconds(1));
    let Err(CallFailure::Api(error)) = outcome.result else { panic!("{outcome:?}") };
    assert_eq!(error.message, "There aren't sufficient free Ipv4 addresses or prefixes");
    let left = world.model.state().subnets[&world.subnets[0]].available();
    assert!(left > 0);
    assert_eq!(
        code(&world.assign(&eni, addresses(left + 1), seconds(1))),
        if left > 27 { "PrivateIpAddressLimitExceeded" } else { "InsufficientFreeAddressesInSubnet" }
    );
    assert_eq!(world.model.state().subnets[&world.subnets[0]].available(), left);
}

#[test]
fn a_client_token_answers_twice_and_refuses_another_request() {
    let mut world = world(Settings::instant());
    let request = CreateNetworkInterface {
        client_token: Some("token-1".to_owned()),
        want: addresses(2),
        ..CreateNetworkInterface::new(world.subnets[0].clone())
    };
    world
        .model
        .add_fault(Fault {
            action: Some("CreateNetworkInterface".to_owned()),
            effect: FaultEffect::TimeoutAfterEffect,
            count: Some(1),
            of_million: None,
        })
        .unwrap();
    assert_eq!(code(&world.model.call(request.clone(), seconds(1))), "no answer");
    assert_eq!(world.model.state().enis.len(), 1);
    assert_eq!(code(&world.model.call(request.clone(), seconds(2))), "ok");
    assert_eq!(world.model.state().enis.len(), 1);
    let other = CreateNetworkInterface { want: addresses(3), ..request };
    assert_eq!(code(&world.model.call(other, seconds(3))), "IdempotentParameterMismatch");
}

#[test]
fn faults_strike_as_often_as_they_should() {
    let mut world = world(Settings::instant());
    let eni = world.create(addresses(0), seconds(1));
    let fault = |effect| Fault {
        action: Some("AssignPrivateIpAddresses".to_owned()),
        effect,
        count: Some(1),
        of_million: None,
    };
    world.model.add_fault(fault(FaultEffect::PartialEffect)).unwrap();
    world
        .model
        .add_fault(fault(FaultEffect::Error {
            code: "UnauthorizedOperation".into(),
            message: String::new(),
            status: Some(403),
        }))
        .unwrap();
    world.model.add_fault(fault(FaultEffect::TimeoutBeforeEffect)).unwrap();
    world.model.add_fault(fault(FaultEffect::Slow { millis: 700 })).unwrap();
    assert_eq!(code(&world.assign(&eni, addresses(4), seconds(1))), "InternalError");
    assert_eq!(world.eni(&eni).secondaries.len(), 2);
    assert_eq!(code(&world.assign(&eni, addresses(4), seconds(1))), "UnauthorizedOperation");
    assert_eq!(code(&world.assign(&eni, addresses(4), seconds(1))), "no answer");
    assert_eq!(world.eni(&eni).secondaries.len(), 2);
    assert_eq!(world.assign(&eni, addresses(1), seconds(1)).answer_after, Duration::from_millis(700));
    assert!(world.model.faults().is_empty());
    let outcomes: Vec<_> = world.model.log().records().map(|record| record.outcome.as_str()).collect();
    assert_eq!(outcomes, ["ok", "InternalError", "UnauthorizedOperation", "no-answer", "ok"]);
    assert!(
        world
            .model
            .add_fault(Fault { action: Some("MakeCoffee".into()), ..fault(FaultEffect::PartialEffect) })
            .is_err()
    );
}

#[test]
fn calls_are_throttled_for_each_action() {
    let mut world = world(Settings { throttle: true, ..Settings::instant() });
    world.model.settings_mut().buckets.insert(Action::DescribeNetworkInterfaces, Bucket { capacity: 2, per_second: 1 });
    assert!(world.described(vec![], seconds(1)).is_ok());
    assert!(world.described(vec![], seconds(1)).is_ok());
    let error = world.described(vec![], seconds(1)).unwrap_err();
    assert_eq!(error.to_string(), "RequestLimitExceeded: Request limit exceeded.");
    world.create(addresses(0), seconds(1));
    assert!(world.described(vec![], seconds(2)).is_ok());
}

#[test]
fn describe_sees_late_and_calls_do_not() {
    let mut world = world(Settings { time_scale: 1.0, describe_lag: seconds(2), ..Settings::instant() });
    let eni = world.create(addresses(1), seconds(10));
    assert!(world.described(vec![eni.clone()], seconds(11)).is_err());
    assert_eq!(code(&world.assign(&eni, addresses(1), seconds(11))), "ok");
    let seen = world.described(vec![eni.clone()], seconds(12)).unwrap();
    assert_eq!(seen[0].secondaries.len(), 1);
    let seen = world.described(vec![eni], seconds(13)).unwrap();
    assert_eq!(seen[0].secondaries.len(), 2);
}

#[test]
fn a_detach_that_ended_unseen_is_seen_as_late_as_anything() {
    let settings = Settings { time_scale: 1.0, describe_lag: seconds(2), ..Settings::instant() };
    let mut world = world(Settings {
        detach: Span::from_millis(1000, 1000),
        link: Span::ZERO,
        answer: BTreeMap::new(),
        ..settings
    });
    let instance = world.instance("m5.large");
    let eni = world.create(addresses(0), seconds(1));
    let attached = attachment(&world.attach(&eni, &instance, 1, seconds(2)));
    world.model.call(DetachNetworkInterface { attachment: attached, force: false }, seconds(10)).result.unwrap();
    assert_eq!(world.described(vec![eni.clone()], seconds(12)).unwrap()[0].status(seconds(10)), "in-use");
    assert_eq!(world.described(vec![eni], seconds(30)).unwrap()[0].status(seconds(28)), "available");
}

#[test]
fn a_fault_of_every_action_leaves_the_metadata_service_alone() {
    let mut model = Model::new(Settings::instant());
    let fault = |action: Option<&str>| Fault {
        action: action.map(str::to_owned),
        effect: FaultEffect::TimeoutBeforeEffect,
        count: None,
        of_million: None,
    };
    model.add_fault(fault(None)).unwrap();
    assert_eq!(model.imds_asked(), None);
    model.add_fault(fault(Some(IMDS))).unwrap();
    assert_eq!(model.imds_asked(), Some(FaultEffect::TimeoutBeforeEffect));
    assert_eq!(model.log().counts()[IMDS], 2);
}

#[test]
fn pages_hold_what_they_should_and_end() {
    let mut world = world(Settings::instant());
    let all: BTreeSet<EniId> = (0..13).map(|_| world.create(addresses(0), seconds(1))).collect();
    let mut seen = BTreeSet::new();
    let mut page = Page { max_results: Some(5), next_token: None };
    for expected in [5, 5, 3] {
        let request = DescribeNetworkInterfaces { page: page.clone(), ..Describe::default() };
        let Ok(Reply::NetworkInterfaces(listed)) = world.model.call(request, seconds(2)).result else { panic!() };
        assert_eq!(listed.items.len(), expected);
        seen.extend(listed.items.into_iter().map(|eni| eni.id));
        page.next_token = listed.next_token;
    }
    assert_eq!((seen, page.next_token), (all, None));
    let few =
        DescribeNetworkInterfaces { page: Page { max_results: Some(4), next_token: None }, ..Describe::default() };
    assert_eq!(code(&world.model.call(few, seconds(2))), "InvalidParameterValue");
    let filters = vec![Filter { name: "no-such".into(), values: vec!["x".into()] }];
    assert_eq!(
        code(&world.model.call(DescribeNetworkInterfaces { filters, ..Describe::default() }, seconds(2))),
        "InvalidParameterValue"
    );
}

#[test]
fn ending_an_instance_takes_only_what_should_go_with_it() {
    let mut world = world(Settings::instant());
    let instance = world.instance("m5.large");
    let (keep, lose) = (world.create(addresses(0), seconds(1)), world.create(addresses(0), seconds(1)));
    world.attach(&keep, &instance, 1, seconds(1));
    let attached = attachment(&world.attach(&lose, &instance, 2, seconds(1)));
    let attribute = EniAttribute::DeleteOnTermination(attached, true);
    assert_eq!(
        code(&world.model.call(ModifyNetworkInterfaceAttribute { eni: lose.clone(), attribute }, seconds(1))),
        "ok"
    );
    assert_eq!(code(&world.model.call(TerminateInstances { instances: vec![instance.clone()] }, seconds(2))), "ok");
    assert_eq!(world.model.state().enis.keys().collect::<Vec<_>>(), [&keep]);
    assert_eq!(world.eni(&keep).status(seconds(3)), "available");
    assert_eq!(world.model.state().instances[&instance].state(seconds(3)), InstanceState::Terminated);
}

#[test]
fn gateways_have_public_addresses_of_their_own() {
    let mut world = world(Settings::instant());
    let vpc = world.model.state().vpcs.keys().next().unwrap().clone();
    let subnet = world.subnets[0].clone();
    let igw = world.model.add_internet_gateway(&vpc).unwrap();
    let nat = world.model.add_nat_gateway(&subnet).unwrap();
    let table = world.model.add_route_table(&vpc, &world.subnets[1..]).unwrap();
    let main = world.model.state().vpcs[&vpc].main_route_table.clone();
    let anywhere: ipnet::Ipv4Net = "0.0.0.0/0".parse().unwrap();
    world.model.set_route(&main, anywhere, Some(RouteTarget::InternetGateway(igw))).unwrap();
    world.model.set_route(&table, anywhere, Some(RouteTarget::NatGateway(nat.clone()))).unwrap();
    let state = world.model.state();
    assert_eq!(state.route_table(&world.subnets[1]).unwrap().id, table);
    assert_eq!(state.route_table(&subnet).unwrap().id, main);
    let gateway = &state.nat_gateways[&nat];
    assert_eq!(gateway.public_ip, Ipv4Addr::new(203, 0, 113, 10));
    let eni = state.enis[&gateway.eni].clone();
    assert_eq!(eni.interface_type, InterfaceType::NatGateway);
    assert_eq!(code(&world.model.call(DeleteNetworkInterface { eni: eni.id }, seconds(1))), "InvalidParameterValue");
    let detach = DetachNetworkInterface { attachment: eni.attachment.unwrap().id, force: true };
    assert_eq!(code(&world.model.call(detach, seconds(1))), "OperationNotPermitted");
}

/// A call drawn at random; numbers pick among what there is.
#[derive(Debug, Clone)]
enum Step {
    Create { subnet: usize, want: WantIpv4, want_ipv6: WantIpv6, token: Option<u8> },
    Attach { eni: usize, instance: usize, device: u32 },
    Detach { eni: usize, force: bool },
    Delete { eni: usize },
    Assign { eni: usize, want: WantIpv4, take: bool },
    Unassign { eni: usize, addresses: usize, prefixes: usize },
    AssignIpv6 { eni: usize, want: WantIpv6 },
    Run { kind: usize },
    Terminate { instance: usize },
    Wait { millis: u64 },
    Fault { kind: usize },
}

fn want() -> impl Strategy<Value = WantIpv4> {
    prop_oneof![
        4 => (0u32..12).prop_map(addresses),
        3 => (0u32..4).prop_map(prefixes),
        1 => (0u8..70).prop_map(|last| WantIpv4 { addresses: vec![Ipv4Addr::new(10, 0, 0, last)], ..WantIpv4::default() }),
        1 => (0u8..5).prop_map(|block| WantIpv4 {
            prefixes: vec![ipnet::Ipv4Net::new(Ipv4Addr::new(10, 0, 0, block * 16), 28).unwrap()],
            ..WantIpv4::default()
        }),
    ]
}

fn want_ipv6() -> impl Strategy<Value = WantIpv6> {
    (0u32..3, 0u32..2).prop_map(|(count, prefix_count)| WantIpv6 {
        count: if prefix_count == 0 { count } else { 0 },
        prefix_count,
        ..WantIpv6::default()
    })
}

fn step() -> impl Strategy<Value = Step> {
    let index = 0usize..40;
    prop_oneof![
        4 => (0usize..2, want(), want_ipv6(), proptest::option::of(0u8..4)).prop_map(|(subnet, want, want_ipv6, token)| Step::Create { subnet, want, want_ipv6, token }),
        4 => (index.clone(), 0usize..4, 0u32..6).prop_map(|(eni, instance, device)| Step::Attach { eni, instance, device }),
        2 => (index.clone(), any::<bool>()).prop_map(|(eni, force)| Step::Detach { eni, force }),
        2 => index.clone().prop_map(|eni| Step::Delete { eni }),
        5 => (index.clone(), want(), any::<bool>()).prop_map(|(eni, want, take)| Step::Assign { eni, want, take }),
        3 => (index.clone(), 0usize..4, 0usize..3).prop_map(|(eni, addresses, prefixes)| Step::Unassign { eni, addresses, prefixes }),
        1 => (index, want_ipv6()).prop_map(|(eni, want)| Step::AssignIpv6 { eni, want }),
        1 => (0usize..4).prop_map(|kind| Step::Run { kind }),
        1 => (0usize..4).prop_map(|instance| Step::Terminate { instance }),
        2 => (0u64..4000).prop_map(|millis| Step::Wait { millis }),
        1 => (0usize..4).prop_map(|kind| Step::Fault { kind }),
    ]
}

fn pick<K: Clone, V>(map: &BTreeMap<K, V>, index: usize) -> Option<K> {
    map.keys().nth(index % map.len().max(1)).cloned()
}

fn request(state: &State, subnets: &[SubnetId], step: &Step) -> Option<Request> {
    Some(match step.clone() {
        Step::Create { subnet, want, want_ipv6, token } => CreateNetworkInterface {
            want,
            want_ipv6,
            client_token: token.map(|token| format!("t{token}")),
            ..CreateNetworkInterface::new(subnets[subnet].clone())
        }
        .into(),
        Step::Attach { eni, instance, device } => AttachNetworkInterface {
            eni: pick(&state.enis, eni)?,
            instance: pick(&state.instances, instance)?,
            card: 0,
            device,
        }
        .into(),
        Step::Detach { eni, force } => {
            let attachment = state.enis[&pick(&state.enis, eni)?].attachment.as_ref()?.id.clone();
            DetachNetworkInterface { attachment, force }.into()
        }
        Step::Delete { eni } => DeleteNetworkInterface { eni: pick(&state.enis, eni)? }.into(),
        Step::Assign { eni, want, take } => {
            AssignPrivateIpAddresses { eni: pick(&state.enis, eni)?, want, allow_reassignment: take }.into()
        }
        Step::Unassign { eni, addresses, prefixes } => {
            let eni = &state.enis[&pick(&state.enis, eni)?];
            UnassignPrivateIpAddresses {
                eni: eni.id.clone(),
                addresses: eni.secondaries.iter().copied().take(addresses).collect(),
                prefixes: eni.prefixes.iter().copied().take(prefixes).collect(),
            }
            .into()
        }
        Step::AssignIpv6 { eni, want } => AssignIpv6Addresses { eni: pick(&state.enis, eni)?, want }.into(),
        Step::Run { kind } => {
            RunInstances::new(["m5.large", "t3.nano", "m4.large", "m5.unknown"][kind], subnets[0].clone()).into()
        }
        Step::Terminate { instance } => {
            TerminateInstances { instances: vec![pick(&state.instances, instance)?] }.into()
        }
        Step::Wait { .. } | Step::Fault { .. } => return None,
    })
}

fn check(state: &State) {
    let mut held = BTreeSet::new();
    for eni in state.enis.values() {
        let subnet = &state.subnets[&eni.subnet];
        for net in eni.assigned() {
            assert!(subnet.cidr.contains(&net), "{net} is not in {}", subnet.cidr);
            for address in net.network().to_bits()..=net.broadcast().to_bits() {
                assert!(held.insert((eni.subnet.clone(), address)), "{} is held twice", Ipv4Addr::from_bits(address));
            }
        }
        let six: Vec<_> = eni.assigned_ipv6().collect();
        for other in state.enis.values().filter(|other| other.id != eni.id) {
            assert!(
                other.assigned_ipv6().all(|net| six.iter().all(|mine| !mine.contains(&net) && !net.contains(mine)))
            );
            assert_ne!(other.mac, eni.mac);
        }
        if let Some(instance) = eni.attachment.as_ref().and_then(|at| state.instances.get(at.instance.as_ref()?)) {
            let limits = instance_type(&instance.instance_type).unwrap();
            assert!(
                eni.ipv4_places() <= limits.ipv4_per_eni as usize && eni.ipv6_places() <= limits.ipv6_per_eni as usize
            );
            assert!(limits.prefixes() || (eni.prefixes.is_empty() && eni.ipv6_prefixes.is_empty()));
        }
    }
    for subnet in state.subnets.values() {
        let size = 1u32 << (32 - subnet.cidr.prefix_len());
        let mine = u32::try_from(held.iter().filter(|(id, _)| *id == subnet.id).count()).unwrap();
        assert_eq!(subnet.available(), size - 5 - mine);
        assert_eq!(subnet.available(), subnet.space.recount());
    }
    for instance in state.instances.values() {
        let attached = state.attached(&instance.id);
        assert!(attached.len() <= instance_type(&instance.instance_type).unwrap().enis() as usize);
        let places: BTreeSet<_> =
            attached.iter().map(|eni| eni.attachment.as_ref().map(|at| (at.card, at.device))).collect();
        assert_eq!(places.len(), attached.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn any_calls_leave_the_world_in_order(seed in any::<u64>(), scattered in any::<bool>(), steps in proptest::collection::vec(step(), 1..80)) {
        let placement = if scattered { address::Placement::Scattered } else { address::Placement::Lowest };
        let mut world = world(Settings { seed, placement, describe_lag: Duration::from_millis(500), throttle: true, ..Settings::aws() });
        world.instance("m5.large");
        world.instance("t3.medium");
        let mut now = seconds(1);
        for step in steps {
            match &step {
                Step::Wait { millis } => now += Duration::from_millis(*millis),
                Step::Fault { kind } => {
                    let effect = [FaultEffect::PartialEffect, FaultEffect::TimeoutAfterEffect, FaultEffect::TimeoutBeforeEffect, FaultEffect::Slow { millis: 5 }][*kind].clone();
                    world.model.add_fault(Fault { action: None, effect, count: Some(1), of_million: None }).unwrap();
                }
                other => {
                    world.model.settle(now);
                    let Some(request) = request(world.model.state(), &world.subnets, other) else { continue };
                    let version = world.model.version();
                    let outcome = world.model.call(request, now);
                    if matches!(&outcome.result, Err(CallFailure::Api(error)) if error.code != "InternalError") {
                        prop_assert_eq!(world.model.version(), version);
                    }
                }
            }
            check(world.model.state());
        }
    }
}
