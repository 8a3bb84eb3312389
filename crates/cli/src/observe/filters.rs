//! Filters, as `hubble observe` has them. Of one option several values are alternatives; of several options each has to
//! match. Options that may mean either end match a flow that has it at one of them.

use std::ffi::OsString;

use clap::{Args as _, Command, FromArgMatches as _};
use sluice_hubble::flow::{
    DropReason, EventTypeFilter, FlowFilter, HttpHeader, IpVersion, NetworkInterface, TcpFlags, TrafficDirection,
    Verdict, Workload,
};
use sluice_hubble::{event, json};

/// Filters of flows.
#[derive(Debug, Default, Clone, clap::Args)]
#[command(next_help_heading = "Filters")]
pub(crate) struct Filters {
    /// A pod at either end, by the beginning of its name: `namespace/pod`, `pod` of the namespace `default`, `/pod` of any.
    #[arg(long, value_name = "POD")]
    pod: Vec<String>,
    /// A pod that sends.
    #[arg(long, value_name = "POD")]
    from_pod: Vec<String>,
    /// A pod that is sent to.
    #[arg(long, value_name = "POD")]
    to_pod: Vec<String>,
    /// A namespace at either end.
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Vec<String>,
    /// The sender's namespace.
    #[arg(long, value_name = "NAMESPACE")]
    from_namespace: Vec<String>,
    /// The receiver's namespace.
    #[arg(long, value_name = "NAMESPACE")]
    to_namespace: Vec<String>,
    /// An address or block at either end.
    #[arg(long, value_name = "IP")]
    ip: Vec<String>,
    /// The sender's address or block.
    #[arg(long, value_name = "IP")]
    from_ip: Vec<String>,
    /// The receiver's address or block.
    #[arg(long, value_name = "IP")]
    to_ip: Vec<String>,
    /// What the sender's address was translated to.
    #[arg(long, value_name = "IP")]
    snat_ip: Vec<String>,
    /// A DNS name at either end, with `*` for anything.
    #[arg(long, value_name = "NAME")]
    fqdn: Vec<String>,
    /// The sender's DNS name.
    #[arg(long, value_name = "NAME")]
    from_fqdn: Vec<String>,
    /// The receiver's DNS name.
    #[arg(long, value_name = "NAME")]
    to_fqdn: Vec<String>,
    /// Labels at either end, as Kubernetes selects them: `app=web`, `env in (a, b)`, `reserved:world`.
    #[arg(short, long, value_name = "SELECTOR")]
    label: Vec<String>,
    /// The sender's labels.
    #[arg(long, value_name = "SELECTOR")]
    from_label: Vec<String>,
    /// The receiver's labels.
    #[arg(long, value_name = "SELECTOR")]
    to_label: Vec<String>,
    /// A Service at either end: `namespace/name`.
    #[arg(long, value_name = "SERVICE")]
    service: Vec<String>,
    /// The sender's Service.
    #[arg(long, value_name = "SERVICE")]
    from_service: Vec<String>,
    /// The receiver's Service.
    #[arg(long, value_name = "SERVICE")]
    to_service: Vec<String>,
    /// A workload at either end: `Deployment/web`, `web`.
    #[arg(long, value_name = "WORKLOAD")]
    workload: Vec<String>,
    /// The sender's workload.
    #[arg(long, value_name = "WORKLOAD")]
    from_workload: Vec<String>,
    /// The receiver's workload.
    #[arg(long, value_name = "WORKLOAD")]
    to_workload: Vec<String>,
    /// A port at either end.
    #[arg(long, value_name = "PORT")]
    port: Vec<String>,
    /// The sender's port.
    #[arg(long, value_name = "PORT")]
    from_port: Vec<String>,
    /// The receiver's port.
    #[arg(long, value_name = "PORT")]
    to_port: Vec<String>,
    /// An identity at either end: a number, or host, world, remote-node.
    #[arg(long, value_name = "IDENTITY")]
    identity: Vec<String>,
    /// The sender's identity.
    #[arg(long, value_name = "IDENTITY")]
    from_identity: Vec<String>,
    /// The receiver's identity.
    #[arg(long, value_name = "IDENTITY")]
    to_identity: Vec<String>,
    /// FORWARDED, DROPPED, AUDIT, REDIRECTED, ERROR.
    #[arg(long, value_name = "VERDICT")]
    verdict: Vec<String>,
    /// Why a packet was dropped: POLICY_DENIED, ...
    #[arg(long, value_name = "REASON")]
    drop_reason_desc: Vec<String>,
    /// What told of it: drop, trace, policy-verdict, l7; `drop:133`.
    #[arg(short = 't', long = "type", value_name = "TYPE")]
    types: Vec<String>,
    /// ingress, egress.
    #[arg(long, value_name = "DIRECTION")]
    traffic_direction: Vec<String>,
    /// tcp, udp, icmp, icmpv4, icmpv6, sctp, http, dns.
    #[arg(long, value_name = "PROTOCOL")]
    protocol: Vec<String>,
    /// Flags that are set: `SYN`, `SYN,ACK`.
    #[arg(long, value_name = "FLAGS")]
    tcp_flags: Vec<String>,
    /// 4 or 6.
    #[arg(long, value_name = "VERSION")]
    ip_version: Vec<String>,
    /// IPv4 only.
    #[arg(short = '4', long = "ipv4")]
    ipv4: bool,
    /// IPv6 only.
    #[arg(short = '6', long = "ipv6")]
    ipv6: bool,
    /// The interface on the host: its name, or its number.
    #[arg(long, value_name = "INTERFACE")]
    interface: Vec<String>,
    /// Status of a response: `404`, `5+`.
    #[arg(long, value_name = "STATUS")]
    http_status: Vec<String>,
    /// Method of a request.
    #[arg(long, value_name = "METHOD")]
    http_method: Vec<String>,
    /// Regular expression for a request's path.
    #[arg(long, value_name = "EXPRESSION")]
    http_path: Vec<String>,
    /// Regular expression for a request's URL.
    #[arg(long, value_name = "EXPRESSION")]
    http_url: Vec<String>,
    /// `name:value` of a request's header.
    #[arg(long, value_name = "HEADER")]
    http_header: Vec<String>,
    /// Regular expression for a name that is asked for.
    #[arg(long, value_name = "EXPRESSION")]
    dns_query: Vec<String>,
    /// The node: its name, with `*` for anything.
    #[arg(long, value_name = "NODE")]
    node_name: Vec<String>,
    /// The flow with this number.
    #[arg(long, value_name = "UUID")]
    uuid: Vec<String>,
}

/// Filters as they are sent.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Filters")]
pub(crate) struct Lists {
    /// A filter as JSON, as --print-raw-filters shows it; flows are shown that one of them matches.
    #[arg(long, value_name = "JSON")]
    allowlist: Vec<String>,
    /// A filter as JSON of flows that are not shown.
    #[arg(long, value_name = "JSON")]
    denylist: Vec<String>,
    /// Do not show flows that the next filter matches: `--not --verdict FORWARDED`.
    #[arg(long, action = clap::ArgAction::Count)]
    not: u8,
}

impl Lists {
    pub(super) fn allow(&self) -> Result<Vec<FlowFilter>, String> {
        self.allowlist.iter().map(|text| filter("allowlist", text)).collect()
    }

    pub(super) fn deny(&self) -> Result<Vec<FlowFilter>, String> {
        self.denylist.iter().map(|text| filter("denylist", text)).collect()
    }
}

fn filter(option: &str, text: &str) -> Result<FlowFilter, String> {
    json::read_exactly(text).map_err(|error| format!("--{option} {text}: {error}"))
}

/// Takes each `--not` and the option behind it out of the arguments of `sluice observe`. What is left, and what was taken.
pub(crate) fn split_not(arguments: Vec<OsString>) -> (Vec<OsString>, Vec<Vec<OsString>>) {
    if arguments.get(1).is_none_or(|command| command != "observe") {
        return (arguments, Vec::new());
    }
    let (mut left, mut taken) = (Vec::new(), Vec::new());
    let mut from = arguments.into_iter();
    while let Some(argument) = from.next() {
        if argument != "--not" {
            left.push(argument);
            continue;
        }
        let Some(option) = from.next() else {
            // The parser says that it needs an option.
            left.push(argument);
            break;
        };
        let whole = option.to_string_lossy();
        let is_flag = ["-4", "-6", "--ipv4", "--ipv6"].contains(&&*whole);
        let mut one = vec![option.clone()];
        if !is_flag && !whole.contains('=') {
            one.extend(from.next());
        }
        taken.push(one);
    }
    (left, taken)
}

/// The filters of what stood behind a `--not`.
pub(super) fn denied(arguments: &[OsString]) -> Result<Vec<FlowFilter>, String> {
    let command = Filters::augment_args(Command::new("--not").no_binary_name(true));
    let matches = command.try_get_matches_from(arguments).map_err(|error| error.to_string())?;
    Filters::from_arg_matches(&matches).map_err(|error| error.to_string())?.read()
}

/// An end of a flow, or either.
#[derive(Clone, Copy)]
enum At {
    Source,
    Destination,
    Either,
}

impl Filters {
    /// The filters that are sent: none, where nothing is asked for.
    pub(super) fn read(&self) -> Result<Vec<FlowFilter>, String> {
        let mut all = All(vec![FlowFilter::default()]);
        let names = |list: &[String]| list.iter().map(|name| format!("{name}/")).collect::<Vec<_>>();
        for (at, list) in [(At::Either, &self.pod), (At::Source, &self.from_pod), (At::Destination, &self.to_pod)] {
            all.ends(at, list, |f| &mut f.source_pod, |f| &mut f.destination_pod);
        }
        for (at, list) in
            [(At::Either, &self.namespace), (At::Source, &self.from_namespace), (At::Destination, &self.to_namespace)]
        {
            all.namespaces(at, &names(list));
        }
        for (at, list) in [(At::Either, &self.ip), (At::Source, &self.from_ip), (At::Destination, &self.to_ip)] {
            all.ends(at, list, |f| &mut f.source_ip, |f| &mut f.destination_ip);
        }
        for (at, list) in [(At::Either, &self.fqdn), (At::Source, &self.from_fqdn), (At::Destination, &self.to_fqdn)] {
            all.ends(at, list, |f| &mut f.source_fqdn, |f| &mut f.destination_fqdn);
        }
        for (at, list) in [(At::Either, &self.label), (At::Source, &self.from_label), (At::Destination, &self.to_label)]
        {
            all.ends(at, list, |f| &mut f.source_label, |f| &mut f.destination_label);
        }
        for (at, list) in
            [(At::Either, &self.service), (At::Source, &self.from_service), (At::Destination, &self.to_service)]
        {
            all.ends(at, list, |f| &mut f.source_service, |f| &mut f.destination_service);
        }
        for (at, list) in
            [(At::Either, &self.workload), (At::Source, &self.from_workload), (At::Destination, &self.to_workload)]
        {
            let list: Vec<Workload> = list.iter().map(|text| workload(text)).collect();
            all.ends(at, &list, |f| &mut f.source_workload, |f| &mut f.destination_workload);
        }
        for (at, list) in [(At::Either, &self.port), (At::Source, &self.from_port), (At::Destination, &self.to_port)] {
            all.ends(at, list, |f| &mut f.source_port, |f| &mut f.destination_port);
        }
        for (at, list) in
            [(At::Either, &self.identity), (At::Source, &self.from_identity), (At::Destination, &self.to_identity)]
        {
            let list = list.iter().map(|text| identity(text)).collect::<Result<Vec<_>, _>>()?;
            all.ends(at, &list, |f| &mut f.source_identity, |f| &mut f.destination_identity);
        }
        all.add(&self.snat_ip, |f| &mut f.source_ip_xlated);
        let verdicts = enumerated("verdict", &self.verdict, |text| Verdict::from_str_name(text).map(i32::from))?;
        all.add(&verdicts, |f| &mut f.verdict);
        let reasons = enumerated("drop-reason-desc", &self.drop_reason_desc, |text| {
            DropReason::from_str_name(text).map(i32::from)
        })?;
        all.add(&reasons, |f| &mut f.drop_reason_desc);
        let directions = enumerated("traffic-direction", &self.traffic_direction, |text| {
            TrafficDirection::from_str_name(text).map(i32::from)
        })?;
        all.add(&directions, |f| &mut f.traffic_direction);
        let types = self.types.iter().map(|text| event_type(text)).collect::<Result<Vec<_>, _>>()?;
        all.add(&types, |f| &mut f.event_type);
        all.add(&self.protocol, |f| &mut f.protocol);
        let flags = self.tcp_flags.iter().map(|text| flags(text)).collect::<Result<Vec<_>, _>>()?;
        all.add(&flags, |f| &mut f.tcp_flags);
        let mut versions = enumerated("ip-version", &self.ip_version, version)?;
        versions.extend(self.ipv4.then_some(i32::from(IpVersion::IPv4)));
        versions.extend(self.ipv6.then_some(i32::from(IpVersion::IPv6)));
        all.add(&versions, |f| &mut f.ip_version);
        let interfaces: Vec<NetworkInterface> = self.interface.iter().map(|text| interface(text)).collect();
        all.add(&interfaces, |f| &mut f.interface);
        all.add(&self.http_status, |f| &mut f.http_status_code);
        all.add(&self.http_method, |f| &mut f.http_method);
        all.add(&self.http_path, |f| &mut f.http_path);
        all.add(&self.http_url, |f| &mut f.http_url);
        let headers = self.http_header.iter().map(|text| header(text)).collect::<Result<Vec<_>, _>>()?;
        all.add(&headers, |f| &mut f.http_header);
        all.add(&self.dns_query, |f| &mut f.dns_query);
        all.add(&self.node_name, |f| &mut f.node_name);
        all.add(&self.uuid, |f| &mut f.uuid);
        // A filter in which nothing is set means everything.
        Ok(if all.0 == [FlowFilter::default()] { Vec::new() } else { all.0 })
    }
}

/// Filters of which one has to match.
struct All(Vec<FlowFilter>);

impl All {
    fn add<T: Clone>(&mut self, list: &[T], field: impl Fn(&mut FlowFilter) -> &mut Vec<T>) {
        for filter in &mut self.0 {
            field(filter).extend(list.iter().cloned());
        }
    }

    fn ends<T: Clone>(
        &mut self,
        at: At,
        list: &[T],
        source: impl Fn(&mut FlowFilter) -> &mut Vec<T>,
        destination: impl Fn(&mut FlowFilter) -> &mut Vec<T>,
    ) {
        if list.is_empty() {
            return;
        }
        match at {
            At::Source => self.add(list, source),
            At::Destination => self.add(list, destination),
            At::Either => {
                let mut others = Self(self.0.clone());
                self.add(list, source);
                others.add(list, destination);
                self.0.append(&mut others.0);
            }
        }
    }

    /// Namespaces are written as the pods of them. Beside pods of the same end, both have to match: the pods' are given to
    /// these namespaces where they name none of their own.
    fn namespaces(&mut self, at: At, list: &[String]) {
        let within = |pods: &mut Vec<String>| {
            if pods.is_empty() {
                pods.extend(list.iter().cloned());
            } else {
                let bare = |pod: &String| pod.split_once('/').map_or(pod.as_str(), |(_, name)| name).to_owned();
                *pods =
                    pods.iter().flat_map(|pod| list.iter().map(move |name| format!("{name}{}", bare(pod)))).collect();
            }
        };
        if list.is_empty() {
            return;
        }
        match at {
            At::Source => self.0.iter_mut().for_each(|filter| within(&mut filter.source_pod)),
            At::Destination => self.0.iter_mut().for_each(|filter| within(&mut filter.destination_pod)),
            At::Either => {
                let mut others = self.0.clone();
                self.0.iter_mut().for_each(|filter| within(&mut filter.source_pod));
                others.iter_mut().for_each(|filter| within(&mut filter.destination_pod));
                self.0.append(&mut others);
            }
        }
    }
}

fn enumerated(option: &str, list: &[String], read: impl Fn(&str) -> Option<i32>) -> Result<Vec<i32>, String> {
    let one = |text: &String| {
        let name = text.to_ascii_uppercase().replace('-', "_");
        read(&name).ok_or_else(|| format!("--{option} {text:?} is not known; see --help"))
    };
    list.iter().map(one).collect()
}

fn version(text: &str) -> Option<i32> {
    match text {
        "4" | "V4" | "IPV4" => Some(IpVersion::IPv4.into()),
        "6" | "V6" | "IPV6" => Some(IpVersion::IPv6.into()),
        _ => None,
    }
}

fn workload(text: &str) -> Workload {
    let (kind, name) = text.split_once('/').unwrap_or(("", text));
    Workload { name: name.to_owned(), kind: kind.to_owned() }
}

/// Cilium's numbers of what has no identity of its own.
fn identity(text: &str) -> Result<u32, String> {
    match text.strip_prefix("reserved:").unwrap_or(text) {
        "host" => Ok(1),
        "world" => Ok(2),
        "remote-node" => Ok(6),
        number => {
            number.parse().map_err(|_unread| format!("--identity {text:?}: a number, host, world or remote-node"))
        }
    }
}

fn event_type(text: &str) -> Result<EventTypeFilter, String> {
    let wrong = || format!("--type {text:?}: drop, trace, policy-verdict or l7, with a sub-type such as drop:133");
    let (name, sub_type) = match text.split_once(':') {
        Some((name, sub)) => {
            let reason = || DropReason::from_str_name(&sub.to_ascii_uppercase().replace('-', "_")).map(i32::from);
            (name, Some(sub.parse().ok().or_else(reason).ok_or_else(wrong)?))
        }
        None => (text, None),
    };
    let number = event::named(name).or_else(|| name.parse().ok()).ok_or_else(wrong)?;
    Ok(EventTypeFilter { r#type: number, match_sub_type: sub_type.is_some(), sub_type: sub_type.unwrap_or_default() })
}

fn flags(text: &str) -> Result<TcpFlags, String> {
    let mut flags = TcpFlags::default();
    for name in text.split(',') {
        let flag = match name.trim().to_ascii_uppercase().as_str() {
            "FIN" => &mut flags.fin,
            "SYN" => &mut flags.syn,
            "RST" => &mut flags.rst,
            "PSH" => &mut flags.psh,
            "ACK" => &mut flags.ack,
            "URG" => &mut flags.urg,
            "ECE" => &mut flags.ece,
            "CWR" => &mut flags.cwr,
            "NS" => &mut flags.ns,
            _ => return Err(format!("--tcp-flags {text:?}: {name:?} is no flag of TCP")),
        };
        *flag = true;
    }
    Ok(flags)
}

fn interface(text: &str) -> NetworkInterface {
    match text.parse() {
        Ok(index) => NetworkInterface { index, name: String::new() },
        Err(_) => NetworkInterface { index: 0, name: text.to_owned() },
    }
}

fn header(text: &str) -> Result<HttpHeader, String> {
    let (key, value) = text.split_once(':').ok_or_else(|| format!("--http-header {text:?}: name:value"))?;
    Ok(HttpHeader { key: key.trim().to_owned(), value: value.trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &[&str]) -> Vec<String> {
        let arguments: Vec<OsString> = arguments.iter().map(Into::into).collect();
        denied(&arguments).unwrap().iter().map(|filter| json::line(filter).unwrap()).collect()
    }

    #[test]
    fn options_are_what_hubble_sends() {
        assert!(read(&[]).is_empty());
        assert_eq!(read(&["--verdict", "dropped"]), [r#"{"verdict":["DROPPED"]}"#]);
        assert_eq!(
            read(&["--pod", "shop/web", "--to-port", "80", "--to-port", "443"]),
            [
                r#"{"source_pod":["shop/web"],"destination_port":["80","443"]}"#,
                r#"{"destination_pod":["shop/web"],"destination_port":["80","443"]}"#
            ]
        );
        assert_eq!(read(&["--from-pod", "web", "-n", "shop"])[0], r#"{"source_pod":["shop/web"]}"#);
        assert_eq!(read(&["--to-namespace", "shop"]), [r#"{"destination_pod":["shop/"]}"#]);
        assert_eq!(
            read(&["-t", "drop:policy_denied"]),
            [r#"{"event_type":[{"type":1,"match_sub_type":true,"sub_type":133}]}"#]
        );
        assert_eq!(read(&["--tcp-flags", "SYN,ACK"]), [r#"{"tcp_flags":[{"SYN":true,"ACK":true}]}"#]);
        assert_eq!(read(&["--to-identity", "world", "-6"]), [r#"{"destination_identity":[2],"ip_version":["IPv6"]}"#]);
        for wrong in [["--verdict", "LOST"], ["--type", "dropp"], ["--tcp-flags", "SIN"], ["--identity", "x"]] {
            assert!(denied(&wrong.map(Into::into)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_stands_behind_not_is_taken_out() {
        let split = |text: &str| {
            let (left, taken) = split_not(text.split(' ').map(Into::into).collect());
            let join = |list: Vec<OsString>| list.join(" ".as_ref()).into_string().unwrap();
            (join(left), taken.into_iter().map(join).collect::<Vec<_>>())
        };
        assert_eq!(
            split("sluice observe --not --verdict FORWARDED -f --not -4 --pod a --not --to-port=80"),
            (
                "sluice observe -f --pod a".to_owned(),
                vec!["--verdict FORWARDED".to_owned(), "-4".to_owned(), "--to-port=80".to_owned()]
            )
        );
        assert_eq!(split("sluice explain --not --x y"), ("sluice explain --not --x y".to_owned(), vec![]));
    }
}
