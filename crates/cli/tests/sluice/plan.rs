//! `sluice plan`: both tables that AWS has published for the VPC CNI's settings, and what is wrong with the question.

mod settings;

use super::*;

/// Pods; then ENIs, addresses or prefixes, and unused addresses as published; then the same as the VPC CNI's own rules give
/// it, where that is not what was published, and why.
struct Row {
    pods: u64,
    published: [u64; 3],
    right: Option<([u64; 3], &'static str)>,
}

const fn row(pods: u64, published: [u64; 3]) -> Row {
    Row { pods, published, right: None }
}

const fn wrong(pods: u64, published: [u64; 3], right: [u64; 3], why: &'static str) -> Row {
    Row { pods, published, right: Some((right, why)) }
}

type Group = (&'static str, &'static [&'static str], Vec<Row>);

/// docs/eni-and-ip-target.md of amazon-vpc-cni-k8s: ENIs, secondary addresses, unused.
fn addresses() -> Vec<Group> {
    vec![
        ("t3.small", &[], vec![row(0, [1, 3, 3]), row(5, [3, 9, 4]), row(9, [3, 9, 0])]),
        (
            "t3.small",
            &["WARM_IP_TARGET=1", "MINIMUM_IP_TARGET=1"],
            vec![row(0, [1, 1, 1]), row(5, [2, 6, 1]), row(9, [3, 9, 0])],
        ),
        (
            "t3.small",
            &["WARM_IP_TARGET=2", "MINIMUM_IP_TARGET=5"],
            vec![row(0, [2, 5, 5]), row(5, [3, 7, 2]), row(9, [3, 9, 0])],
        ),
        ("p3dn.24xlarge", &[], vec![row(0, [1, 49, 49]), row(3, [2, 98, 95]), row(95, [3, 147, 52])]),
        (
            "p3dn.24xlarge",
            &["WARM_IP_TARGET=5", "MINIMUM_IP_TARGET=10"],
            vec![row(0, [1, 10, 10]), row(7, [1, 12, 5]), row(15, [1, 20, 5]), row(45, [2, 50, 5])],
        ),
    ]
}

/// docs/prefix-and-ip-target.md there: ENIs, prefixes, unused addresses.
fn prefixes() -> Vec<Group> {
    const EMPTY: &str = "one ENI holds 49 prefixes, and an ENI without any is none that a prefix target asks for";
    vec![
        (
            "t3.small",
            &[],
            vec![row(0, [1, 1, 16]), row(5, [1, 2, 27]), row(16, [1, 2, 16]), row(17, [1, 3, 31]), row(58, [2, 5, 22])],
        ),
        (
            "t3.small",
            &["WARM_IP_TARGET=1", "MINIMUM_IP_TARGET=1"],
            vec![row(0, [1, 1, 16]), row(5, [1, 1, 11]), row(17, [1, 2, 15]), row(58, [2, 4, 6])],
        ),
        (
            "t3.small",
            &["WARM_IP_TARGET=7", "MINIMUM_IP_TARGET=20"],
            vec![
                wrong(0, [1, 1, 16], [1, 2, 32], "16 addresses are not 20; the row itself has 2 prefixes on the ENI"),
                row(5, [1, 2, 27]),
                row(17, [1, 2, 15]),
                row(58, [2, 5, 22]),
            ],
        ),
        (
            "p3dn.24xlarge",
            &[],
            vec![row(0, [1, 1, 16]), wrong(3, [2, 2, 29], [1, 2, 29], EMPTY), wrong(95, [3, 7, 17], [1, 7, 17], EMPTY)],
        ),
        (
            "p3dn.24xlarge",
            &["WARM_IP_TARGET=5", "MINIMUM_IP_TARGET=10"],
            vec![row(0, [1, 1, 16]), row(7, [1, 1, 9]), row(15, [1, 2, 17]), wrong(45, [2, 4, 19], [1, 4, 19], EMPTY)],
        ),
    ]
}

fn reproduces(groups: &[Group], by_prefixes: bool) {
    for (kind, settings, rows) in groups {
        let pods = rows.iter().map(|row| row.pods.to_string()).collect::<Vec<_>>().join(",");
        let mut arguments = vec!["plan", "--instance-type", kind, "--pods", &pods, "--json"];
        settings.iter().for_each(|setting| arguments.extend(["--env", setting]));
        if by_prefixes {
            arguments.push("--prefix-delegation");
        }
        let output = sluice(&arguments, "");
        assert!(output.status.success(), "{arguments:?}: {}", complaints(&output));
        let planned = json(&output);
        let planned = planned.as_array().unwrap();
        assert_eq!(planned.len(), rows.len());
        let mut calls = 0;
        for (row, planned) in rows.iter().zip(planned) {
            let number = |name: &str| planned[name].as_u64().unwrap();
            let places = if by_prefixes { number("prefixes") } else { number("addresses") };
            let ours = [number("enis"), places, number("free")];
            assert_eq!(number("pods"), row.pods);
            assert_eq!(number("addresses"), number("pods") + number("free"), "nothing cools, nothing is on its way");
            if by_prefixes {
                assert_eq!(number("addresses"), 16 * number("prefixes"));
            } else {
                assert_eq!(number("prefixes"), 0);
            }
            assert!(number("ec2_calls") >= calls, "they add up");
            calls = number("ec2_calls");
            let name = format!("{kind} {settings:?} with {} pods", row.pods);
            match row.right {
                None => assert_eq!(ours, row.published, "{name}"),
                Some((right, why)) => {
                    assert_eq!(ours, right, "{name}");
                    assert_ne!(right, row.published);
                    println!("{name}: published is {:?}, right is {right:?}: {why}", row.published);
                }
            }
        }
    }
}

#[test]
fn p08_the_published_table_of_addresses_is_reproduced() {
    reproduces(&addresses(), false);
}

#[test]
fn p08_the_published_table_of_prefixes_is_reproduced_where_it_is_right() {
    reproduces(&prefixes(), true);
}

#[test]
fn the_table_for_people_has_a_line_for_each_number_of_pods() {
    let arguments = [
        "plan",
        "--instance-type",
        "m5.4xlarge",
        "--env",
        "WARM_IP_TARGET=5",
        "--env",
        "MINIMUM_IP_TARGET=30",
        "--pods",
        "0,26,30,110",
    ];
    let output = sluice(&arguments, "");
    let lines: Vec<Vec<String>> =
        text(&output).lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect();
    assert_eq!(lines[0], ["PODS", "ENIS", "ADDRESSES", "PREFIXES", "FREE", "EC2", "CALLS"], "{}", text(&output));
    let numbers: Vec<&[String]> = lines[1..].iter().map(|line| &line[..5]).collect();
    assert_eq!(
        numbers,
        [
            ["0", "2", "30", "0", "30"],
            ["26", "2", "31", "0", "5"],
            ["30", "2", "35", "0", "5"],
            ["110", "4", "115", "0", "5"]
        ]
    );
    // The same question has the same answer.
    assert_eq!(text(&sluice(&arguments, "")), text(&output));
}

#[test]
fn a_burst_stands_beside_the_vpc_cni() {
    let output = sluice(
        &[
            "plan",
            "--instance-type",
            "m5.4xlarge",
            "--env",
            "SLUICE_MAX_PODS=250",
            "--prefix-delegation",
            "--burst",
            "232",
            "--json",
        ],
        "",
    );
    let burst = json(&output);
    assert_eq!(burst["burst"], 232);
    assert_eq!(burst["sluice"]["at_once"], 16);
    assert_eq!(burst["sluice"]["ec2_calls"], 1, "one Assign of all that is missing");
    assert!(burst["sluice"]["seconds"].as_f64().unwrap() < 1.0, "{burst}");
    assert_eq!(burst["vpc_cni"], serde_json::json!({ "at_once": 16, "seconds": 84.0, "ec2_calls": 14 }));
}

#[test]
fn what_cannot_be_planned_is_told_with_what_to_do() {
    for (arguments, status, words) in [
        (vec!["--instance-type", "m5.colossal", "--pods", "1"], 65, vec!["m5.colossal", "m5.4xlarge"]),
        (
            vec!["--instance-type", "m5.large", "--pods", "1", "--env", "WARM_IPS=5"],
            65,
            vec!["WARM_IPS", "docs/configuration.md"],
        ),
        (
            vec!["--instance-type", "m5.large", "--pods", "1", "--env", "WARM_IP_TARGETS=5"],
            65,
            vec!["WARM_IP_TARGETS", "did you mean"],
        ),
        (
            vec!["--instance-type", "m5.large", "--pods", "1", "--env", "WARM_IP_TARGET=x"],
            65,
            vec!["WARM_IP_TARGET=\"x\"", "whole number"],
        ),
        (vec!["--instance-type", "m5.large", "--pods", "1", "--env", "WARM_IP_TARGET"], 65, vec!["NAME=VALUE"]),
        (
            vec!["--instance-type", "m5.large", "--pods", "0,28"],
            1,
            vec!["27 pods", "3 ENIs, and all 27 of their addresses", "ENABLE_PREFIX_DELEGATION"],
        ),
        (vec!["--instance-type", "m5.large", "--pods", "5000"], 65, vec!["5000", "1000"]),
        (vec!["--instance-type", "m5.large"], 64, vec!["--pods", "--burst"]),
    ] {
        let output = sluice(&[&["plan"], &arguments[..]].concat(), "");
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {}", complaints(&output));
        assert_eq!(text(&output), "", "{arguments:?}");
        for word in words {
            assert!(complaints(&output).contains(word), "{arguments:?}: {word:?} is not in {:?}", complaints(&output));
        }
    }
    let noted = sluice(
        &["plan", "--instance-type", "m4.large", "--pods", "1", "--prefix-delegation", "--env", "SLUICE_LOG=debug"],
        "",
    );
    assert!(noted.status.success());
    assert!(complaints(&noted).contains("m4.large takes no prefixes") && complaints(&noted).contains("SLUICE_LOG"));
}

/// Every type that ipamd knows can be planned, also where the simulated EC2's own table lacks it.
#[test]
fn types_beyond_those_of_the_simulated_vpc_are_known() {
    for kind in ["m7i.48xlarge", "c7gn.medium", "t2.medium"] {
        let output = sluice(&["plan", "--instance-type", kind, "--pods", "0,2", "--json"], "");
        assert!(output.status.success(), "{kind}: {}", complaints(&output));
    }
}
