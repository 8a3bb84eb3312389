//! `sluice observe` on a file, completion, and what is said where no daemon runs.

use crate::{complaints, directory, sluice, text};

/// Two flows, as `-o jsonpb` prints them.
const FLOWS: &str = r#"{"flow":{"time":"2026-01-31T12:00:00.250Z","verdict":"DROPPED","IP":{"source":"10.0.0.1","destination":"10.0.0.2","ipVersion":"IPv4"},"l4":{"TCP":{"source_port":40000,"destination_port":5432,"flags":{"SYN":true}}},"source":{"ID":7,"identity":300,"namespace":"shop","pod_name":"web"},"destination":{"identity":301,"namespace":"shop","pod_name":"db"},"Type":"L3_L4","event_type":{"type":1,"sub_type":133},"traffic_direction":"INGRESS","drop_reason_desc":"POLICY_DENIED","is_reply":false,"Summary":"TCP Flags: SYN; NetworkPolicy shop/db isolates the pod, and no rule allows this","ingress_denied_by":[{"name":"db","namespace":"shop","kind":"NetworkPolicy"}]},"node_name":"n1","time":"2026-01-31T12:00:00.250Z"}
{"lost_events":{"source":"PERF_EVENT_RING_BUFFER","num_events_lost":"9"},"node_name":"n1","time":"2026-01-31T12:00:01Z"}
{"flow":{"time":"2026-01-31T12:00:02Z","verdict":"FORWARDED","IP":{"source":"10.0.0.1","destination":"198.51.100.7","ipVersion":"IPv4"},"l4":{"UDP":{"source_port":5,"destination_port":53}},"source":{"namespace":"shop","pod_name":"web"},"destination":{"labels":["reserved:world"]},"destination_names":["api.example"],"Type":"L3_L4","event_type":{"type":5},"traffic_direction":"EGRESS","is_reply":false,"Summary":"UDP; no policy decides"},"node_name":"n1","time":"2026-01-31T12:00:02Z"}
"#;

#[test]
fn flows_of_a_file_are_shown_in_every_form() {
    let compact = sluice(&["observe", "--input-file", "-"], FLOWS);
    assert_eq!(
        text(&compact),
        "Jan 31 12:00:00.250: shop/web:40000 (ID:300) -> shop/db:5432 (ID:301) policy-denied INGRESS DROPPED (TCP Flags: SYN; \
         NetworkPolicy shop/db isolates the pod, and no rule allows this)\n\
         Jan 31 12:00:01.000: EVENTS LOST: 9 between the gates and policyd\n\
         Jan 31 12:00:02.000: shop/web:5 -> api.example:53 (world) policy-verdict EGRESS FORWARDED (UDP; no policy decides)\n"
    );
    let path = directory("observe", &[("flows.jsonl", FLOWS)]).join("flows.jsonl");
    let of = |arguments: &[&str]| {
        text(&sluice(&[&["observe", "--input-file", path.to_str().unwrap()], arguments].concat(), ""))
    };
    let dict = of(&["--to-pod", "shop/db", "-o", "dict", "--time-format", "rfc3339"]);
    assert!(dict.starts_with("  TIMESTAMP: 2026-01-31T12:00:00Z\n     SOURCE: shop/web:40000 (ID:300)\n"), "{dict}");
    let table = of(&["-o", "table", "--not", "--verdict", "DROPPED"]);
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines.iter().any(|line| line.starts_with("TIMESTAMP            SOURCE      DESTINATION")), "{table}");
    assert!(!table.contains("shop/db"), "{table}");
    let json = of(&["-o", "json", "--protocol", "tcp", "--field-mask", "verdict,source.pod_name"]);
    assert_eq!(
        json.lines().next().unwrap(),
        r#"{"flow":{"verdict":"DROPPED","source":{"pod_name":"web"}},"node_name":"n1","time":"2026-01-31T12:00:00.250Z"}"#
    );
    // What goes in comes out.
    let value = |line: Option<&str>| serde_json::from_str::<serde_json::Value>(line.unwrap()).unwrap();
    assert_eq!(value(of(&["-o", "jsonpb", "--to-port", "5432"]).lines().next()), value(FLOWS.lines().next()));
    assert_eq!(
        of(&["--last", "1", "--print-policy-names", "--from-ip", "10.0.0.0/8", "--type", "drop"]).lines().count(),
        1
    );
}

#[test]
fn what_cannot_be_asked_is_said_with_what_to_do() {
    for (arguments, words) in [
        (&["observe", "--verdict", "LOST"][..], "--verdict"),
        (&["observe", "--since", "yesterday"], "30s"),
        (&["observe", "--to-ip", "10.0.0"], "neither an IP address nor a block"),
        (&["observe", "--server", "unix:/nowhere/hubble.sock"], "is sluice-policyd running"),
        (&["observe", "--input-file", "/nowhere"], "/nowhere"),
        (&["observe", "--tls-server-name", "node"], "need --tls"),
        (&["observe", "--tls", "--server", "unix:/nowhere/hubble.sock"], "speaks no TLS"),
        (&["observe", "--server", "tls://127.0.0.1:1", "--tls-ca-cert-files", "/nowhere"], "/nowhere"),
        (&["observe", "--tls", "--tls-client-cert-file", "/nowhere"], "--tls-client-key-file"),
        (&["status", "--cluster", "--kubectl", "/nowhere/kubectl"], "/nowhere/kubectl cannot be run"),
        (&["observe", "--field-mask", "sauce", "-o", "json"], "sauce"),
    ] {
        let output = sluice(arguments, "");
        assert!(!output.status.success(), "{arguments:?}");
        let said = complaints(&output).to_lowercase();
        assert!(said.contains(&words.to_lowercase()), "{arguments:?}: {said}");
    }
    let output = sluice(&["log", "policyd", &"sluice=debug,".repeat(400)], "");
    assert_eq!(output.status.code(), Some(64));
    assert!(complaints(&output).contains("the filter has 5200 bytes, and may have 4096"), "{}", complaints(&output));
    let filters =
        text(&sluice(&["observe", "--print-raw-filters", "--pod", "shop/web", "--not", "--to-port", "53"], ""));
    assert!(filters.contains("allowlist:\n    - '{\"source_pod\":[\"shop/web\"]}'\n"), "{filters}");
    assert!(filters.contains("denylist:\n    - '{\"destination_port\":[\"53\"]}'\n"), "{filters}");
}

#[test]
fn shells_and_the_manual_know_the_commands() {
    let bash = text(&sluice(&["completion", "bash"], ""));
    assert!(bash.contains("--traffic-direction") && bash.contains("doctor"), "{}", bash.len());
    let pages = directory("man", &[]);
    assert!(sluice(&["man", pages.to_str().unwrap()], "").status.success());
    let page = std::fs::read_to_string(pages.join("sluice-observe.1")).unwrap();
    assert!(page.contains("to\\-pod") && page.contains(".TH"), "{page}");
}
