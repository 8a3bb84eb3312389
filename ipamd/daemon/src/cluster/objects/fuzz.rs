//! Hostile Nodes and ENIConfigs.

use sluice_fuzz::{Grammar, Shape, Target};

use super::{MOST_GROUPS, MOST_PODS, Naming, eni_config, is_schedulable, max_pods, read};

#[test]
fn fuzz_eniconfig() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/eniconfig");
    let words = &[
        "kind",
        "Node",
        "ENIConfig",
        "List",
        "items",
        "metadata",
        "name",
        "labels",
        "annotations",
        "spec",
        "subnet",
        "subnet-0000001",
        "securityGroups",
        "sg-00000001",
        "unschedulable",
        "status",
        "capacity",
        "pods",
        "110",
        "1Ki",
        "11e1",
        "true",
        "zone",
        "vpc.amazonaws.com/externalEniConfig",
        "default",
        "n1",
        "---",
        "&a",
        "*a",
    ];
    let naming = Naming { annotation: "zone".to_owned(), label: "zone".to_owned() };
    Target { name: "eniconfig", corpus: corpus.as_ref(), grammar: Grammar::Text, words }.run(|octets| {
        let objects = match read(&String::from_utf8_lossy(octets)) {
            Ok(objects) => objects,
            Err(error) => {
                let told = error.to_string();
                assert!(told.len() < 4096, "an error of {} octets", told.len());
                return Shape::said(&told);
            }
        };
        let schedulable = is_schedulable(&objects, "n1");
        let pods = max_pods(&objects, "n1");
        assert!(!matches!(pods, Some(Ok(pods)) if u64::from(pods) > MOST_PODS));
        let schedulable = (schedulable, pods.map(|pods| pods.is_ok()));
        match eni_config(&objects, "n1", &naming) {
            Ok(config) => {
                assert!(config.security_groups.len() <= MOST_GROUPS);
                Shape::of(&(schedulable, objects.len().min(4), config.name.len().min(8), config.security_groups.len()))
            }
            Err(error) => Shape::said(&error),
        }
    });
}
