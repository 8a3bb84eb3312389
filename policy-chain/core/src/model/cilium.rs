//! `cilium.io/v2` CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy.

use std::sync::Arc;

use ipnet::IpNet;

use super::port::{PortMatch, Ports};
use super::selector::{CiliumSelector, LabelSelector};
use super::{PolicyRef, Text, Usable};
use crate::flow::AppProtocol;
use crate::l7::dns::NamePattern;
use crate::l7::http::HttpRule;
use crate::l7::sni::ServerNamePattern;

/// A CiliumNetworkPolicy or CiliumClusterwideNetworkPolicy: `spec`, then `specs`.
#[derive(Debug, Clone, PartialEq)]
pub struct CiliumPolicy {
    /// Which policy.
    pub id: PolicyRef,
    /// Dry run.
    pub audit: bool,
    /// `spec` and the elements of `specs`, in this order.
    pub rules: Vec<CiliumRule>,
}

impl CiliumPolicy {
    /// The rule of this number.
    #[must_use]
    pub fn rule(&self, number: u16) -> Option<&CiliumRule> {
        self.rules.iter().find(|rule| rule.number == number)
    }
}

/// One `spec`.
#[derive(Debug, Clone, PartialEq)]
pub struct CiliumRule {
    /// Where it stands: 0 is `spec`, n is element n - 1 of `specs`.
    pub number: u16,
    /// Whom it governs, with the namespace of a CiliumNetworkPolicy added.
    pub subject: CiliumSelector,
    /// Whether it puts its subjects under default deny for ingress: `enableDefaultDeny.ingress`, else whether there are
    /// ingress or ingressDeny rules.
    pub default_deny_ingress: bool,
    /// The same for egress.
    pub default_deny_egress: bool,
    /// What is allowed in.
    pub ingress: Vec<Usable<CiliumAllow>>,
    /// What is denied in, whatever is allowed.
    pub ingress_deny: Vec<Usable<CiliumDeny>>,
    /// What is allowed out.
    pub egress: Vec<Usable<CiliumAllow>>,
    /// What is denied out.
    pub egress_deny: Vec<Usable<CiliumDeny>>,
    /// `log.value`, which flows carry as their policy log.
    pub log: Option<Text>,
}

/// An element of `ingress` or `egress`. An element without any field allows nothing: [`CiliumPeers::Nothing`].
#[derive(Debug, Clone, PartialEq)]
pub struct CiliumAllow {
    /// Peers.
    pub peers: CiliumPeers,
    /// One for each element of `toPorts` (or one without application rules for `icmps` or for every port).
    pub ports: Vec<CiliumPorts>,
}

/// An element of `ingressDeny` or `egressDeny`.
#[derive(Debug, Clone, PartialEq)]
pub struct CiliumDeny {
    /// Peers.
    pub peers: CiliumPeers,
    /// Ports.
    pub ports: Ports,
}

/// An element of `toPorts`.
#[derive(Debug, Clone, PartialEq)]
pub struct CiliumPorts {
    /// Ports.
    pub ports: Ports,
    /// Rules of the application protocol; then the traffic goes through the proxy.
    pub application: Application,
}

/// Rules of an application protocol. One of a list has to match. A clone shares them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Application {
    /// None: all that reaches the port passes.
    None,
    /// `rules.http`.
    Http(Arc<[Arc<HttpRule>]>),
    /// `rules.dns`: names that may be asked for.
    Dns(Arc<[NamePattern]>),
    /// `serverNames`: TLS server names.
    ServerNames(Arc<[ServerNamePattern]>),
}

impl Application {
    /// The protocol that the proxy has to read for these rules.
    #[must_use]
    pub const fn protocol(&self) -> Option<AppProtocol> {
        match self {
            Self::None => None,
            Self::Http(_) => Some(AppProtocol::Http),
            Self::Dns(_) => Some(AppProtocol::Dns),
            Self::ServerNames(_) => Some(AppProtocol::Tls),
        }
    }
}

/// The peers of an element; an element has one kind of them.
#[derive(Debug, Clone, PartialEq)]
pub enum CiliumPeers {
    /// No peer field: anyone, in the cluster or not.
    Any,
    /// A list that is there and empty, or an element without any field: nobody.
    Nothing,
    /// `fromEndpoints`, `toEndpoints`.
    Endpoints(Vec<CiliumSelector>),
    /// `fromCIDR`, `fromCIDRSet`, `toCIDR`, `toCIDRSet`.
    Cidrs(Vec<CidrRule>),
    /// `fromEntities`, `toEntities`.
    Entities(Vec<Entity>),
    /// `toServices`.
    Services(Vec<ServiceSelector>),
    /// `fromGroups`, `toGroups`: the CiliumCIDRGroups that stand for them, by name.
    Groups(Vec<Text>),
    /// `fromNodes`, `toNodes`: nodes with these labels, never pods with the same ones (CVE-2025-30163).
    Nodes(Vec<LabelSelector>),
    /// `toFQDNs`.
    Names(Vec<NamePattern>),
}

/// An element of a CIDR set. It does not match managed pods or nodes, unless a setting says so (DESIGN 6.2).
#[derive(Debug, Clone, PartialEq)]
pub struct CidrRule {
    /// The addresses.
    pub block: CidrBlock,
    /// What is left out of them.
    pub except: Vec<IpNet>,
}

/// The addresses of a CIDR rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CidrBlock {
    /// `cidr`.
    Cidr(IpNet),
    /// `cidrGroupRef`: the CiliumCIDRGroup of that name; nothing while there is none.
    Group(Text),
    /// `cidrGroupSelector`: the CiliumCIDRGroups with these labels.
    Groups(LabelSelector),
}

/// `fromEntities`, `toEntities` (Cilium, `pkg/policy/api/entity.go`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entity {
    /// Anyone.
    All,
    /// Outside of the cluster.
    World,
    /// Outside of the cluster, by IPv4.
    WorldIpv4,
    /// Outside of the cluster, by IPv6.
    WorldIpv6,
    /// Endpoints, nodes and API server of the cluster.
    Cluster,
    /// The endpoint's own node, host-network pods included.
    Host,
    /// Endpoints that are not known yet. Sluice has none: a pod is known before it starts.
    Init,
    /// Cilium's ingress proxy. Sluice has none.
    Ingress,
    /// Pods that policy does not govern yet.
    Unmanaged,
    /// The other nodes, with their host-network pods.
    RemoteNode,
    /// Cilium's health endpoints. Sluice has none.
    Health,
    /// Nobody.
    None,
    /// What backs the Service `default/kubernetes`.
    KubeApiserver,
}

/// An element of `toServices`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceSelector {
    /// `k8sService`: one Service, or those of this name.
    Named {
        /// Namespace; any if it was not given (Cilium, `serviceRefMatches`).
        namespace: Option<Text>,
        /// Name.
        name: Text,
    },
    /// `k8sServiceSelector`: Services by their labels.
    Labels {
        /// Namespace; all if it was not given.
        namespace: Option<Text>,
        /// Labels of the Service.
        selector: LabelSelector,
    },
}

/// Convenience for readers: a single port condition without application rules.
impl CiliumPorts {
    /// Every port, without application rules.
    #[must_use]
    pub const fn any() -> Self {
        Self { ports: Ports::Any, application: Application::None }
    }

    /// These ports, without application rules.
    #[must_use]
    pub const fn of(ports: Vec<PortMatch>) -> Self {
        Self { ports: Ports::Of(ports), application: Application::None }
    }
}
