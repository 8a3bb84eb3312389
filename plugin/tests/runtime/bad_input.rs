//! Bad input ends in an error object that names it, and changes nothing.

use serde_json::json;

use crate::ipamd::address;
use crate::node::{Cni, Node, POD_B};

#[test]
fn every_fault_is_named_and_nothing_is_touched() {
    let node = Node::new();
    let ipamd = node.ipamd();
    ipamd.give(vec![address("10.0.1.60", 1)]);
    let netns = node.netns("b");
    node.sh("touch /run/netns/plain");
    let add = || Cni::on("ADD", "1.0.0", POD_B, "bbb", &netns);
    let long = format!("{{\"x\": \"{}\"}}", "y".repeat(1 << 20));
    for (call, code, text) in [
        (add().stdin(""), 6, "the configuration on standard input is not a JSON object"),
        (add().stdin("\u{0}\u{1}garbage"), 6, "the configuration on standard input is not a JSON object"),
        (add().stdin("[1, 2]"), 6, "the configuration on standard input is not a JSON object"),
        (add().stdin(long), 6, "the configuration on standard input is longer than 1048576 bytes"),
        (
            add().with("cniVersion", &json!("2.0.0")),
            1,
            "cniVersion cannot be used: CNI version \"2.0.0\" is not supported",
        ),
        (
            add().with("cniVersion", &json!(null)),
            1,
            "cniVersion cannot be used: CNI version \"0.1.0\" is not supported",
        ),
        (add().with("name", &json!("../x")), 7, "field \"name\" of the configuration is not valid"),
        (add().with("type", &json!("")), 7, "field \"type\" is missing"),
        (add().with("mtu", &json!("big")), 7, "field \"mtu\" of the configuration: it must be a number of bytes"),
        (add().with("vethPrefix", &json!("vlan")), 7, "field \"vethPrefix\" of the configuration"),
        (add().with("gated", &json!("yes")), 7, "field \"gated\" of the configuration: it must be true or false"),
        (add().with("deadlineSeconds", &json!(0)), 7, "field \"deadlineSeconds\" of the configuration"),
        (
            add().with("runtimeConfig", &json!({"portMappings": 7})),
            6,
            "field \"runtimeConfig\" of the configuration has a value of the wrong type",
        ),
        (add().with("runtimeConfig", &json!({"ips": ["10.0.0.9"]})), 2, "runtimeConfig asks for \"ips\""),
        (add().with("prevResult", &json!({"ips": []})), 7, "sluice-eni must be the first plugin of its list"),
        (add().env("CNI_COMMAND", "ATTACH"), 4, "CNI_COMMAND \"ATTACH\" is not a verb"),
        (add().env("CNI_COMMAND", ""), 4, "CNI_COMMAND missing"),
        (add().env("CNI_CONTAINERID", ""), 4, "CNI_CONTAINERID missing in the environment; ADD needs it"),
        (add().env("CNI_CONTAINERID", "a/b"), 4, "CNI_CONTAINERID is not valid: container id \"a/b\""),
        (add().env("CNI_IFNAME", "a:b"), 4, "CNI_IFNAME is not valid: interface name \"a:b\""),
        (add().env("CNI_IFNAME", "eth%d"), 4, "CNI_IFNAME is not valid: interface name \"eth%d\""),
        (add().env("CNI_IFNAME", ""), 4, "CNI_IFNAME missing"),
        (add().env("CNI_NETNS", ""), 4, "CNI_NETNS missing"),
        (add().env("CNI_NETNS", "/run/netns/none"), 4, "cannot open the namespace /run/netns/none"),
        (add().env("CNI_NETNS", "/run/netns/plain"), 4, "/run/netns/plain is not a namespace"),
        (add().env("CNI_NETNS", "/proc/self/ns/net"), 4, "/proc/self/ns/net is the host's own namespace"),
        (add().env("CNI_NETNS", "b"), 4, "CNI_NETNS \"b\" is not an absolute path"),
        (add().env("CNI_ARGS", "nonsense"), 4, "CNI_ARGS: \"nonsense\" is not KEY=VALUE"),
        (add().env("CNI_ARGS", "A=B"), 4, "CNI_ARGS: unknown key \"A\""),
        (add().env("CNI_ARGS", "K8S_POD_NAME=a b"), 4, "CNI_ARGS: K8S_POD_NAME \"a b\" is not a Kubernetes name"),
        (Cni::on("CHECK", "1.0.0", POD_B, "bbb", &netns), 7, "field \"prevResult\" is missing"),
        (
            Cni::on("CHECK", "1.0.0", POD_B, "bbb", &netns).with("prevResult", &json!({"ips": 7})),
            7,
            "field \"prevResult\" of the configuration cannot be used",
        ),
        (Cni::new("GC", "1.1.0"), 7, "field \"cni.dev/valid-attachments\" is missing"),
        (
            Cni::new("GC", "1.1.0").with("cni.dev/valid-attachments", &json!([{"containerID": "a"}])),
            6,
            "field \"cni.dev/valid-attachments\" of the configuration has a value of the wrong type",
        ),
    ] {
        let answer = node.cni(&call);
        let (number, message) = answer.error();
        assert!(number == code && message.contains(text), "wanted {code} {text:?}: {answer:?}");
        assert!(answer.stderr.contains(text), "{answer:?}");
    }
    node.assert_clean();
    assert_eq!(node.ip("-n b link").as_array().unwrap().len(), 1);
    // ipamd was asked for nothing.
    assert_eq!(ipamd.log(), [""; 0]);
    // All that was in order, after all.
    node.cni(&add()).result();
}
