//! Hostile answers of EC2 and of the metadata service, by way of the SDK.
//!
//! The first line of an input says whose they are. EC2's answer is the status there and all that follows; the metadata
//! service's are a key a line, with `|` for an end of a line in its value.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use sluice_fuzz::{Counting, Grammar, Shape, Target};
use sluice_ipamd_core::cloud::{AddressCount, CloudError};
use sluice_ipamd_daemon::cloud::Cloud;
use tokio::runtime::Runtime;

use super::answers::{ENI, id};
use super::server::{Answer, Request, Server};
use super::{cloud, settings};
use crate::Ec2Cloud;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What the server of a thread answers.
#[derive(Debug, Default)]
struct Script {
    status: u16,
    body: String,
    keys: BTreeMap<String, String>,
}

/// A thread's server and a client that has talked to it before.
struct Bench {
    runtime: Runtime,
    server: Server,
    cloud: Ec2Cloud,
    script: Arc<Mutex<Script>>,
    number: u64,
}

thread_local! {
    static BENCH: RefCell<Option<Bench>> = const { RefCell::new(None) };
}

fn answer(script: &Script, request: &Request) -> Answer {
    if request.path == "/latest/api/token" {
        return Answer::new(200, "AQAEAFTNrA4eEGx0").with("x-aws-ec2-metadata-token-ttl-seconds", "21600");
    }
    match request.path.strip_prefix("/latest/meta-data/") {
        None => Answer::new(script.status, script.body.clone()),
        Some(key) => match script.keys.get(key) {
            Some(value) => Answer::new(200, value.replace('|', "\n")),
            None => Answer::new(404, ""),
        },
    }
}

impl Bench {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let script: Arc<Mutex<Script>> = Arc::default();
        let told = Arc::clone(&script);
        let server = runtime.block_on(Server::start(move |request| Some(answer(&told.lock().unwrap(), request))));
        let cloud = cloud(&server);
        let bench = Self { runtime, server, cloud, script, number: 0 };
        // What the SDK sets up once is no part of a case.
        bench.script.lock().unwrap().status = 200;
        drop(bench.runtime.block_on(bench.cloud.describe_enis(&[id(ENI)])));
        bench
    }

    fn ec2(&mut self, call: &str) -> Result<usize, CloudError> {
        self.number += 1;
        let (cloud, eni) = (&self.cloud, id(ENI));
        // No answer of another case is in the way.
        let (vpc, zone) = ("vpc-0123456789abcdef0".parse().unwrap(), format!("zone-{}", self.number));
        self.runtime.block_on(async {
            match call {
                "subnets" => cloud.subnets(&vpc, &zone).await.map(|found| found.len()),
                "type" => cloud.described_limits("m5.large").await.map(|limits| limits.enis.min(3) as usize),
                "assign" => cloud.assign(&eni, AddressCount::Prefixes(1)).await.map(|added| added.prefixes.len()),
                "attach" => cloud.attach_eni(&eni, &"i-0123456789abcdef0".parse().unwrap(), 0, 1).await.map(|_| 1),
                "delete" => cloud.delete_eni(&eni).await.map(|()| 0),
                _ => cloud.describe_enis(&[eni]).await.map(|found| found.len()),
            }
        })
    }

    fn imds(&self) -> Result<(usize, usize), CloudError> {
        let cloud = Ec2Cloud::new(settings(&self.server.url())).unwrap();
        self.runtime.block_on(async {
            drop(cloud.identity().await);
            Ok((cloud.vpc_cidrs().await?.len(), cloud.imds_enis().await?.len()))
        })
    }
}

#[test]
fn fuzz_answers() {
    const WORDS: &[&str] = &[
        "enis",
        "subnets",
        "type",
        "assign",
        "attach",
        "delete",
        "imds",
        "200",
        "400",
        "503",
        "<item>",
        "</item>",
        "<nextToken>x</nextToken>",
        "<!DOCTYPE a [<!ENTITY b \"c\">]>",
        "<![CDATA[",
        "&lt;",
        "&#0;",
        "&b;",
        "<Code>RequestLimitExceeded</Code>",
        "xmlns=\"x\"",
        "10.0.0.0/28",
        "10.0.0.0/29",
        "eni-1",
        "network/interfaces/macs/",
        "02:01:02:03:04:05/",
        "|",
        "=",
    ];
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/answers");
    Target { name: "answers", corpus: corpus.as_ref(), grammar: Grammar::Text, words: WORDS }.run(|octets| {
        BENCH.with_borrow_mut(|bench| {
            let bench = bench.get_or_insert_with(Bench::new);
            bench.server.forget();
            let text = String::from_utf8_lossy(octets);
            let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
            let (call, status) = first.split_once(' ').unwrap_or((first, "200"));
            let status = status.parse().ok().filter(|status| (200..600).contains(status)).unwrap_or(200);
            let keys = rest.lines().filter_map(|line| line.split_once('='));
            let keys = keys.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
            *bench.script.lock().unwrap() = Script { status, body: rest.to_owned(), keys };
            let short = |error: &CloudError| {
                assert!(error.message.chars().count() <= 2000 && error.code.chars().count() <= 2000, "a long error");
                Shape::said(&format!("{call} {:?} {:.60}", error.kind, error.message))
            };
            // As so many things, because numbers count for their length only.
            let things = |count: usize| vec![(); count.min(4)];
            if call == "imds" {
                match bench.imds() {
                    Ok((cidrs, enis)) => Shape::of(&(things(cidrs), things(enis))),
                    Err(error) => short(&error),
                }
            } else {
                match bench.ec2(call) {
                    Ok(count) => Shape::of(&(things(count), call.len())).and([Shape::said(&call)]),
                    Err(error) => short(&error),
                }
            }
        })
    });
}
