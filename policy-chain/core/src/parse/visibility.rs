//! The annotation that makes a pod's traffic seen.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde_json::Value;

use super::cursor::{Report, quoted, shown};
use super::metadata::Metadata;
use crate::cluster::{VISIBILITY_ANNOTATION, Visible};
use crate::flow::{AppProtocol, Direction, Protocol};

/// Elements that are looked at.
const MAX_ELEMENTS: usize = 64;

/// What an element looks like, for those whose elements look otherwise.
const FORM: &str = "direction/port/protocol/application, such as egress/53/UDP/DNS or ingress/8080/TCP/HTTP";

/// The traffic that [`VISIBILITY_ANNOTATION`] asks to see. What cannot be used of it is told and left out: the pod, and the
/// rest of its annotation, are as good as without it.
pub(super) fn visible(metadata: &Metadata<'_>, report: &mut Report) -> Box<[Visible]> {
    let mut warn = |message: String| {
        report.warn("metadata.annotations", format!("{VISIBILITY_ANNOTATION}: {message}; it is not looked at"));
    };
    let text = match metadata.raw_annotation(VISIBILITY_ANNOTATION) {
        None => return Box::default(),
        Some(Value::String(text)) => text,
        Some(other) => {
            warn(format!("{} is not text", shown(other)));
            return Box::default();
        }
    };
    let mut found: BTreeMap<(Direction, Protocol, u16), AppProtocol> = BTreeMap::new();
    let mut elements = text.split(',').map(str::trim).filter(|element| !element.is_empty());
    for element in elements.by_ref().take(MAX_ELEMENTS) {
        match read(element) {
            Err(reason) => warn(format!("{}: {reason}", quoted(element))),
            Ok(Visible { direction, protocol, port, application }) => match found.entry((direction, protocol, port)) {
                Entry::Vacant(entry) => {
                    entry.insert(application);
                }
                Entry::Occupied(entry) if *entry.get() == application => {}
                Entry::Occupied(entry) => warn(format!(
                    "{}: {} is looked for at this port already, and a port has one parser",
                    quoted(element),
                    entry.get(),
                )),
            },
        }
    }
    if elements.next().is_some() {
        warn(format!("what comes after the first {MAX_ELEMENTS} elements is too much"));
    }
    let visible = |((direction, protocol, port), application)| Visible { direction, protocol, port, application };
    found.into_iter().map(visible).collect()
}

/// Reads an element. Upper and lower case are the same, and the angle brackets that Cilium had around one may be there.
pub(crate) fn read(element: &str) -> Result<Visible, String> {
    let inner = element.strip_prefix('<').and_then(|inner| inner.strip_suffix('>')).unwrap_or(element);
    let parts: Vec<&str> = inner.split('/').map(str::trim).collect();
    let [direction, port, protocol, application] = parts.as_slice() else {
        return Err(format!("an element is {FORM}"));
    };
    let upper = |text: &str| text.to_ascii_uppercase();
    let direction = match upper(direction).as_str() {
        "INGRESS" => Direction::Ingress,
        "EGRESS" => Direction::Egress,
        _ => return Err(format!("{} is neither ingress nor egress", quoted(direction))),
    };
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let Some(port) = port.parse::<u16>().ok().filter(|port| digits && *port > 0) else {
        return Err(format!("{} is not a port from 1 to 65535", quoted(port)));
    };
    let protocol = match upper(protocol).as_str() {
        "TCP" => Protocol::TCP,
        "UDP" => Protocol::UDP,
        _ => return Err(format!("{} is neither TCP nor UDP", quoted(protocol))),
    };
    let application = match (upper(application).as_str(), protocol) {
        ("DNS", _) if direction == Direction::Ingress => {
            return Err("DNS is looked at where it is asked: on egress".to_owned());
        }
        ("DNS", _) => AppProtocol::Dns,
        ("HTTP", Protocol::TCP) => AppProtocol::Http,
        ("TLS", Protocol::TCP) => AppProtocol::Tls,
        ("HTTP" | "TLS", _) => return Err(format!("{} is read over TCP only", upper(application))),
        _ => return Err(format!("{} is none of HTTP, DNS and TLS", quoted(application))),
    };
    Ok(Visible { direction, protocol, port, application })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cluster::Object;

    /// What an annotation asks for, and the faults found in it.
    fn read(annotation: &Value) -> (Vec<String>, Vec<String>) {
        let parsed = crate::parse::object(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "annotations": {VISIBILITY_ANNOTATION: annotation}},
        }));
        let Some(Object::Pod(pod)) = parsed.object else { panic!("{:?}", parsed.issues) };
        let prefix = format!("metadata.annotations: {VISIBILITY_ANNOTATION}: ");
        let fault = |issue: String| {
            let text = issue.strip_prefix(&prefix).unwrap_or(&issue);
            text.strip_suffix("; it is not looked at").unwrap_or(text).to_owned()
        };
        (
            pod.template.visible.iter().map(ToString::to_string).collect(),
            parsed.issues.iter().map(|issue| fault(issue.to_string())).collect(),
        )
    }

    #[test]
    fn elements_are_read_as_people_write_them() {
        let (visible, faults) = read(&json!(
            " ingress/8080/tcp/http,Egress/53/UDP/DNS , <Egress/53/TCP/DNS>,,egress/443/TCP/tls,egress/53/udp/dns"
        ));
        assert_eq!(visible, ["ingress/8080/TCP/HTTP", "egress/53/TCP/DNS", "egress/443/TCP/TLS", "egress/53/UDP/DNS"]);
        assert_eq!(faults, [""; 0]);
        assert_eq!(read(&json!("")), (vec![], vec![]));
    }

    #[test]
    fn what_cannot_be_used_is_told_and_the_rest_is_used() {
        for (annotation, fault) in [
            (json!("egress/80/TCP"), "\"egress/80/TCP\": an element is direction/port/protocol/application, such as"),
            (json!("egress/80/TCP/HTTP/x"), "an element is direction/"),
            (json!("out/80/TCP/HTTP"), "\"out\" is neither ingress nor egress"),
            (json!("egress/0/TCP/HTTP"), "\"0\" is not a port from 1 to 65535"),
            (json!("egress/65536/TCP/HTTP"), "is not a port"),
            (json!("egress/+80/TCP/HTTP"), "\"+80\" is not a port"),
            (json!("egress/http/TCP/HTTP"), "\"http\" is not a port"),
            (json!("egress/80/ANY/HTTP"), "\"ANY\" is neither TCP nor UDP"),
            (json!("egress/80/UDP/HTTP"), "HTTP is read over TCP only"),
            (json!("ingress/53/UDP/DNS"), "DNS is looked at where it is asked: on egress"),
            (json!("egress/9092/TCP/Kafka"), "\"Kafka\" is none of HTTP, DNS and TLS"),
            (json!("ingress/7/tcp/tls"), "HTTP is looked for at this port already, and a port has one parser"),
        ] {
            let all = format!("ingress/7/TCP/HTTP,{}", annotation.as_str().unwrap_or_default());
            let (visible, faults) = read(&json!(all));
            assert_eq!(visible, ["ingress/7/TCP/HTTP"], "{annotation}");
            assert!(faults.len() == 1 && faults[0].contains(fault), "{annotation}: {faults:?}");
        }
        assert_eq!(read(&json!(true)), (vec![], vec!["true is not text".into()]));
    }

    #[test]
    fn an_annotation_is_bounded() {
        let all: Vec<String> = (1..=100).map(|port| format!("egress/{port}/TCP/HTTP")).collect();
        let (visible, faults) = read(&json!(all.join(",")));
        assert_eq!((visible.len(), faults), (64, vec!["what comes after the first 64 elements is too much".into()]));
    }

    #[test]
    fn a_pod_of_the_hosts_network_has_no_gate() {
        let parsed = crate::parse::object(&json!({
            "apiVersion": "v1", "kind": "Pod", "spec": {"hostNetwork": true},
            "metadata": {"name": "p", "annotations": {VISIBILITY_ANNOTATION: "egress/80/TCP/HTTP"}},
        }));
        let issues: Vec<String> = parsed.issues.iter().map(ToString::to_string).collect();
        assert!(parsed.object.is_some() && issues.len() == 1 && issues[0].contains("has no gate"), "{issues:?}");
    }
}
