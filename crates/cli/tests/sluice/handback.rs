//! `sluice handback`: where it refuses, and on which files it works from a container. What it does on a node is in
//! `tests/tests/node/takeover.rs`.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use super::{complaints, sluice, text};

/// A state with two pods, as a daemon has written it.
const STATE: &str = include_str!("../../../../tests/versions/0.1.0/state/ipam.json");

/// The root of a host of Debian's or Ubuntu's, as a container has it, with Sluice's state: `/var/run` is an absolute link.
fn host(name: &str) -> PathBuf {
    let root = std::env::temp_dir().join(format!("sluice-{name}-{}", std::process::id()));
    for directory in ["run/sluice", "run/aws-node", "var"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    symlink("/run", root.join("var/run")).unwrap();
    fs::write(root.join("run/sluice/ipam.json"), STATE).unwrap();
    root
}

#[test]
fn what_the_vpc_cni_would_not_find_is_not_written() {
    let root = host("handback-elsewhere");
    let at = |path: &str| root.join(path).to_str().unwrap().to_owned();
    let (run_dir, right) = (at("run/sluice"), at("run/aws-node/ipam.json"));
    for to in [at("var/run/aws-node/ipam.json"), "/var/run/aws-node/ipam.json".to_owned()] {
        let output = sluice(&["handback", "--run-dir", &run_dir, "--to", &to], "");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = complaints(&output);
        assert!(said.contains("leads to /") && said.contains(&format!("would not find it; say {right}")), "{said}");
        assert!(root.join("run/sluice/ipam.json").exists(), "the state is put aside");
    }
    let output = sluice(&["handback", "--run-dir", &run_dir, "--to", &right], "");
    assert_eq!(text(&output).lines().next().unwrap(), format!("pods that are the AWS VPC CNI's: 2 ({right})"));
    fs::remove_dir_all(&root).unwrap();
}

#[test]
fn a_node_is_handed_back_from_a_container_once() {
    let root = host("handback-root");
    let (state, to) = (root.join("run/sluice/ipam.json"), root.join("run/aws-node/ipam.json"));
    let handback = || sluice(&["handback", "--root", root.to_str().unwrap()], "");
    // The daemon that serves the node is the host's.
    let socket = root.join("run/aws-node/ipamd.sock");
    let serving = UnixListener::bind(&socket).unwrap();
    let output = handback();
    assert!(complaints(&output).contains("stop it first") && state.exists(), "{output:?}");
    drop(serving);
    fs::remove_file(&socket).unwrap();
    // What it has written before is found again, where its answer was lost.
    for _ in 0..2 {
        let output = handback();
        let told = format!("pods that are the AWS VPC CNI's: 2 ({})", to.display());
        assert!(output.status.success() && text(&output).starts_with(&told), "{output:?}");
        let written = fs::read_to_string(&to).unwrap();
        assert!(written.contains("10.0.1.15") && written.contains("10.0.1.17"), "{written}");
        assert!(!state.exists(), "it would be believed another time");
    }
    fs::write(&to, "{}").unwrap();
    let output = handback();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(complaints(&output).contains("has changed since"), "{output:?}");
    assert_eq!(fs::read_to_string(&to).unwrap(), "{}");
    fs::remove_dir_all(&root).unwrap();
}

#[test]
fn a_node_that_is_not_ours_is_not_handed_back() {
    let dir = std::env::temp_dir().join(format!("sluice-handback-{}", std::process::id()));
    fs::create_dir_all(dir.join("run")).unwrap();
    let run = dir.join("run");
    let to = dir.join("aws-node/ipam.json");
    let arguments = ["handback", "--run-dir", run.to_str().unwrap(), "--to", to.to_str().unwrap()];
    let output = sluice(&arguments, "");
    assert_eq!(output.status.code(), Some(1), "{}", complaints(&output));
    assert!(complaints(&output).contains("run/ipam.json is not there: this node is not Sluice's"), "{output:?}");
    fs::write(run.join("ipam.json"), "{").unwrap();
    let output = sluice(&arguments, "");
    assert_eq!(output.status.code(), Some(65), "{}", complaints(&output));
    assert!(complaints(&output).contains("cannot be used; start sluice-ipamd once"), "{output:?}");
    assert!(!to.exists());
    fs::remove_dir_all(&dir).unwrap();
}
