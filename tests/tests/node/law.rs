//! The dependency law of ARCHITECTURE.md, read from `cargo metadata`: the pure half stays pure, the plugins stay small,
//! and EC2's SDK is seen by one package.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Which workspace packages each package may be built on, directly.
const EDGES: &[(&str, &[&str])] = &[
    ("sluice-contract", &[]),
    ("sluice-fuzz", &[]),
    // ADR 12: Hubble's protocol, for who serves it and who asks.
    ("sluice-hubble", &[]),
    ("sluice-hostnet", &["sluice-contract"]),
    ("sluice-daemon", &["sluice-contract"]),
    ("sluice-cluster", &["sluice-daemon"]),
    ("sluice-vpcsim", &["sluice-contract", "sluice-hostnet"]),
    ("sluice-ipamd-core", &["sluice-contract"]),
    // ADR 6: the planner on vpcsim's model in virtual time, for `sluice plan` and the benchmarks.
    ("sluice-ipamd-sim", &["sluice-contract", "sluice-ipamd-core", "sluice-vpcsim"]),
    ("sluice-ipamd-daemon", &["sluice-contract", "sluice-daemon", "sluice-hostnet", "sluice-ipamd-core"]),
    ("sluice-ipamd-ec2", &["sluice-contract", "sluice-ipamd-core", "sluice-ipamd-daemon"]),
    // Policies name groups of AWS's interfaces, which the elected node resolves: policy-core reads policies.
    (
        "sluice-ipamd-kube",
        &[
            "sluice-cluster",
            "sluice-contract",
            "sluice-daemon",
            "sluice-ipamd-core",
            "sluice-ipamd-daemon",
            "sluice-policy-core",
        ],
    ),
    (
        "sluice-ipamd",
        &[
            "sluice-contract",
            "sluice-hostnet",
            "sluice-ipamd-core",
            "sluice-ipamd-daemon",
            "sluice-ipamd-ec2",
            "sluice-ipamd-kube",
        ],
    ),
    ("sluice-eni", &["sluice-contract", "sluice-hostnet"]),
    ("sluice-policy-core", &["sluice-contract"]),
    ("sluice-policy-bpf", &["sluice-contract", "sluice-hostnet", "sluice-policy-core"]),
    ("sluice-policy", &["sluice-contract", "sluice-hostnet"]),
    (
        "sluice-policyd",
        &[
            "sluice-cluster",
            "sluice-contract",
            "sluice-daemon",
            "sluice-hostnet",
            "sluice-hubble",
            "sluice-policy-core",
            "sluice-policy-bpf",
        ],
    ),
    (
        "sluice-proxy",
        &["sluice-contract", "sluice-daemon", "sluice-hostnet", "sluice-policy-core", "sluice-policy-bpf"],
    ),
    (
        "sluice",
        &[
            "sluice-contract",
            "sluice-hostnet",
            "sluice-hubble",
            "sluice-policy-core",
            "sluice-vpcsim",
            // `sluice plan` reads settings as ipamd reads them, and runs its planner.
            "sluice-ipamd-core",
            "sluice-ipamd-daemon",
            "sluice-ipamd-sim",
        ],
    ),
];

/// What must not be among a package's dependencies, at any depth, and why. A name that ends in `*` is a prefix.
const BANNED: &[(&str, &[&str], &str)] = &[
    ("sluice-contract", &["tokio", "aws-*", "kube", "netlink-*", "rtnetlink", "aya", "hyper"], "it is plain data"),
    ("sluice-ipamd-core", &["tokio", "aws-*", "kube", "netlink-*", "rtnetlink", "aya", "hyper", "nix"], "it is pure"),
    ("sluice-policy-core", &["tokio", "aws-*", "kube", "netlink-*", "rtnetlink", "aya", "hyper", "nix"], "it is pure"),
    ("sluice-ipamd-sim", &["aws-*", "kube", "aya"], "it runs in virtual time, without a cloud"),
    ("sluice-ipamd-daemon", &["aws-*", "kube", "aya"], "it runs in virtual time, over the seams"),
    ("sluice-ipamd-kube", &["aws-sdk-*", "aws-config", "aya"], "it speaks to the API server only"),
    ("sluice-hostnet", &["aws-*", "kube", "aya", "hyper"], "plugins are built on it"),
    // aws-lc-rs is the cryptography under TLS, not the SDK: here, and below.
    ("sluice-hubble", &["aws-sdk-*", "aws-config", "kube", "netlink-*", "rtnetlink", "aya"], "it is a protocol"),
    ("sluice-daemon", &["aws-*", "kube", "netlink-*", "rtnetlink", "aya"], "daemons are built on it"),
    (
        "sluice-cluster",
        &["aws-sdk-*", "aws-config", "netlink-*", "rtnetlink", "aya"],
        "it speaks to the API server only",
    ),
    ("sluice-vpcsim", &["aws-*", "kube", "aya"], "it is what those talk to"),
    ("sluice-eni", &["aws-*", "kube", "aya", "hyper", "axum", "clap"], "it is executed for every pod"),
    ("sluice-policy", &["aws-*", "kube", "aya", "hyper", "axum", "clap"], "it is executed for every pod"),
    (
        "sluice-policyd",
        &["aws-sdk-*", "aws-config", "aws-smithy-*", "aws-types"],
        "EC2's SDK is seen by sluice-ipamd-ec2 alone",
    ),
    ("sluice-proxy", &["aws-*", "kube", "rustls"], "it decrypts nothing and asks nobody but policyd"),
    (
        "sluice",
        &["aws-sdk-*", "aws-config", "aws-smithy-*", "aws-types"],
        "EC2's SDK is seen by sluice-ipamd-ec2 alone",
    ),
    ("sluice-tests", &["aws-sdk-*", "aws-config"], "it takes 12 minutes to build; tests run the built ipamd"),
];

struct Workspace {
    /// Package name -> names of its direct dependencies; development and build dependencies apart.
    direct: BTreeMap<String, BTreeSet<String>>,
    members: BTreeMap<String, String>,
}

impl Workspace {
    fn read() -> Self {
        let cargo = option_env!("CARGO").unwrap_or("cargo");
        let output = Command::new(cargo)
            .args(["metadata", "--format-version", "1", "--locked", "--filter-platform"])
            .arg("x86_64-unknown-linux-gnu")
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
            .output()
            .unwrap();
        assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
        let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
        let list = |value: &Value| value.as_array().unwrap().clone();
        let text = |value: &Value| value.as_str().unwrap().to_owned();

        let names: BTreeMap<String, String> =
            list(&metadata["packages"]).iter().map(|p| (text(&p["id"]), text(&p["name"]))).collect();
        let member_ids: BTreeSet<String> = list(&metadata["workspace_members"]).iter().map(text).collect();
        let members = list(&metadata["packages"])
            .iter()
            .filter(|p| member_ids.contains(&text(&p["id"])))
            .map(|p| (text(&p["name"]), text(&p["manifest_path"])))
            .collect();
        let direct = list(&metadata["resolve"]["nodes"])
            .iter()
            .map(|node| {
                let normal = list(&node["deps"])
                    .iter()
                    .filter(|dep| list(&dep["dep_kinds"]).iter().any(|kind| kind["kind"].is_null()))
                    .map(|dep| names[&text(&dep["pkg"])].clone())
                    .collect::<BTreeSet<_>>();
                (names[&text(&node["id"])].clone(), normal)
            })
            // Two versions of one crate count as one: whatever either needs, the name needs.
            .fold(BTreeMap::<String, BTreeSet<String>>::new(), |mut all, (name, deps)| {
                all.entry(name).or_default().extend(deps);
                all
            });
        Self { direct, members }
    }

    /// The shortest way from `package` to a dependency whose name `matches`.
    fn way_to(&self, package: &str, matches: impl Fn(&str) -> bool) -> Option<Vec<String>> {
        let mut seen = BTreeSet::from([package.to_owned()]);
        let mut ways = vec![vec![package.to_owned()]];
        while !ways.is_empty() {
            let mut next = Vec::new();
            for way in ways {
                for dependency in self.direct.get(way.last().unwrap()).into_iter().flatten() {
                    let longer: Vec<String> = way.iter().cloned().chain([dependency.clone()]).collect();
                    if matches(dependency) {
                        return Some(longer);
                    }
                    if seen.insert(dependency.clone()) {
                        next.push(longer);
                    }
                }
            }
            ways = next;
        }
        None
    }
}

fn names(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |prefix| name.starts_with(prefix))
}

#[test]
fn packages_are_built_on_nothing_but_what_the_law_allows() {
    let workspace = Workspace::read();
    let edges: BTreeMap<&str, &[&str]> = EDGES.iter().copied().collect();
    for member in workspace.members.keys().filter(|member| *member != "sluice-tests") {
        let allowed =
            edges.get(member.as_str()).unwrap_or_else(|| panic!("{member} has no line in the law: add one to EDGES"));
        for dependency in workspace.direct[member].iter().filter(|name| workspace.members.contains_key(*name)) {
            assert!(allowed.contains(&dependency.as_str()), "{member} must not be built on {dependency}");
        }
    }
}

#[test]
fn nobody_reaches_what_it_must_not_see() {
    let workspace = Workspace::read();
    for (package, patterns, why) in BANNED {
        for pattern in *patterns {
            if let Some(way) = workspace.way_to(package, |name| names(pattern, name)) {
                panic!("{package} must not see {pattern}, because {why}; but {}", way.join(" -> "));
            }
        }
    }
}

#[test]
fn every_package_takes_its_lints_and_its_dependencies_from_the_workspace() {
    for (name, manifest) in Workspace::read().members {
        let text = std::fs::read_to_string(&manifest).unwrap();
        assert!(text.contains("[lints]\nworkspace = true"), "{name}: [lints] workspace = true is missing");
        let mut in_dependencies = false;
        for line in text.lines() {
            if let Some(section) = line.strip_prefix('[') {
                in_dependencies = section.contains("dependencies");
            } else if in_dependencies && line.contains('=') {
                assert!(line.contains("workspace = true"), "{name}: `{line}` does not come from the workspace");
            }
        }
    }
}
