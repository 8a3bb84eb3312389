//! Hostile input: what runtimes give plugins, and what comes over the sockets.

use std::fmt::Debug;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sluice_fuzz::{Counting, Grammar, Shape, Target};

use crate::cni::{AddResult, EniConf, Environment, Invocation, NetConf, PolicyConf, VersionReply};
use crate::proxy::{FromPolicyd, FromProxy, Snapshot};
use crate::rpc::{Hello, PolicyCall, PolicyOutcome, Reply, Request, decode, encode, read_frame, tombstone};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn target(name: &'static str, corpus: &'static str, words: &'static [&'static str]) -> Target<'static> {
    Target { name, corpus: Path::new(corpus), grammar: Grammar::Text, words }
}

/// Five lines are the environment, the rest is standard input.
#[test]
fn fuzz_cni() {
    const WORDS: &[&str] = &[
        "ADD",
        "DEL",
        "CHECK",
        "GC",
        "STATUS",
        "VERSION",
        "0.3.0",
        "0.3.1",
        "0.4.0",
        "1.0.0",
        "1.1.0",
        "0.1.0",
        "cniVersion",
        "prevResult",
        "runtimeConfig",
        "IgnoreUnknown=1",
        "K8S_POD_NAME=",
        ";",
        "cni.dev/valid-attachments",
        "interfaces",
        "ips",
        "routes",
        "sandbox",
        "mtu",
        "vethPrefix",
        "10.0.0.1/33",
        "fe80::/64",
        "02:00:00:00:00:0g",
    ];
    target("cni", concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/cni"), WORDS).run(|octets| {
        let text = String::from_utf8_lossy(octets);
        let mut lines = text.splitn(6, '\n');
        let mut line = || lines.next().filter(|line| !line.is_empty()).map(str::to_owned);
        let environment = Environment {
            command: line(),
            container_id: line(),
            netns: line(),
            ifname: line(),
            args: line(),
            path: None,
        };
        let stdin = line().unwrap_or_default();
        let invocation = Invocation::parse(&environment);
        drop(VersionReply::to(stdin.as_bytes()));
        let invocation = match invocation {
            Ok(invocation) => invocation,
            Err(error) => return Shape::said(&error),
        };
        let conf = NetConf::parse(invocation.verb(), stdin.as_bytes());
        let conf = match conf {
            Ok(conf) => conf,
            Err(error) => return Shape::said(&crate::cni::chain(&error)),
        };
        assert_eq!(NetConf::version_of(stdin.as_bytes()), Some(conf.version));
        let told = (EniConf::of(&conf).map(drop), PolicyConf::of(&conf).map(drop), conf.runtime_config().map(drop));
        let previous = conf.prev_result();
        if let Ok(Some(previous)) = &previous {
            // What is handed on is what was understood.
            let value = previous.to_value(conf.version);
            let again = AddResult::from_value(conf.version, &value).expect("a result of our own");
            assert_eq!(again.to_value(conf.version), value);
        }
        Shape::of(&(invocation.verb(), told, previous.map(|result| result.is_some())))
    });
}

/// A message that is read is written so that it reads the same.
fn message<T: DeserializeOwned + Serialize + Debug>(body: &[u8]) -> Option<Shape> {
    let read: T = decode(body).ok()?;
    let Ok(frame) = encode(&read) else { return Some(Shape::said(&"too long to be sent")) };
    let again: T = read_frame(&mut frame.as_slice()).expect("a frame of our own");
    assert_eq!(encode(&again).expect("as long as before"), frame, "a message changes when it is handed on");
    Some(Shape::said(&std::any::type_name::<T>()).and([Shape::of(&read)]))
}

#[test]
fn fuzz_frames() {
    const WORDS: &[&str] = &[
        "add",
        "del",
        "check",
        "gc",
        "status",
        "done",
        "refused",
        "deadline_ms",
        "protocol",
        "min",
        "max",
        "software",
        "attachment",
        "addresses",
        "retry_after_ms",
        "pool_growing",
        "subnet_exhausted",
        "update",
        "decisions",
        "verdict",
        "http",
        "headers",
    ];
    target("frames", concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/frames"), WORDS).run(|octets| {
        let error = decode::<serde_json::Value>(octets).err().map(|error| Shape::said(&crate::cni::chain(&error)));
        let mut read: Vec<Shape> = error.into_iter().collect();
        read.extend(message::<Hello>(octets));
        read.extend(message::<Request>(octets));
        read.extend(message::<Request<PolicyCall>>(octets));
        read.extend(message::<Reply>(octets));
        read.extend(message::<Reply<PolicyOutcome>>(octets));
        read.extend(message::<FromProxy>(octets));
        read.extend(message::<FromPolicyd>(octets));
        if let Ok(FromPolicyd::Update(update)) = decode(octets) {
            let mut whole = Snapshot::default();
            let update = *update;
            whole.apply(update.clone());
            let mut parts = Snapshot::default();
            update.parts().into_iter().for_each(|part| parts.apply(part));
            assert_eq!(parts, whole, "an update in parts is another update");
        }
        drop(tombstone::from_json::<crate::rpc::DelRequest>(octets));
        // And as a frame, whose length it tells itself.
        drop(read_frame::<Request>(&mut &*octets));
        read.into_iter().collect()
    });
}
