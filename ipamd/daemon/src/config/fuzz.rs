//! Hostile environments: a variable a line.

use std::collections::BTreeMap;

use sluice_fuzz::{Counting, Grammar, Shape, Target};

use super::Config;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn fuzz_config() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/config");
    let words = &[
        "true",
        "false",
        "10.0.0.0/8",
        ",",
        "0x80",
        "eni",
        "prng",
        "json",
        "127.0.0.1:1",
        "/run/x",
        "{\"a\":\"b\"}",
        "=",
    ];
    Target { name: "config", corpus: corpus.as_ref(), grammar: Grammar::Text, words }.run(|octets| {
        let text = String::from_utf8_lossy(octets);
        let pairs: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
        match Config::load(&|name| pairs.get(name).map(|value| (*value).to_owned())) {
            Ok(config) => {
                assert!(config.call_timeout.as_secs() >= 10 && config.ec2_rate > 0 && config.max_waiting > 0);
                Shape::of(&(config.pool, config.network, config.log_format, config.max_pods.is_some()))
            }
            Err(faults) => {
                let told = faults.to_string();
                assert!(told.len() < 64 << 10, "faults of {} octets", told.len());
                Shape::said(&told)
            }
        }
    });
}
