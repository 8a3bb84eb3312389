//! Does a rule mean this protocol and port?

use super::address::Kind;
use super::{Flow, Scene};
use crate::cluster::NamedPort;
use crate::flow::{Direction, Protocol};
use crate::model::cilium::Application;
use crate::model::port::{PortMatch, PortTarget, Ports};

/// Whether the ports of a rule mean the flow's (NetworkPolicyPort, ClusterNetworkPolicyProtocol, Cilium's PortRule).
pub(super) fn hold(ports: &Ports, scene: &Scene<'_>, flow: &Flow<'_>) -> bool {
    match ports {
        // "If not set, this rule matches all traffic": of whatever protocol.
        Ports::Any => true,
        Ports::Of(ports) => ports.iter().any(|port| holds(port, scene, flow)),
    }
}

fn holds(port: &PortMatch, scene: &Scene<'_>, flow: &Flow<'_>) -> bool {
    port.protocol.holds(flow.protocol)
        && match &port.port {
            PortTarget::Any => true,
            // NetworkPolicyPort.endPort: both ends belong to it.
            PortTarget::Range(first, last) => (*first..=*last).contains(&flow.port),
            PortTarget::Named(name) => named_ports(scene, flow)
                .iter()
                .any(|one| one.name == *name && one.protocol == flow.protocol && one.port == flow.port),
        }
}

/// A named port is a container port of the selected pod on ingress, and of each destination pod on egress: it may be another
/// number on each. What is no pod has none.
fn named_ports<'a>(scene: &Scene<'a>, flow: &Flow<'a>) -> &'a [NamedPort] {
    match (flow.direction, flow.peer.kind) {
        (Direction::Ingress, _) => &scene.subject.template.ports,
        (Direction::Egress, Kind::Pod(pod)) => &pod.template.ports,
        (Direction::Egress, Kind::OwnNode | Kind::RemoteNode | Kind::Masqueraded | Kind::Other) => &[],
    }
}

/// Whether the application protocol is spoken over this protocol (Cilium, `pkg/policy/api/rule_validation.go`: HTTP and
/// server names over TCP, DNS over TCP and UDP).
pub(super) const fn carries(application: &Application, protocol: Protocol) -> bool {
    match application {
        Application::None => true,
        Application::Http(_) | Application::ServerNames(_) => matches!(protocol, Protocol::TCP),
        Application::Dns(_) => matches!(protocol, Protocol::TCP | Protocol::UDP),
    }
}
