use sluice_contract::id::SecurityGroupId;

use super::*;
use crate::cloud::{AddressCount, CloudErrorKind};
use crate::fixture::{COOLDOWN, at, eni, eni_id, failed, failure, ip, owner, state, subnet_id};
use crate::plan::{Demand, Targets, plan};
use crate::state::Event;

fn waiting(names: &[&str]) -> Queue {
    let mut queue = Queue::default();
    for (token, name) in (1..).zip(names) {
        queue.join(Token(token), owner(name), None, at(60), at(0)).unwrap();
    }
    queue
}

fn served(state: &State, queue: &Queue, now: Timestamp) -> Serving {
    let plan = plan(state, &Targets::default(), &Demand::of(state, queue), now);
    serve(state, queue, &plan, now)
}

#[test]
fn the_longest_waiting_gets_the_longest_free() {
    let mut state = state(vec![eni(1, &["10.0.0.1/32", "10.0.0.2/32"])]);
    state.apply(Event::Assign(ip("10.0.0.1"), owner("x")), at(1)).unwrap();
    state.apply(Event::Release(owner("x").attachment.clone(), COOLDOWN), at(2)).unwrap();
    let grants = |now| -> Vec<_> {
        let serving = served(&state, &waiting(&["a", "b"]), now);
        serving.grants.into_iter().map(|grant| (grant.owner.pod.name.clone(), grant.address.to_string())).collect()
    };
    assert_eq!(grants(at(3)), [("a".to_owned(), "10.0.0.2".to_owned())]);
    assert_eq!(grants(at(32)), [("a".to_owned(), "10.0.0.2".to_owned()), ("b".to_owned(), "10.0.0.1".to_owned())]);
    assert_eq!(served(&state, &waiting(&["a", "b"]), at(3)).wake_at, Some(at(32)));
}

#[test]
fn an_attachment_that_has_an_address_is_told_so() {
    let mut state = state(vec![eni(1, &["10.0.0.1/32", "10.0.0.2/32"])]);
    state.apply(Event::Assign(ip("10.0.0.2"), owner("a")), at(1)).unwrap();
    let serving = served(&state, &waiting(&["a"]), at(2));
    assert_eq!(serving.grants, [Grant { owner: owner("a"), address: ip("10.0.0.2"), held: true }]);
}

#[test]
fn a_passed_deadline_tells_what_is_under_way() {
    let mut state = state(vec![eni(1, &[])]);
    let op = Op::Assign { eni: eni_id(1), count: AddressCount::Secondary(9) };
    state.apply(Event::Begin(op), at(0)).unwrap();
    let queue = waiting(&["a"]);
    assert_eq!(served(&state, &queue, at(59)).refused, []);
    let refused = served(&state, &queue, at(60)).refused;
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].tokens, [Token(1)]);
    assert_eq!(refused[0].refusal.code, RefusalCode::PoolGrowing);
    assert_eq!(refused[0].refusal.message, "no address was free within 60 s: assign 9 addresses to eni-00000001");
}

#[test]
fn each_cause_has_its_code_and_names_what_it_is_about() {
    let full = || {
        let nine = |n: u32| (1..=9).map(|host| format!("10.0.{n}.{host}/32")).collect::<Vec<_>>();
        let enis = (1..=3).map(|n| eni(n, &nine(n).iter().map(String::as_str).collect::<Vec<_>>()));
        let mut state = state(enis.collect());
        for (index, address) in state.ledger().available(at(0)).collect::<Vec<_>>().into_iter().enumerate() {
            state.apply(Event::Assign(address, owner(&format!("p{index}"))), at(0)).unwrap();
        }
        state
    };
    let refusal = |state: &State| {
        let refused = served(state, &waiting(&["late"]), at(1)).refused;
        let refusal = refused.into_iter().next().expect("there is no hope").refusal;
        assert!(refusal.hint.is_some() && !refusal.message.contains("failed to assign"));
        (refusal.code, refusal.message, refusal.retry_after_ms)
    };
    assert_eq!(
        refusal(&full()),
        (
            RefusalCode::EniLimit,
            "no address is free: the instance type allows 3 ENIs, and all 27 of their addresses for pods are taken"
                .to_owned(),
            None
        )
    );
    let mut exhausted = state(vec![eni(1, &[])]);
    let one = Op::Assign { eni: eni_id(1), count: AddressCount::Secondary(1) };
    failed(&mut exhausted, &one, CloudErrorKind::InsufficientAddresses, at(1));
    assert_eq!(
        refusal(&exhausted),
        (
            RefusalCode::SubnetExhausted,
            format!("no address is free: subnet {} has no free address left", subnet_id(1)),
            Some(15_000)
        )
    );
    let mut denied = state(vec![eni(1, &[])]);
    failed(&mut denied, &one, CloudErrorKind::Denied, at(1));
    let create = plan(&denied, &Targets::default(), &Demand { waiting: 20, ..Demand::default() }, at(1)).ops;
    for planned in create {
        let error = failure(planned.op.api(), CloudErrorKind::Denied);
        denied.apply(Event::Begin(planned.op.clone()), at(1)).unwrap();
        denied.apply(Event::End(planned.op, Err(error)), at(1)).unwrap();
    }
    let (code, message, _) = refusal(&denied);
    assert_eq!(code, RefusalCode::IamDenied);
    assert!(message.contains("failed with Code: as told"), "{message}");
}

#[test]
fn the_hint_names_the_action_that_iam_does() {
    let words = "You are not authorized to perform this operation. User: arn:aws:sts::1:assumed-role/node/i-0 is not authorized \
                 to perform: ec2:CreateTags on resource: arn:aws:ec2:eu-west-1:1:network-interface/*";
    let cause =
        |message: &str| Cause::Denied { api: Api::CreateNetworkInterface, message: message.into(), until: at(1) };
    assert_eq!(cause(words).hint(), "allow ec2:CreateTags in the node's IAM role");
    assert_eq!(cause("not authorized").hint(), "allow ec2:CreateNetworkInterface in the node's IAM role");
}

#[test]
fn what_ec2_refuses_for_good_is_told_with_what_to_mend() {
    use crate::cloud::EniConfig;
    let hint = |code: &str, config: Option<EniConfig>| {
        let mut state = state(vec![eni(1, &[])]);
        let node = crate::state::Node { custom_networking: config.is_some(), ..crate::fixture::node() };
        state.apply(Event::NodeKnown(node), at(0)).unwrap();
        state.apply(Event::EniConfigKnown(config), at(0)).unwrap();
        let demand = Demand { waiting: 20, ..Demand::default() };
        let ops = plan(&state, &Targets::default(), &demand, at(1)).ops;
        let create = ops.into_iter().find(|planned| matches!(planned.op, Op::Create(_))).unwrap().op;
        let mut failure = failure(create.api(), CloudErrorKind::Other);
        failure.error.code = code.to_owned();
        state.apply(Event::Begin(create.clone()), at(1)).unwrap();
        state.apply(Event::End(create, Err(failure)), at(1)).unwrap();
        let cause = plan(&state, &Targets::default(), &demand, at(2)).held_up.unwrap();
        let refusal = cause.refusal(&state, None, at(2));
        assert_eq!(refusal.code, RefusalCode::Ec2Unavailable);
        assert!(refusal.message.contains(code), "{refusal:?}");
        assert_eq!(refusal.retry_after_ms, Some(9_000), "it is tried again as ever");
        refusal.hint.unwrap()
    };
    let config = |groups: &[&str]| EniConfig {
        name: "zone-a".to_owned(),
        subnet: subnet_id(1),
        security_groups: groups.iter().map(|group| SecurityGroupId::new(*group).unwrap()).collect(),
    };
    assert!(hint("NetworkInterfaceLimitExceeded", None).starts_with("raise the account's quota of network interfaces"));
    for code in ["InvalidGroup.NotFound", "InvalidSecurityGroupID.NotFound"] {
        let named = hint(code, Some(config(&["sg-00000001"])));
        assert_eq!(named, "see spec.securityGroups of ENIConfig zone-a: one of them is not in the VPC");
        let primary = "see the security groups of the primary ENI, which new ENIs get: one of them is not in the VPC";
        assert_eq!(hint(code, None), primary);
        assert_eq!(hint(code, Some(config(&[]))), primary, "an ENIConfig without groups names none");
    }
    let many = hint("SecurityGroupsPerInterfaceLimitExceeded", Some(config(&["sg-00000001"])));
    assert!(many.starts_with("see spec.securityGroups of ENIConfig zone-a: have fewer of them"), "{many}");
    assert_eq!(hint("NeverHeardOf", None), "the call is repeated by itself; check the route to the EC2 endpoint");
}

#[test]
fn a_throttled_call_is_waited_for_and_named_at_the_deadline() {
    let mut state = state(vec![eni(1, &[])]);
    let op = Op::Assign { eni: eni_id(1), count: AddressCount::Secondary(1) };
    failed(&mut state, &op, CloudErrorKind::Throttled, at(55));
    let mut queue = Queue::default();
    queue.join(Token(1), owner("a"), None, at(60), at(0)).unwrap();
    assert_eq!(served(&state, &queue, at(56)).refused, []);
    let refused = served(&state, &queue, at(60)).refused;
    assert_eq!(refused[0].refusal.code, RefusalCode::Throttled);
    assert_eq!(
        refused[0].refusal.message,
        "no address is free: EC2 limits the rate of AssignPrivateIpAddresses; waited 60 s"
    );
    assert_eq!(refused[0].refusal.retry_after_ms, Some(5_000));
}
