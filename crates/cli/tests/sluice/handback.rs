//! `sluice handback`, where it refuses. What it does on a node is in `tests/tests/node/takeover.rs`.

use super::{complaints, sluice};

#[test]
fn a_node_that_is_not_ours_is_not_handed_back() {
    let dir = std::env::temp_dir().join(format!("sluice-handback-{}", std::process::id()));
    std::fs::create_dir_all(dir.join("run")).unwrap();
    let run = dir.join("run");
    let to = dir.join("aws-node/ipam.json");
    let arguments = ["handback", "--run-dir", run.to_str().unwrap(), "--to", to.to_str().unwrap()];
    let output = sluice(&arguments, "");
    assert_eq!(output.status.code(), Some(1), "{}", complaints(&output));
    assert!(complaints(&output).contains("run/ipam.json is not there: this node is not Sluice's"), "{output:?}");
    std::fs::write(run.join("ipam.json"), "{").unwrap();
    let output = sluice(&arguments, "");
    assert_eq!(output.status.code(), Some(65), "{}", complaints(&output));
    assert!(complaints(&output).contains("cannot be used; start sluice-ipamd once"), "{output:?}");
    assert!(!to.exists());
    std::fs::remove_dir_all(&dir).unwrap();
}
