//! Golden shapes of every version, round trips, tables of bad input, and garbage.

use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::id::{ContainerId, EniId, IfName, MacAddr};
use crate::rpc::{PodAddress, Refusal, RefusalCode};

fn pod_b() -> AddResult {
    let host = IfName::new("enib5faff8a083").unwrap();
    let pod = Interface {
        sandbox: Some("/var/run/netns/cni-1".into()),
        mtu: Some(9001),
        ..Interface::new("eth0", MacAddr([0x0a, 0, 0, 0, 0, 2]))
    };
    let address = PodAddress {
        ip: "10.0.1.60".parse().unwrap(),
        interface: 0,
        eni: EniId::new("eni-0a1b2c3d4e5f60718").unwrap(),
        eni_mac: MacAddr([2, 0, 0, 0, 0, 9]),
        card: 0,
        device: 1,
        table: 2,
        branch: None,
    };
    let attachment = serde_json::to_value(EniAttachment::of(&host, &address)).unwrap();
    AddResult {
        interfaces: vec![
            Interface { mtu: Some(9001), ..Interface::new(host.as_str(), MacAddr([0x0a, 0, 0, 0, 0, 1])) },
            pod,
        ],
        ips: vec![IpConfig {
            interface: Some(1),
            address: "10.0.1.60/32".parse().unwrap(),
            gateway: Some("169.254.1.1".parse().unwrap()),
        }],
        routes: vec![Route::new("0.0.0.0/0".parse().unwrap(), Some("169.254.1.1".parse().unwrap()))],
        dns: Dns::default(),
        extra: [(ATTACHMENT_KEY.to_owned(), attachment)].into(),
    }
}

#[test]
fn a_result_has_the_shape_of_its_version() {
    for version in SpecVersion::ALL {
        let mut expected = json!({
            "cniVersion": version.as_str(),
            "interfaces": [
                {"name": "enib5faff8a083", "mac": "0a:00:00:00:00:01"},
                {"name": "eth0", "mac": "0a:00:00:00:00:02", "sandbox": "/var/run/netns/cni-1"},
            ],
            "ips": [{"interface": 1, "address": "10.0.1.60/32", "gateway": "169.254.1.1"}],
            "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}],
            "sluice.dev/attachment": {
                "hostInterface": "enib5faff8a083", "eni": "eni-0a1b2c3d4e5f60718", "eniMac": "02:00:00:00:00:09",
                "card": 0, "device": 1, "table": 2,
            },
        });
        if version.has_ip_family() {
            expected["ips"][0]["version"] = "4".into();
        }
        if version.has_link_details() {
            expected["interfaces"][0]["mtu"] = 9001.into();
            expected["interfaces"][1]["mtu"] = 9001.into();
        }
        assert_eq!(pod_b().to_value(version), expected, "{version}");
    }
}

#[test]
fn an_ipv6_address_says_so_where_the_version_asks_for_it() {
    let mut result = pod_b();
    result.ips[0].address = "2001:db8::5/128".parse().unwrap();
    assert_eq!(result.to_value(SpecVersion::V0_4_0)["ips"][0]["version"], "6");
    assert_eq!(result.to_value(SpecVersion::V1_0_0)["ips"][0].get("version"), None);
}

/// The result that the VPC CNI leaves behind (reference/vpc-cni.md 4.14): a pod that lives on through a takeover.
#[test]
fn a_result_of_the_vpc_cni_is_understood() {
    let raw = json!({"cniVersion": "0.4.0",
        "interfaces": [{"name": "enib5faff8a083"}, {"name": "eth0", "mac": "2", "sandbox": "/var/run/netns/cni-1"},
            {"name": "dummyb5faff8a083", "mac": "0", "sandbox": "1"}],
        "ips": [{"version": "4", "interface": 1, "address": "10.0.1.60/32"}], "dns": {}});
    let result = AddResult::from_value(SpecVersion::V1_0_0, &raw).unwrap();
    assert_eq!(result.interfaces[1].mac, None);
    assert_eq!(result.ips[0].address, "10.0.1.60/32".parse::<IpNet>().unwrap());
}

#[test]
fn a_result_that_contradicts_itself_is_refused() {
    let raw = json!({"ips": [{"interface": 2, "address": "10.0.1.60/32"}], "interfaces": [{"name": "eth0"}]});
    let error = AddResult::from_value(SpecVersion::V1_0_0, &raw).unwrap_err();
    assert_eq!(error.to_string(), "address 10.0.1.60/32 is on interface 2, but there are 1 interfaces");
    let long = json!({"routes": vec![json!({"dst": "0.0.0.0/0"}); 1025]});
    assert!(matches!(AddResult::from_value(SpecVersion::V1_0_0, &long), Err(ResultError::TooLong { .. })));
    for bad in [json!([]), json!("x"), json!({"ips": [{"address": "10.0.1.60"}]}), json!({"cniVersion": "9.9.9"})] {
        assert!(AddResult::from_value(SpecVersion::V1_0_0, &bad).is_err(), "{bad}");
    }
}

#[test]
fn version_answers_whatever_it_is_asked_with() {
    let all = json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    for (stdin, version) in [
        (r#"{"cniVersion":"0.4.0"}"#, "0.4.0"),
        (r#"{"cniVersion":"0.4.0","name":"x","type":"y"}"#, "0.4.0"),
        (r#"{"cniVersion":"7.0.0"}"#, "1.1.0"),
        ("", "1.1.0"),
        ("{", "1.1.0"),
    ] {
        let reply = serde_json::to_value(VersionReply::to(stdin.as_bytes())).unwrap();
        assert_eq!(reply, json!({"cniVersion": version, "supportedVersions": all}), "{stdin}");
    }
}

#[test]
fn the_newest_common_version_is_chosen() {
    assert_eq!(SpecVersion::negotiate(&["0.4.0", "1.0.0", "2.0.0"]), Some(SpecVersion::V1_0_0));
    assert_eq!(SpecVersion::negotiate(&["1.1.0", "0.3.0"]), Some(SpecVersion::V1_1_0));
    assert_eq!(SpecVersion::negotiate(&["0.1.0", "2.0.0"]), None);
}

fn env(variables: &[(&str, &str)]) -> Environment {
    Environment::read(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
}

#[test]
fn an_invocation_is_read_as_runtimes_make_it() {
    let args = "K8S_POD_NAME=web-0;IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_INFRA_CONTAINER_ID=abc;\
                K8S_POD_UID=0a-1;FUTURE=x";
    let full = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "abc"),
        ("CNI_NETNS", "/var/run/netns/cni-1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", args),
    ];
    let Invocation::Add { container, netns, ifname, args } = Invocation::parse(&env(&full)).unwrap() else {
        panic!("not an ADD");
    };
    assert_eq!(
        (container.as_str(), netns.as_path(), ifname.as_str()),
        ("abc", Path::new("/var/run/netns/cni-1"), "eth0")
    );
    assert_eq!(args.pod.to_string(), "default/web-0");
    assert_eq!(args.pod.uid.as_deref(), Some("0a-1"));
    let del = [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "abc"), ("CNI_NETNS", ""), ("CNI_IFNAME", "eth0")];
    let Invocation::Del { netns, .. } = Invocation::parse(&env(&del)).unwrap() else { panic!("not a DEL") };
    assert_eq!(netns, None);
    for (verb, bare) in [("STATUS", Invocation::Status), ("GC", Invocation::Gc), ("VERSION", Invocation::Version)] {
        assert_eq!(Invocation::parse(&env(&[("CNI_COMMAND", verb), ("CNI_NETNS", "dummy")])).unwrap(), bare);
    }
}

#[test]
fn a_bad_environment_is_named() {
    let base = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "abc"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", ""),
    ];
    let with = |name: &str, value: &str| {
        let mut changed = base;
        for (key, old) in &mut changed {
            if *key == name {
                *old = value;
            }
        }
        Invocation::parse(&env(&changed)).unwrap_err().to_string()
    };
    for (name, value, message) in [
        ("CNI_COMMAND", "", "CNI_COMMAND missing in the environment"),
        ("CNI_COMMAND", "add", "CNI_COMMAND \"add\" is not a verb of CNI 0.3.0 to 1.1.0"),
        ("CNI_CONTAINERID", "", "CNI_CONTAINERID missing in the environment; ADD needs it"),
        ("CNI_CONTAINERID", "../x", "CNI_CONTAINERID is not valid"),
        ("CNI_NETNS", "", "CNI_NETNS missing in the environment; ADD needs it"),
        ("CNI_NETNS", "proc/1/ns/net", "CNI_NETNS \"proc/1/ns/net\" is not an absolute path"),
        ("CNI_IFNAME", "sixteen-bytes-xx", "CNI_IFNAME is not valid"),
        ("CNI_ARGS", "K8S_POD_NAME", "CNI_ARGS: \"K8S_POD_NAME\" is not KEY=VALUE"),
        ("CNI_ARGS", "COLOUR=red", "CNI_ARGS: unknown key \"COLOUR\"; with IgnoreUnknown=1 it is passed over"),
        ("CNI_ARGS", "K8S_POD_NAME=a/b", "CNI_ARGS: K8S_POD_NAME \"a/b\" is not a Kubernetes name"),
    ] {
        assert_eq!(with(name, value), message);
    }
    let nothing = Invocation::parse(&env(&[("CNI_COMMAND", "CHECK")])).unwrap_err().to_string();
    assert_eq!(nothing, "CNI_CONTAINERID and CNI_NETNS and CNI_IFNAME missing in the environment; CHECK needs it");
}

fn conf(verb: Verb, json: &Value) -> Result<NetConf, ConfError> {
    NetConf::parse(verb, json.to_string().as_bytes())
}

#[test]
fn a_configuration_is_read_as_libcni_makes_it() {
    let conf = conf(
        Verb::Add,
        &json!({"cniVersion": "1.0.0", "name": "sluice", "type": "sluice-eni", "mtu": "1500", "vethPrefix": "eni",
            "unknown": {"a": 1}, "capabilities": {"portMappings": true}, "runtimeConfig": {
                "portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "tcp", "hostIP": ""}],
                "bandwidth": {"ingressRate": 1000},
                "dns": {"servers": ["10.96.0.10"], "searches": null},
                "io.kubernetes.cri.pod-annotations": {"a/b": "c"}, "aliases": ["x"]}}),
    )
    .unwrap();
    let runtime = conf.runtime_config().unwrap();
    assert_eq!(runtime.port_mappings[0].container_port, 8080);
    assert_eq!(runtime.port_mappings[0].host_ip, None);
    assert_eq!(runtime.bandwidth.unwrap().ingress_rate, 1000);
    assert_eq!(runtime.dns.unwrap().servers, ["10.96.0.10"]);
    assert_eq!(runtime.pod_annotations["a/b"], "c");
    assert_eq!(EniConf::of(&conf).unwrap(), EniConf { mtu: Some(1500), ..EniConf::default() });
}

#[test]
fn both_spellings_of_the_gc_list_are_read_and_a_missing_one_is_not_an_empty_one() {
    let entry = json!([{"containerID": "abc", "ifname": "eth0"}]);
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        let conf = conf(Verb::Gc, &json!({"cniVersion": "1.1.0", "name": "n", "type": "t", key: entry})).unwrap();
        let wanted = GcAttachment::new(ContainerId::new("abc").unwrap(), IfName::new("eth0").unwrap());
        assert_eq!(conf.valid_attachments, Some(vec![wanted]));
    }
    let empty = json!({"cniVersion": "1.1.0", "name": "n", "type": "t", "cni.dev/valid-attachments": []});
    assert_eq!(conf(Verb::Gc, &empty).unwrap().valid_attachments, Some(vec![]));
    let none = conf(Verb::Gc, &json!({"cniVersion": "1.1.0", "name": "n", "type": "t"})).unwrap_err();
    assert!(matches!(none, ConfError::Missing { field: "cni.dev/valid-attachments" }));
    let bad = json!({"cniVersion": "1.1.0", "name": "n", "type": "t",
        "cni.dev/valid-attachments": [{"containerID": "abc", "ifname": "eth0"}, {"containerID": "../x", "ifname": "eth0"}]});
    assert_eq!(conf(Verb::Gc, &bad).unwrap_err().code(), ErrorCode::Decode);
}

#[test]
fn a_bad_configuration_is_named() {
    let text = |verb, json: &str| {
        let error = NetConf::parse(verb, json.as_bytes()).unwrap_err();
        (error.code().number(), error.to_string())
    };
    for (verb, json, code, message) in [
        (Verb::Add, "", 6, "the configuration on standard input is not a JSON object"),
        (Verb::Add, "[]", 6, "the configuration on standard input is not a JSON object"),
        (Verb::Add, r#"{"name":"n","type":"t"}"#, 1, "cniVersion cannot be used"),
        (Verb::Add, r#"{"cniVersion":"0.2.0","name":"n","type":"t"}"#, 1, "cniVersion cannot be used"),
        (
            Verb::Add,
            r#"{"cniVersion":1,"name":"n","type":"t"}"#,
            6,
            "field \"cniVersion\" of the configuration has a value of the wrong type",
        ),
        (Verb::Add, r#"{"cniVersion":"1.0.0","type":"t"}"#, 7, "field \"name\" is missing in the configuration"),
        (
            Verb::Add,
            r#"{"cniVersion":"1.0.0","name":"a b","type":"t"}"#,
            7,
            "field \"name\" of the configuration is not valid",
        ),
        (Verb::Add, r#"{"cniVersion":"1.0.0","name":"n"}"#, 7, "field \"type\" is missing in the configuration"),
        (
            Verb::Check,
            r#"{"cniVersion":"0.3.1","name":"n","type":"t"}"#,
            1,
            "CHECK exists since CNI 0.4.0; the configuration says 0.3.1",
        ),
        (
            Verb::Check,
            r#"{"cniVersion":"0.4.0","name":"n","type":"t"}"#,
            7,
            "field \"prevResult\" is missing in the configuration",
        ),
        (
            Verb::Gc,
            r#"{"cniVersion":"1.0.0","name":"n","type":"t"}"#,
            1,
            "GC exists since CNI 1.1.0; the configuration says 1.0.0",
        ),
        (
            Verb::Status,
            r#"{"cniVersion":"1.0.0","name":"n","type":"t"}"#,
            1,
            "STATUS exists since CNI 1.1.0; the configuration says 1.0.0",
        ),
    ] {
        assert_eq!(text(verb, json), (code, message.to_owned()), "{json}");
    }
    let long = vec![b' '; STDIN_LIMIT + 1];
    assert!(matches!(NetConf::parse(Verb::Add, &long), Err(ConfError::TooLong)));
}

#[test]
fn our_options_are_checked() {
    let of = |option: Value| {
        let mut json = json!({"cniVersion": "1.0.0", "name": "n", "type": "t"});
        json.as_object_mut().unwrap().extend(option.as_object().unwrap().clone());
        EniConf::of(&conf(Verb::Add, &json).unwrap())
    };
    assert_eq!(of(json!({"mtu": 1500})).unwrap().mtu, Some(1500));
    assert_eq!(of(json!({"mtu": ""})).unwrap().mtu, None);
    assert_eq!(of(json!({"deadlineSeconds": 5})).unwrap().deadline, Duration::from_secs(5));
    assert_eq!(of(json!({"ipamdSocket": "/tmp/x"})).unwrap().ipamd_socket, Path::new("/tmp/x"));
    assert_eq!(
        [json!({}), json!({"gated": null}), json!({"gated": true})].map(|json| of(json).unwrap().gated),
        [false, false, true]
    );
    for bad in [
        json!({"mtu": 100}),
        json!({"mtu": "9002"}),
        json!({"mtu": -1}),
        json!({"mtu": "x"}),
        json!({"mtu": {}}),
        json!({"vethPrefix": "eth"}),
        json!({"vethPrefix": "toolong"}),
        json!({"vethPrefix": ""}),
        json!({"vethPrefix": 1}),
        json!({"vethPrefix": "a/b"}),
        json!({"deadlineSeconds": 0}),
        json!({"deadlineSeconds": 1000}),
        json!({"ipamdSocket": "x"}),
        json!({"runDir": 7}),
        json!({"gated": "true"}),
    ] {
        assert_eq!(of(bad.clone()).unwrap_err().code(), ErrorCode::InvalidConfig, "{bad}");
    }
}

#[test]
fn the_options_of_the_chained_plugin_are_checked() {
    let of = |option: Value| {
        let mut json = json!({"cniVersion": "1.0.0", "name": "n", "type": "t"});
        json.as_object_mut().unwrap().extend(option.as_object().unwrap().clone());
        PolicyConf::of(&conf(Verb::Add, &json).unwrap())
    };
    assert_eq!(of(json!({})).unwrap(), PolicyConf::default());
    assert_eq!(of(json!({"policyWaitSeconds": 120})).unwrap().wait, Duration::from_secs(120));
    assert_eq!(of(json!({"policydSocket": "/tmp/x"})).unwrap().policyd_socket, Path::new("/tmp/x"));
    assert_eq!(of(json!({"runDir": "/tmp/x", "other": 1})).unwrap().run_dir, Path::new("/tmp/x"));
    for bad in [
        json!({"policyWaitSeconds": 0}),
        json!({"policyWaitSeconds": 121}),
        json!({"policyWaitSeconds": 1.5}),
        json!({"policyWaitSeconds": "10"}),
        json!({"policydSocket": "x"}),
        json!({"policydSocket": ""}),
        json!({"runDir": ["/x"]}),
    ] {
        assert_eq!(of(bad.clone()).unwrap_err().code(), ErrorCode::InvalidConfig, "{bad}");
    }
}

#[test]
fn a_refusal_becomes_an_error_with_its_hint() {
    let refusal = Refusal::new(RefusalCode::PoolGrowing, "no address was free within 60 s")
        .hint("see `sluice status`")
        .retry_after(Duration::from_secs(2));
    let object = ErrorObject::of_refusal(SpecVersion::V0_4_0, &refusal);
    assert_eq!(
        serde_json::to_value(object).unwrap(),
        json!({"cniVersion": "0.4.0", "code": 11, "msg": "no address was free within 60 s; see `sluice status`",
            "details": "code pool_growing, try again after 2000 ms"})
    );
    let bare = ErrorObject::new(SpecVersion::V1_0_0, ErrorCode::Kernel, "no");
    assert_eq!(serde_json::to_value(bare).unwrap(), json!({"cniVersion": "1.0.0", "code": 100, "msg": "no"}));
}

fn any_result() -> impl Strategy<Value = AddResult> {
    let name = "[a-z][a-z0-9]{0,20}";
    let interface = (
        name,
        any::<Option<[u8; 6]>>(),
        proptest::option::of(1u32..),
        proptest::option::of("/[a-z/]{1,20}"),
        proptest::option::of("/[a-z/]{1,20}"),
        proptest::option::of("[0-9a-f:.]{1,12}"),
    )
        .prop_map(|(name, mac, mtu, sandbox, socket_path, pci_id)| Interface {
            name,
            mac: mac.map(MacAddr),
            mtu,
            sandbox,
            socket_path: socket_path.map(Into::into),
            pci_id,
        });
    let net = (any::<std::net::IpAddr>(), 0u8..=32).prop_map(|(ip, length)| IpNet::new(ip, length).unwrap());
    let ip = (any::<Option<proptest::sample::Index>>(), net.clone(), any::<Option<std::net::IpAddr>>());
    let route = (net, any::<Option<std::net::IpAddr>>(), any::<[Option<u32>; 4]>(), any::<Option<u8>>()).prop_map(
        |(dst, gw, [mtu, advmss, priority, table], scope)| Route { dst, gw, mtu, advmss, priority, table, scope },
    );
    let dns = (proptest::collection::vec("[a-z.]{1,9}", 0..3), proptest::option::of("[a-z.]{1,9}"))
        .prop_map(|(nameservers, domain)| Dns { nameservers, domain, ..Dns::default() });
    use proptest::collection::vec as list;
    (list(interface, 0..4), list(ip, 0..4), list(route, 0..4), dns).prop_map(|(interfaces, ips, routes, dns)| {
        let index = |at: proptest::sample::Index| (!interfaces.is_empty()).then(|| at.index(interfaces.len()));
        let ips = ips
            .into_iter()
            .map(|(at, address, gateway)| IpConfig { interface: at.and_then(index), address, gateway })
            .collect();
        AddResult { ips, routes, dns, extra: [("a.b/c".to_owned(), json!({"d": 1}))].into(), interfaces }
    })
}

fn any_version() -> impl Strategy<Value = SpecVersion> {
    proptest::sample::select(SpecVersion::ALL.to_vec())
}

fn any_json() -> impl Strategy<Value = Value> {
    let keys = [
        "cniVersion",
        "name",
        "type",
        "interfaces",
        "ips",
        "routes",
        "dns",
        "address",
        "interface",
        "prevResult",
        "runtimeConfig",
        "cni.dev/valid-attachments",
        "mtu",
        "vethPrefix",
        "portMappings",
        "x/y",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        proptest::sample::select(vec!["", "0.4.0", "1.1.0", "10.0.0.1/32", "eth0", "9001", "/x"]).prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::btree_map(
                proptest::sample::select(keys.to_vec()).prop_map(String::from),
                inner,
                0..6
            )
            .prop_map(Value::from_iter),
        ]
    })
}

proptest! {
    #[test]
    fn results_round_trip_in_every_version(result in any_result(), version in any_version()) {
        let wire = result.to_value(version);
        let back = AddResult::from_value(version, &wire).unwrap();
        prop_assert_eq!(&back, &result.as_of(version));
        prop_assert_eq!(back.to_value(version), wire);
    }

    #[test]
    fn a_way_through_an_older_version_loses_only_what_it_cannot_say(result in any_result(), a in any_version(), b in any_version()) {
        let through = AddResult::from_value(a, &result.to_value(a)).unwrap();
        prop_assert_eq!(through.as_of(b), result.as_of(a.min(b)).as_of(b));
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), verb in proptest::sample::select(Verb::ALL.to_vec())) {
        drop(NetConf::parse(verb, &bytes));
        prop_assert!(NetConf::version_of(&bytes).is_none_or(|version| SpecVersion::ALL.contains(&version)));
        drop(VersionReply::to(&bytes));
    }

    #[test]
    fn no_json_panics(json in any_json(), verb in proptest::sample::select(Verb::ALL.to_vec()), version in any_version()) {
        drop(AddResult::from_value(version, &json));
        let mut conf = json.clone();
        if let Some(map) = conf.as_object_mut() {
            map.insert("cniVersion".into(), version.as_str().into());
            map.insert("name".into(), "n".into());
            map.insert("type".into(), "t".into());
        }
        for candidate in [&json, &conf] {
            if let Ok(conf) = NetConf::parse(verb, candidate.to_string().as_bytes()) {
                drop(conf.prev_result());
                drop(conf.runtime_config());
                drop(EniConf::of(&conf));
            }
        }
    }

    #[test]
    fn no_arguments_panic(args in "\\PC{0,80}") {
        drop(PodArgs::parse(&args));
    }
}
