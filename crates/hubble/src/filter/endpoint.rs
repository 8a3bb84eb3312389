//! What filters ask of one end of a flow.

use std::net::IpAddr;

use regex::Regex;

use super::labels::Selector;
use super::{FilterError, Test, any, block, protocol, wildcard, wrong};
use crate::flow::{Endpoint, Flow, FlowFilter, Service, Workload, layer4};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Source,
    Destination,
}

/// What a filter asks of an end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Side<'f> {
    end: End,
    ip: &'f [String],
    ip_xlated: &'f [String],
    pod: &'f [String],
    fqdn: &'f [String],
    label: &'f [String],
    service: &'f [String],
    workload: &'f [Workload],
    cluster_name: &'f [String],
    port: &'f [String],
    identity: &'f [u32],
}

/// Both ends.
pub(super) fn sides(filter: &FlowFilter) -> [Side<'_>; 2] {
    let source = Side {
        end: End::Source,
        ip: &filter.source_ip,
        ip_xlated: &filter.source_ip_xlated,
        pod: &filter.source_pod,
        fqdn: &filter.source_fqdn,
        label: &filter.source_label,
        service: &filter.source_service,
        workload: &filter.source_workload,
        cluster_name: &filter.source_cluster_name,
        port: &filter.source_port,
        identity: &filter.source_identity,
    };
    let destination = Side {
        end: End::Destination,
        ip: &filter.destination_ip,
        ip_xlated: &[],
        pod: &filter.destination_pod,
        fqdn: &filter.destination_fqdn,
        label: &filter.destination_label,
        service: &filter.destination_service,
        workload: &filter.destination_workload,
        cluster_name: &filter.destination_cluster_name,
        port: &filter.destination_port,
        identity: &filter.destination_identity,
    };
    [source, destination]
}

impl Side<'_> {
    pub(super) fn elements(&self) -> usize {
        let texts =
            [self.ip, self.ip_xlated, self.pod, self.fqdn, self.label, self.service, self.cluster_name, self.port];
        texts.iter().map(|list| list.len()).sum::<usize>() + self.workload.len() + self.identity.len()
    }

    pub(super) fn tests(&self, tests: &mut Vec<Test>) -> Result<(), FilterError> {
        let end = self.end;
        let name = |source, destination| if end == End::Source { source } else { destination };
        let blocks = |field, list: &[String]| list.iter().map(|text| block(field, text)).collect::<Result<Vec<_>, _>>();
        any(tests, blocks(name("source_ip", "destination_ip"), self.ip)?, move |block, flow| {
            end.address(flow).is_some_and(|address| block.contains(&address))
        });
        any(tests, blocks("source_ip_xlated", self.ip_xlated)?, |block, flow| {
            let address = flow.ip.as_ref().and_then(|ip| ip.source_xlated.parse::<IpAddr>().ok());
            address.is_some_and(|address| block.contains(&address))
        });
        any(tests, self.pod.iter().map(|text| Name::read(text)).collect(), move |wanted, flow| {
            end.endpoint(flow).is_some_and(|endpoint| wanted.is(&endpoint.namespace, &endpoint.pod_name))
        });
        let field = name("source_fqdn", "destination_fqdn");
        let names: Result<Vec<Regex>, _> = self.fqdn.iter().map(|text| wildcard(field, &canonical(text))).collect();
        any(tests, names?, move |pattern, flow| end.names(flow).iter().any(|name| pattern.is_match(&canonical(name))));
        let field = name("source_label", "destination_label");
        let selectors: Result<Vec<Selector>, _> = self.label.iter().map(|text| Selector::read(field, text)).collect();
        any(tests, selectors?, move |selector, flow| {
            end.endpoint(flow).is_some_and(|endpoint| selector.matches(&endpoint.labels))
        });
        any(tests, self.service.iter().map(|text| Name::read(text)).collect(), move |wanted, flow| {
            end.service(flow).is_some_and(|service| wanted.is(&service.namespace, &service.name))
        });
        any(tests, self.workload.to_vec(), move |wanted, flow| {
            let is_it = |workload: &Workload| {
                (wanted.name.is_empty() || workload.name == wanted.name)
                    && (wanted.kind.is_empty() || workload.kind == wanted.kind)
            };
            end.endpoint(flow).is_some_and(|endpoint| endpoint.workloads.iter().any(is_it))
        });
        any(tests, self.cluster_name.to_vec(), move |wanted, flow| {
            end.endpoint(flow).is_some_and(|endpoint| endpoint.cluster_name == *wanted)
        });
        let field = name("source_port", "destination_port");
        let port = |text: &String| text.parse::<u16>().map_err(|_unread| wrong(field, text, "is no port, 0 to 65535"));
        let ports: Result<Vec<u16>, _> = self.port.iter().map(port).collect();
        any(tests, ports?, move |port, flow| end.port(flow) == Some((*port).into()));
        any(tests, self.identity.to_vec(), move |identity, flow| {
            end.endpoint(flow).is_some_and(|endpoint| endpoint.identity == *identity)
        });
        Ok(())
    }
}

impl End {
    fn address(self, flow: &Flow) -> Option<IpAddr> {
        let ip = flow.ip.as_ref()?;
        let address = match self {
            Self::Source => &ip.source,
            Self::Destination => &ip.destination,
        };
        address.parse().ok()
    }

    const fn endpoint(self, flow: &Flow) -> Option<&Endpoint> {
        match self {
            Self::Source => flow.source.as_ref(),
            Self::Destination => flow.destination.as_ref(),
        }
    }

    const fn service(self, flow: &Flow) -> Option<&Service> {
        match self {
            Self::Source => flow.source_service.as_ref(),
            Self::Destination => flow.destination_service.as_ref(),
        }
    }

    fn names(self, flow: &Flow) -> &[String] {
        match self {
            Self::Source => &flow.source_names,
            Self::Destination => &flow.destination_names,
        }
    }

    fn port(self, flow: &Flow) -> Option<u32> {
        let (source, destination) = match protocol(flow)? {
            layer4::Protocol::Tcp(tcp) => (tcp.source_port, tcp.destination_port),
            layer4::Protocol::Udp(udp) => (udp.source_port, udp.destination_port),
            layer4::Protocol::Sctp(sctp) => (sctp.source_port, sctp.destination_port),
            layer4::Protocol::IcmPv4(_) | layer4::Protocol::IcmPv6(_) => return None,
        };
        Some(if self == Self::Source { source } else { destination })
    }
}

/// A name as it is compared: lower case, without the dot at its end.
fn canonical(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// `namespace/prefix`, `namespace/` for all of a namespace, `/prefix` for all namespaces; `prefix` is in `default`.
#[derive(Debug, Clone)]
struct Name {
    namespace: Option<String>,
    prefix: String,
}

impl Name {
    fn read(text: &str) -> Self {
        match text.split_once('/') {
            Some((namespace, prefix)) => Self {
                namespace: Some(namespace.to_owned()).filter(|name| !name.is_empty()),
                prefix: prefix.to_owned(),
            },
            None if text.is_empty() => Self { namespace: None, prefix: String::new() },
            None => Self { namespace: Some("default".to_owned()), prefix: text.to_owned() },
        }
    }

    fn is(&self, namespace: &str, name: &str) -> bool {
        !name.is_empty()
            && self.namespace.as_ref().is_none_or(|wanted| wanted == namespace)
            && name.starts_with(&self.prefix)
    }
}
