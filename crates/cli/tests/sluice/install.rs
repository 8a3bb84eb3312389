//! `sluice install` on directories, with daemons and plugins that do as little as is needed. With real ones, and with
//! `sluice uninstall`: `tests/tests/node/install.rs`.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Value, json};

use super::{complaints, sluice, text};

/// A node's directories, and the sockets of daemons that are ready.
struct Node {
    root: PathBuf,
    _daemons: Vec<UnixListener>,
}

impl Node {
    fn new(name: &str, ready: bool) -> Self {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _none = fs::remove_dir_all(&root);
        for directory in ["from", "bin", "net", "run/policy"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        for name in ["sluice-eni", "sluice-policy"] {
            plugin(&root.join("from").join(name), "1.0.0");
        }
        let mut daemons = Vec::new();
        if ready {
            for (mark, socket) in [("ready", "ipamd.sock"), ("policy/ready", "policyd.sock")] {
                fs::write(root.join("run").join(mark), "").unwrap();
                daemons.push(UnixListener::bind(root.join("run").join(socket)).unwrap());
            }
        }
        Self { root, _daemons: daemons }
    }

    fn install(&self, words: &[&str]) -> Output {
        let path = |name: &str| self.root.join(name).display().to_string();
        let places =
            ["--from", &path("from"), "--bin-dir", &path("bin"), "--net-dir", &path("net"), "--run-dir", &path("run")];
        sluice(&[&["install"], words, &places, &["--wait", "0"]].concat(), "")
    }

    fn conflist(&self) -> Value {
        serde_json::from_slice(&fs::read(self.root.join("net/00-sluice.conflist")).unwrap()).unwrap()
    }

    fn files(&self, directory: &str) -> BTreeSet<String> {
        let entries = fs::read_dir(self.root.join(directory)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

/// A plugin that says which version it speaks.
fn plugin(path: &Path, version: &str) {
    let answer = json!({"cniVersion": "1.0.0", "supportedVersions": [version]});
    fs::write(path, format!("#!/bin/sh\ncat >/dev/null\necho '{answer}'\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[test]
fn a_node_gets_plugins_and_one_conflist_and_nothing_else_is_touched() {
    let node = Node::new("install-whole", true);
    let before = r#"{"cniVersion": "0.4.0", "name": "pods", "plugins": [{"type": "bridge"}]}"#;
    fs::write(node.root.join("net/10-pods.conflist"), before).unwrap();
    plugin(&node.root.join("bin/portmap"), "1.0.0");
    let output = node.install(&[]);
    assert!(output.status.success(), "{}", complaints(&output));
    let list = node.conflist();
    let kinds: Vec<&str> =
        list["plugins"].as_array().unwrap().iter().map(|one| one["type"].as_str().unwrap()).collect();
    assert_eq!((kinds, &list["name"]), (vec!["sluice-eni", "sluice-policy", "portmap"], &json!("sluice")));
    assert_eq!(node.files("net"), set(&["00-sluice.conflist", "10-pods.conflist"]));
    assert_eq!(node.files("bin"), set(&["portmap", "sluice-eni", "sluice-policy"]));
    assert_eq!(fs::read_to_string(node.root.join("net/10-pods.conflist")).unwrap(), before);
    let mode = fs::metadata(node.root.join("bin/sluice-eni")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o755);

    let again = node.install(&[]);
    assert_eq!(text(&again).matches("is as it should be").count(), 3, "{}", text(&again));
    // An older plugin, half of another, one that cannot be executed: replaced in one step.
    fs::write(node.root.join("bin/sluice-policy"), "half").unwrap();
    fs::set_permissions(node.root.join("bin/sluice-eni"), fs::Permissions::from_mode(0o600)).unwrap();
    let mended = node.install(&["plugins"]);
    assert_eq!(text(&mended).matches("is in place").count(), 2, "{}", text(&mended));
}

#[test]
fn without_ready_daemons_there_is_no_conflist() {
    let node = Node::new("install-early", false);
    let refused = |node: &Node, words: &[&str], why: &str| {
        let output = node.install(words);
        assert!(!output.status.success() && complaints(&output).contains(why), "{}", complaints(&output));
        assert!(!node.root.join("net/00-sluice.conflist").exists());
    };
    refused(&node, &[], "sluice-ipamd has not been ready since the node booted");
    fs::write(node.root.join("run/ready"), "").unwrap();
    refused(&node, &[], "sluice-ipamd does not serve");
    let _ipamd = UnixListener::bind(node.root.join("run/ipamd.sock")).unwrap();
    refused(&node, &[], "sluice-policyd has not been ready since the node booted");
    let output = node.install(&["--without-policy"]);
    assert!(output.status.success(), "{}", complaints(&output));
    let capabilities = json!({"bandwidth": true, "io.kubernetes.cri.pod-annotations": true});
    assert_eq!(node.conflist()["plugins"], json!([{"type": "sluice-eni", "capabilities": capabilities}]));
}

#[test]
fn a_node_that_boots_anew_has_no_conflist_until_it_is_ready_unless_another_would_be_used() {
    for (other, stays) in [(false, false), (true, true)] {
        let node = Node::new(&format!("install-boot-{other}"), true);
        assert!(node.install(&[]).status.success());
        if other {
            fs::write(node.root.join("net/10-pods.conflist"), r#"{"name": "pods", "plugins": [{"type": "bridge"}]}"#)
                .unwrap();
        }
        // The runtime state is gone with the boot.
        fs::remove_file(node.root.join("run/ready")).unwrap();
        assert!(!node.install(&["conflist"]).status.success());
        assert_eq!(node.root.join("net/00-sluice.conflist").exists(), stays);
    }
}

#[test]
fn a_conflist_that_no_runtime_could_use_is_not_written() {
    let node = Node::new("install-unusable", true);
    let refused = |words: &[&str], why: &str| {
        let output = node.install(words);
        assert!(!output.status.success() && complaints(&output).contains(why), "{}", complaints(&output));
    };
    refused(&["conflist"], "sluice-eni, which is not there; run `sluice install plugins` first");
    refused(&["--plugin", r#"{"type": "firewall"}"#], "firewall, which is not there; install it");
    plugin(&node.root.join("bin/firewall"), "0.4.0");
    refused(&["--plugin", r#"{"type": "firewall"}"#], "firewall does not speak CNI 1.0.0, only 0.4.0");
    refused(&["--plugin", "firewall"], "it is no JSON");
    assert_eq!(node.files("net"), set(&[]));
    // Somebody's broken edit is theirs to mend.
    let path = node.root.join("net/00-sluice.conflist");
    fs::write(&path, r#"{"name": "sluice", "plugins": [{"type": "sluice-eni"}"#).unwrap();
    refused(&["conflist"], "cannot be used: it is no JSON");
    assert!(fs::read_to_string(&path).unwrap().ends_with(r#"{"type": "sluice-eni"}"#));
}
