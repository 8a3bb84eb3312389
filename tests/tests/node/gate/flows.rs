//! Flows that are open when policies change.

use sluice_tests::privileged::privileged;

use super::{admits, begin, begun, options, policy, stage, step, suite};

/// Issue C, 2; DESIGN 6.5: a deny cuts what is open, whichever side speaks, and not what its direction does not concern.
#[tokio::test(flavor = "multi_thread")]
async fn a_deny_cuts_open_flows_and_an_allow_lets_them_live() {
    if !privileged() {
        return;
    }
    let allow = admits("client");
    let deny = policy("server", "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress]}");
    let closed = policy("client", "{podSelector: {matchLabels: {app: client}}, policyTypes: [Ingress]}");
    let steps = format!(
        "
  - expect: [{{from: x/client, to: x/server, port: 80, verdict: allow}}, {{from: x/other, to: x/server, port: 80, verdict: allow}}]
  - apply: [{allow}]
    expect:
    - {{from: x/client, to: x/server, port: 80, connection: established, verdict: allow}}
    - {{from: x/other, to: x/server, port: 80, connection: established, verdict: deny}}
  - name: replies to what a pod has asked come in, although nobody may begin
    apply: [{closed}]
    expect:
    - {{from: x/client, to: x/server, port: 80, connection: established, verdict: allow}}
    - {{from: x/server, to: x/client, port: 80, verdict: deny}}
  - apply: [{deny}]
    expect: [{{from: x/client, to: x/server, port: 80, connection: established, verdict: deny}}]
  - name: allowed again, what has not been closed lives on
    apply: [{allow}]
    expect: [{{from: x/client, to: x/server, port: 80, verdict: allow}}]
"
    );
    let suite = suite(&steps);
    let options = options();
    let mut stage = stage(suite, &options).await;
    let mut act = begin(&mut stage, suite, &options).await;
    for number in 0..suite.vectors[0].steps.len() {
        step(&mut act, suite, number).await;
    }
}

/// Issue C, 2: the kubelet's probes reach a pod that nobody may reach, and another node's do not.
#[tokio::test(flavor = "multi_thread")]
async fn probes_of_the_own_node_pass_under_deny_all() {
    if !privileged() {
        return;
    }
    let deny = policy("all", "{podSelector: {}, policyTypes: [Ingress, Egress]}");
    let steps = format!(
        "
  - apply: [{deny}]
    expect:
    - {{from: 'node:n2', to: x/server, port: 80, verdict: allow}}
    - {{from: 'node:n2', to: x/server, port: 53, protocol: UDP, verdict: allow}}
    - {{from: 'node:n2', to: x/server, protocol: ICMP, verdict: allow}}
    - {{from: 'node:n1', to: x/server, port: 80, verdict: deny}}
    - {{from: x/server, to: 'node:n2', port: 80, verdict: deny}}
    - {{from: [x/client, x/other, 'ext:out'], to: [x/server, x/client], port: 80, verdict: deny}}
    - {{from: x/server, to: 'ext:out', port: 80, verdict: deny}}
"
    );
    let suite = suite(&steps);
    let options = options();
    let mut stage = stage(suite, &options).await;
    begun(&mut stage, suite, &options).await;
}

/// Labels, namespaces and pods that come and go change verdicts at once; a second replica is not cold.
#[tokio::test(flavor = "multi_thread")]
async fn verdicts_follow_labels_and_pods() {
    if !privileged() {
        return;
    }
    let allow = admits("client");
    let steps = format!(
        "
  - apply: [{allow}]
    expect:
    - {{from: x/client, to: x/server, port: 80, verdict: allow}}
    - {{from: x/other, to: x/server, port: 80, verdict: deny}}
  - setPodLabels: {{x/other: {{app: client}}, x/client: {{app: nobody}}}}
    expect:
    - {{from: x/other, to: x/server, port: 80, verdict: allow}}
    - {{from: x/client, to: x/server, port: 80, verdict: deny}}
  - createPod:
      x/second: {{labels: {{app: client}}, ip: 10.1.0.4, node: n2}}
      x/copy: {{labels: {{app: server}}, ip: 10.1.0.5, node: n1}}
    expect:
    - {{from: x/second, to: [x/server, x/copy], port: 80, verdict: allow}}
    - {{from: x/client, to: x/copy, port: 80, verdict: deny}}
  - name: the address of a pod that is gone is another's
    deletePod: [x/second]
    createPod: {{x/late: {{labels: {{app: nobody}}, ip: 10.1.0.4, node: n1}}}}
    expect: [{{from: x/late, to: [x/server, x/copy], port: 80, verdict: deny}}]
"
    );
    let suite = suite(&steps);
    let options = options();
    let mut stage = stage(suite, &options).await;
    let mut act = begin(&mut stage, suite, &options).await;
    for number in 0..suite.vectors[0].steps.len() {
        step(&mut act, suite, number).await;
    }
}
