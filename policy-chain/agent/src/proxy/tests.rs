//! What is kept for a proxy that finds no policyd, and for the next policyd.

use super::*;
use crate::testing::TestDir;

fn proxies(dir: &TestDir) -> Proxies {
    Proxies::new(dir.path().join("proxy.json"), Arc::new(Metrics::new()))
}

#[test]
fn gates_are_written_with_the_first_of_what_else_is_told() {
    let dir = TestDir::new();
    let pods = ["a", "b"].map(|name| PodKey { namespace: "web".into(), name: name.into() });
    let mut first = proxies(&dir);
    first.endpoints((1..).zip(&pods));
    assert_eq!(first.view().endpoints, 2);
    assert!(!dir.path().join("proxy.json").exists(), "no proxy needs to know of gates to which nothing is redirected");
    first.names(Names { least: 7, ..Names::default() });

    let second = proxies(&dir);
    second.feed().look(|told| {
        let pods: Vec<&str> = told.endpoints.values().map(|pod| pod.name.as_str()).collect();
        assert_eq!((told.names.least, pods), (7, vec!["a", "b"]));
    });
    assert_eq!(second.view().version, first.view().version);
}
