//! Bad input ends in an error object that names it, and policyd is asked for nothing.

use serde_json::json;

use crate::add::pod;
use crate::node::{Cni, Node};

#[test]
fn every_fault_is_named_and_nothing_is_asked() {
    let node = Node::new();
    let policyd = node.policyd();
    let (netns, _, result) = pod(&node, "b", "1.0.0");
    node.sh("touch /run/netns/plain");
    let add = || Cni::on("ADD", "1.0.0", &netns).after(&result);
    let with = |path: &str, value: serde_json::Value| {
        let mut changed = result.clone();
        *changed.pointer_mut(path).unwrap() = value;
        add().after(&changed)
    };
    let long = format!("{{\"x\": \"{}\"}}", "y".repeat(1 << 20));
    let many = json!((0..1025).map(|_| json!({"name": "x"})).collect::<Vec<_>>());
    let gc = || Cni::new("GC", "1.1.0");
    let unusable = "field \"prevResult\" of the configuration cannot be used";
    let faults = [
        (add().stdin(""), 6, "the configuration on standard input is not a JSON object"),
        (add().stdin("\u{0}\u{1}garbage"), 6, "the configuration on standard input is not a JSON object"),
        (add().stdin("[1, 2]"), 6, "the configuration on standard input is not a JSON object"),
        (add().stdin(long), 6, "the configuration on standard input is longer than 1048576 bytes"),
        (add().with("cniVersion", &json!("2.0.0")), 1, "cniVersion cannot be used: CNI version \"2.0.0\""),
        (add().with("cniVersion", &json!(null)), 1, "cniVersion cannot be used: CNI version \"0.1.0\""),
        (add().with("cniVersion", &json!(1)), 6, "field \"cniVersion\" of the configuration has a value of the wrong"),
        (add().with("name", &json!("../x")), 7, "field \"name\" of the configuration is not valid"),
        (add().with("name", &json!(null)), 7, "field \"name\" is missing"),
        (add().with("type", &json!("")), 7, "field \"type\" is missing"),
        (
            add().with("policyWaitSeconds", &json!(0)),
            7,
            "field \"policyWaitSeconds\" of the configuration: it must be a",
        ),
        (add().with("policyWaitSeconds", &json!("9")), 7, "it must be a number of seconds, 1 to 120"),
        (
            add().with("policydSocket", &json!("x")),
            7,
            "field \"policydSocket\" of the configuration: it must be an abs",
        ),
        (add().with("runDir", &json!(7)), 7, "field \"runDir\" of the configuration: it must be an absolute path"),
        (add().after(&json!(null)), 7, "has no prevResult: sluice-policy must follow the plugin that makes the pod's"),
        (add().after(&json!([])), 7, unusable),
        (add().after(&json!("x")), 7, unusable),
        (with("/interfaces", json!({})), 7, unusable),
        (with("/interfaces", many), 7, "\"interfaces\" has 1025 entries; at most 1024 are read"),
        (with("/interfaces/1/name", json!(7)), 7, unusable),
        (with("/interfaces/1/name", json!("a/b")), 7, "prevResult names an interface of the sandbox that cannot be"),
        (with("/interfaces/1/name", json!("")), 7, "prevResult names an interface of the sandbox that cannot be"),
        (with("/interfaces/1/sandbox", json!([])), 7, unusable),
        (with("/ips", json!("10.0.1.60")), 7, unusable),
        (with("/ips/0/address", json!("10.0.1.60/99")), 7, unusable),
        (with("/ips/0/address", json!("web-0")), 7, unusable),
        (with("/ips/0/interface", json!(2)), 7, "address 10.0.1.60/32 is on interface 2, but there are 2 interfaces"),
        (with("/ips/0/interface", json!(-1)), 7, unusable),
        (with("/routes/0/dst", json!("everywhere")), 7, unusable),
        (with("/cniVersion", json!("9.9.9")), 7, unusable),
        (add().env("CNI_COMMAND", "ATTACH"), 4, "CNI_COMMAND \"ATTACH\" is not a verb"),
        (add().env("CNI_COMMAND", ""), 4, "CNI_COMMAND missing"),
        (add().env("CNI_CONTAINERID", ""), 4, "CNI_CONTAINERID missing in the environment; ADD needs it"),
        (add().env("CNI_CONTAINERID", "a/b"), 4, "CNI_CONTAINERID is not valid: container id \"a/b\""),
        (add().env("CNI_IFNAME", "a:b"), 4, "CNI_IFNAME is not valid: interface name \"a:b\""),
        (add().env("CNI_IFNAME", ""), 4, "CNI_IFNAME missing"),
        (add().env("CNI_NETNS", ""), 4, "CNI_NETNS missing"),
        (add().env("CNI_NETNS", "/run/netns/none"), 4, "cannot open the namespace /run/netns/none"),
        (add().env("CNI_NETNS", "/run/netns/plain"), 4, "/run/netns/plain is not a namespace"),
        (add().env("CNI_NETNS", "/proc/self/ns/net"), 4, "/proc/self/ns/net is the host's own namespace"),
        (add().env("CNI_NETNS", "b"), 4, "CNI_NETNS \"b\" is not an absolute path"),
        (add().env("CNI_ARGS", "nonsense"), 4, "CNI_ARGS: \"nonsense\" is not KEY=VALUE"),
        (add().env("CNI_ARGS", "A=B"), 4, "CNI_ARGS: unknown key \"A\""),
        (add().env("CNI_ARGS", "K8S_POD_NAME=a b"), 4, "CNI_ARGS: K8S_POD_NAME \"a b\" is not a Kubernetes name"),
        (Cni::on("CHECK", "1.0.0", &netns), 7, "field \"prevResult\" is missing"),
        (Cni::on("CHECK", "1.0.0", &netns).after(&json!({"ips": 7})), 7, unusable),
        (gc(), 7, "field \"cni.dev/valid-attachments\" is missing"),
        (
            gc().with("cni.dev/valid-attachments", &json!([{"containerID": "a"}])),
            6,
            "field \"cni.dev/valid-attachments\"",
        ),
        (Cni::new("STATUS", "1.1.0").with("runDir", &json!("x")), 7, "field \"runDir\" of the configuration"),
    ];
    for (call, code, text) in faults {
        let answer = node.cni(&call);
        let (number, message) = answer.error();
        assert!(number == code && message.contains(text), "wanted {code} {text:?}: {answer:?}");
        assert!(answer.stderr.contains(text), "{answer:?}");
    }
    assert_eq!(policyd.asked(), []);
    // All that was in order, after all.
    assert_eq!(node.cni(&add()).result(), result);
}
