//! Hostile calls of the Query protocol, one a line, on one account: `$vpc`, `$subnet`, `$group`, `$instance` and `$eni` stand for
//! what there is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sluice_fuzz::{Grammar, Shape, Target};

use super::*;
use crate::model::api::CreateSubnet;
use crate::model::{Model, SceneInstance, Settings};

/// Calls of one input: more show nothing new, and each describes more.
const MOST_CALLS: usize = 16;

struct Account {
    api: Ec2,
    names: [(&'static str, String); 5],
}

fn account() -> Account {
    let mut model = Model::new(Settings::instant());
    let ipv6 = Some("2001:db8::/56".parse().unwrap());
    let vpc = model.add_vpc(&["10.0.0.0/16".parse().unwrap()], ipv6, BTreeMap::new()).unwrap();
    let subnet = CreateSubnet {
        vpc: vpc.clone(),
        cidr: "10.0.0.0/24".parse().unwrap(),
        ipv6_cidr: Some("2001:db8::/64".parse().unwrap()),
        availability_zone: None,
        tags: BTreeMap::new(),
    };
    let subnet = model.add_subnet(&subnet, false).unwrap();
    let scene = SceneInstance {
        instance_type: "m5.large".into(),
        subnet: subnet.clone(),
        private_ip: None,
        public_ip: false,
        tags: BTreeMap::new(),
    };
    let instance = model.add_instance(&scene).unwrap();
    let eni = model.state().attached(&instance)[0].clone();
    let group = eni.groups[0].to_string();
    let names = [
        ("$vpc", vpc.to_string()),
        ("$subnet", subnet.to_string()),
        ("$group", group),
        ("$instance", instance.to_string()),
        ("$eni", eni.id.to_string()),
    ];
    Account { api: Ec2::new(LiveModel::new(model)), names }
}

/// No address is on two ENIs of a VPC, and none outside its subnet.
fn holds(model: &Model) {
    let state = model.state();
    let mut seen = BTreeSet::new();
    for eni in state.enis.values() {
        for net in eni.assigned() {
            assert!(seen.insert((state.subnets[&eni.subnet].vpc.clone(), net)), "{net} is on two ENIs");
            assert!(state.subnets[&eni.subnet].cidr.contains(&net), "{net} of {} is outside its subnet", eni.id);
        }
    }
}

#[test]
fn fuzz_query_api() {
    const WORDS: &[&str] = &[
        "Action=",
        "Version=2016-11-15",
        "&",
        "%20",
        "%",
        "+",
        ".1",
        ".2",
        ".0",
        ".Member",
        "Filter.1.Name=",
        "Filter.1.Value.1=",
        "$vpc",
        "$subnet",
        "$group",
        "$instance",
        "$eni",
        "eni-00000000000000000",
        "MaxResults=5",
        "NextToken=",
        "DryRun=true",
        "m5.large",
        "ClientToken=",
        "SecondaryPrivateIpAddressCount=",
        "Ipv4PrefixCount=",
        "Ipv6PrefixCount=",
        "PrivateIpAddress.1=10.0.0.9",
        "Ipv4Prefix.1=10.0.0.16/28",
        "tag:a",
        "DetachNetworkInterface",
        "TerminateInstances",
    ];
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/query");
    Target { name: "query-api", corpus: corpus.as_ref(), grammar: Grammar::Text, words: WORDS }.run(|octets| {
        let account = account();
        let mut text = String::from_utf8_lossy(octets).into_owned();
        for (name, id) in &account.names {
            text = text.replace(name, id);
        }
        let mut shown = BTreeSet::new();
        for (number, line) in (1..).zip(text.lines().take(MOST_CALLS)) {
            let (action, request) = match account.api.read(line.as_bytes()) {
                Ok(read) => read,
                Err((_, error)) => {
                    drop(failure("id", &error));
                    shown.insert(error.code.to_string());
                    continue;
                }
            };
            let now = Duration::from_secs(number);
            let outcome = account.api.live.with(|model, _| model.call_from("fuzz", request, now));
            let (state, settings) = account.api.live.with(|model, _| (model.snapshot(), model.settings().clone()));
            let told = match outcome.result {
                Ok(reply) => {
                    let context = Context { state: &state, settings: &settings, at: outcome.seen_at };
                    let xml = encode::response(action.as_str(), "id", &reply, context);
                    assert!(xml.ends_with("Response>"), "{xml}");
                    action.as_str().to_owned()
                }
                Err(CallFailure::Api(error)) => format!("{action:?} {}", error.code),
                Err(CallFailure::NoAnswer) => "no answer".to_owned(),
            };
            shown.insert(told);
            account.api.live.with(|model, _| holds(model));
        }
        shown.iter().map(Shape::said).collect()
    });
}
