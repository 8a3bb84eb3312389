//! What is told over restarts of policyd.

use super::*;
use crate::testing::TestDir;

fn proxies(dir: &TestDir) -> Proxies {
    Proxies::new(dir.path().join("proxy.json"), Arc::new(Metrics::new()))
}

fn gates(proxies: &mut Proxies, pods: &[PodKey]) -> u64 {
    proxies.endpoints((1..).zip(pods));
    proxies.view().version
}

/// A proxy outlives policyd: by a version that it has it takes nothing anew.
#[test]
fn versions_that_only_proxies_know_are_never_given_to_something_else() {
    let dir = TestDir::new();
    let pods = ["a", "b", "c"].map(|name| PodKey { namespace: "web".into(), name: name.into() });
    let mut first = proxies(&dir);
    let begun = std::fs::read(dir.path().join("proxy.json")).unwrap();
    let unwritten = pods.iter().enumerate().map(|(more, _)| gates(&mut first, &pods[..=more])).max().unwrap();
    assert_eq!(begun, std::fs::read(dir.path().join("proxy.json")).unwrap(), "of gates alone nothing is written");

    let mut second = proxies(&dir);
    let update = second.feed().since(Some(unwritten));
    assert!(
        update.iter().any(|update| update.full),
        "who knows the first policyd's last is told everything: {update:?}"
    );
    let ahead = second.feed().since(Some(u64::MAX));
    assert!(
        ahead.iter().all(|update| update.full) && ahead.len() == 1,
        "so is who knows what nobody has told: {ahead:?}"
    );
    assert!(gates(&mut second, &pods[1..]) > unwritten);
    second.names(Names { least: 7, ..Names::default() });
    let written = second.view().version;

    let third = proxies(&dir);
    assert!(third.view().version > written);
    third.feed().look(|told| {
        let pods: Vec<&str> = told.endpoints.values().map(|pod| pod.name.as_str()).collect();
        assert_eq!((told.names.least, pods), (7, vec!["b", "c"]), "with the first that is written everything is");
    });
}
