//! What other policy engines got wrong, held right here: every case is YAML that the compiler's images and the oracle judge,
//! and both say what the specification says.
//!
//! - [`cilium`]: security advisories of Cilium and of Envoy under it.
//! - [`aws_agent`]: defects of the AWS network policy agent and its controller.
//! - [`pains`]: what users of either stumble over, as far as it is about meaning.
//! - [`edges`]: cases of the NetworkPolicy API that the vectors of tests/scenarios/policy do not ask.
//!
//! What is not about meaning cannot be held here. It is held where it can happen, by the tests of [`ELSEWHERE`]. Of
//! GHSA-5r23-prx4-mqg3 (host policy, encryption between nodes) there is neither part here.

mod aws_agent;
mod cilium;
mod edges;
mod pains;

/// What is held elsewhere: the case, the file, and the test in it.
const ELSEWHERE: [(&str, &str, &str); 21] = [
    (
        "CVE-2025-23028: a DNS answer crashes the agent",
        "policy-chain/proxy/src/dns/wire/tests.rs",
        "cve_2025_23028_no_answer_of_a_server_ends_the_process",
    ),
    (
        "CVE-2026-33726: pod to L7 Service with local backend",
        "tests/tests/node/l7/matrix.rs",
        "requests_are_judged_in_every_cell",
    ),
    (
        "GHSA-c66w-hq56-4q97: ICMP by a connection of the other direction",
        "policy-chain/bpf/tests/program/flows.rs",
        "an_echo_is_answered_and_nothing_else",
    ),
    ("AWS 3.4: open window at pod start", "tests/tests/node/gate/start.rs", "nothing_passes_before_the_policy"),
    (
        "AWS 3.4: restart and upgrade of the agent",
        "tests/tests/node/gate/restart.rs",
        "no_packet_is_lost_and_no_verdict_changes_when_the_agent_restarts",
    ),
    (
        "AWS 3.4: pods that were there before",
        "tests/tests/node/gate/adopted.rs",
        "pods_that_talk_before_the_agent_comes_keep_what_their_policy_allows",
    ),
    (
        "AWS 3.4: connection poisoning, by forged sources",
        "tests/tests/node/gate/hostile.rs",
        "a_forged_source_reaches_nobody",
    ),
    (
        "AWS 3.4: connection poisoning, by frames of a pod's own making",
        "tests/tests/node/gate/forged.rs",
        "frames_that_a_pod_builds_itself_reach_nobody_whom_it_may_not_reach",
    ),
    (
        "AWS 3.4: connection poisoning, by answers that nobody asked for",
        "policy-chain/bpf/tests/program/flows.rs",
        "an_ack_then_a_syn_is_no_way_out",
    ),
    ("AWS 3.4: ports used again", "policy-chain/bpf/tests/program/flows.rs", "a_port_used_again_is_judged_again"),
    (
        "AWS 3.4: eviction of connections: a flow goes on as far as policy allows it",
        "policy-chain/bpf/tests/program/flows.rs",
        "only_what_policy_allows_is_adopted",
    ),
    (
        "AWS 3.4: collection of connections",
        "policy-chain/bpf/tests/program/flows.rs",
        "a_finished_flow_lasts_for_what_is_on_its_way",
    ),
    (
        "AWS 3.4: policy edits and established flows",
        "policy-chain/bpf/tests/program/flows.rs",
        "a_change_of_policy_is_felt_by_open_flows",
    ),
    (
        "AWS 3.4: a full map",
        "policy-chain/agent/src/daemon/tests/trouble.rs",
        "a_full_map_locks_down_what_needs_it_and_nothing_else",
    ),
    ("AWS 3.4: fragments", "policy-chain/bpf/tests/program/edges.rs", "fragments_follow_the_first"),
    (
        "AWS 3.4: IP options, extension headers",
        "policy-chain/bpf/tests/program/edges.rs",
        "options_and_extension_headers_are_walked",
    ),
    (
        "AWS 3.4: secondary interfaces have gates too",
        "policy-chain/plugin/tests/runtime/behind.rs",
        "a_second_network_of_the_pod_is_its_own",
    ),
    (
        "AWS 3.4: and those that cannot have one",
        "policy-chain/plugin/tests/runtime/behind.rs",
        "an_interface_of_another_network_that_cannot_be_gated_is_let_alone",
    ),
    ("AWS 3.4: bandwidth plugin", "tests/tests/node/gate/taken.rs", "the_gate_stands_beside_the_bandwidth_plugin"),
    (
        "Cilium: overflow of a policy map",
        "policy-chain/bpf/src/gate/tests/maps.rs",
        "a_full_map_is_told_and_no_half_of_it_is_written",
    ),
    (
        "Cilium: probes of the own node beside default deny",
        "tests/tests/node/gate/flows.rs",
        "probes_of_the_own_node_pass_under_deny_all",
    ),
];

/// Each is still there.
#[test]
fn what_is_held_elsewhere_is_held() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for (case, file, test) in ELSEWHERE {
        let text = std::fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{case}: {file}: {error}"));
        assert!(text.contains(&format!("fn {test}(")), "{case}: {file} has no test {test}");
    }
}
