//! Which flows a request means: Hubble's allow and deny lists. Of a filter all that is set has to match, of a list in it one
//! element; of several filters one has to.

mod endpoint;
mod labels;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use regex::{Regex, RegexBuilder};

use crate::flow::{Flow, FlowFilter, IpVersion, TcpFlags, layer4, layer7};
use endpoint::{Side, sides};

/// Elements of all filters of a request together.
const MOST: usize = 4096;

/// Bytes that a compiled expression may take.
const EXPRESSION: usize = 1 << 18;

/// Expressions of all filters of a request together, patterns with `*` among them.
const EXPRESSIONS: usize = 32;

/// Why a filter cannot be used. Nothing is told then: a filter that is passed over would tell too much.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// A value cannot be read.
    #[error("{field}: {value:?} {rule}")]
    Value {
        /// The field.
        field: &'static str,
        /// What it has.
        value: String,
        /// What it must be.
        rule: String,
    },
    /// Flows of Sluice have nothing that it asks for.
    #[error("{field}: flows of Sluice do not have that; leave this filter out")]
    Unsupported {
        /// The field.
        field: &'static str,
    },
    /// There is too much of it.
    #[error("the filters have more than {MOST} elements")]
    TooMany,
    /// Too much of it has to be compiled.
    #[error("the filters have more than {EXPRESSIONS} expressions, names and nodes")]
    TooManyExpressions,
}

fn wrong(field: &'static str, value: &str, rule: impl Into<String>) -> FilterError {
    FilterError::Value { field, value: value.to_owned(), rule: rule.into() }
}

/// Something that holds for a flow or does not.
type Test = Box<dyn Fn(&Flow) -> bool + Send + Sync>;

/// Filters of a request.
#[derive(Default)]
pub struct Filters {
    allow: Vec<Vec<Test>>,
    deny: Vec<Vec<Test>>,
}

impl fmt::Debug for Filters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filters").field("allow", &self.allow.len()).field("deny", &self.deny.len()).finish()
    }
}

impl Filters {
    /// Filters of a request: a flow is told if one of `allow` matches, or there is none, and none of `deny` does.
    ///
    /// # Errors
    /// [`FilterError`].
    pub fn new(allow: &[FlowFilter], deny: &[FlowFilter]) -> Result<Self, FilterError> {
        let elements: usize = allow.iter().chain(deny).map(elements).sum();
        if elements + allow.len() + deny.len() > MOST {
            return Err(FilterError::TooMany);
        }
        if allow.iter().chain(deny).map(compiled).sum::<usize>() > EXPRESSIONS {
            return Err(FilterError::TooManyExpressions);
        }
        let all = |filters: &[FlowFilter]| filters.iter().map(tests_of).collect::<Result<Vec<_>, _>>();
        Ok(Self { allow: all(allow)?, deny: all(deny)? })
    }

    /// Whether a flow is meant.
    #[must_use]
    pub fn passes(&self, flow: &Flow) -> bool {
        let matches = |tests: &Vec<Test>| tests.iter().all(|test| test(flow));
        (self.allow.is_empty() || self.allow.iter().any(matches)) && !self.deny.iter().any(matches)
    }
}

fn elements(filter: &FlowFilter) -> usize {
    sides(filter).iter().map(Side::elements).sum::<usize>()
        + [
            filter.uuid.len(),
            filter.http_status_code.len(),
            filter.protocol.len(),
            filter.dns_query.len(),
            filter.http_method.len(),
            filter.http_path.len(),
            filter.http_url.len(),
            filter.http_header.len(),
            filter.tcp_flags.len(),
            filter.node_name.len(),
            filter.event_type.len(),
            filter.interface.len(),
            filter.verdict.len(),
            filter.drop_reason_desc.len(),
        ]
        .iter()
        .sum::<usize>()
}

/// What has to hold of a list: one element of it; nothing, where there is none.
fn any<T: Send + Sync + 'static>(
    tests: &mut Vec<Test>,
    list: Vec<T>,
    holds: impl Fn(&T, &Flow) -> bool + Send + Sync + 'static,
) {
    if !list.is_empty() {
        tests.push(Box::new(move |flow| list.iter().any(|one| holds(one, flow))));
    }
}

fn tests_of(filter: &FlowFilter) -> Result<Vec<Test>, FilterError> {
    let unsupported = [
        ("node_labels", !filter.node_labels.is_empty()),
        ("trace_id", !filter.trace_id.is_empty()),
        (
            "experimental.cel_expression",
            filter.experimental.as_ref().is_some_and(|more| !more.cel_expression.is_empty()),
        ),
    ];
    if let Some((field, _)) = unsupported.into_iter().find(|(_, asked)| *asked) {
        return Err(FilterError::Unsupported { field });
    }
    let mut tests = Vec::new();
    for side in sides(filter) {
        side.tests(&mut tests)?;
    }
    any(&mut tests, filter.uuid.clone(), |uuid, flow| flow.uuid == *uuid);
    any(&mut tests, filter.traffic_direction.clone(), |direction, flow| flow.traffic_direction == *direction);
    any(&mut tests, filter.verdict.clone(), |verdict, flow| flow.verdict == *verdict);
    any(&mut tests, filter.drop_reason_desc.clone(), |reason, flow| flow.drop_reason_desc == *reason);
    any(&mut tests, filter.reply.clone(), |reply, flow| flow.is_reply == Some(*reply));
    any(&mut tests, filter.event_type.clone(), |wanted, flow| {
        let is_it = |event: &crate::flow::CiliumEventType| {
            event.r#type == wanted.r#type && (!wanted.match_sub_type || event.sub_type == wanted.sub_type)
        };
        flow.event_type.as_ref().is_some_and(is_it)
    });
    any(&mut tests, filter.interface.clone(), |wanted, flow| {
        flow.interface.as_ref().is_some_and(|interface| {
            (wanted.index == 0 || interface.index == wanted.index)
                && (wanted.name.is_empty() || interface.name == wanted.name)
        })
    });
    let versions = filter.ip_version.clone();
    any(&mut tests, versions, |version, flow| {
        flow.ip.as_ref().map_or(i32::from(IpVersion::IpNotUsed), |ip| ip.ip_version) == *version
    });
    any(&mut tests, filter.tcp_flags.clone(), |wanted, flow| match protocol(flow) {
        Some(layer4::Protocol::Tcp(tcp)) => tcp.flags.is_some_and(|flags| has_flags(&flags, wanted)),
        _ => false,
    });
    let protocols: Result<Vec<Protocol>, _> = filter.protocol.iter().map(|name| Protocol::read(name)).collect();
    any(&mut tests, protocols?, |wanted, flow| wanted.is_of(flow));
    requests(filter, &mut tests)?;
    let nodes: Result<Vec<Regex>, _> = filter.node_name.iter().map(|pattern| node_pattern(pattern)).collect();
    any(&mut tests, nodes?, |pattern, flow| pattern.is_match(&flow.node_name));
    Ok(tests)
}

/// What is asked of requests and DNS questions.
fn requests(filter: &FlowFilter, tests: &mut Vec<Test>) -> Result<(), FilterError> {
    let codes: Result<Vec<Code>, _> = filter.http_status_code.iter().map(|text| Code::read(text)).collect();
    any(tests, codes?, |wanted, flow| http(flow).is_some_and(|http| http.code != 0 && wanted.is(http.code)));
    any(tests, filter.http_method.clone(), |method, flow| {
        http(flow).is_some_and(|http| http.method.eq_ignore_ascii_case(method))
    });
    let expressions = |field, list: &[String]| -> Result<Vec<Regex>, FilterError> {
        list.iter().map(|text| expression(field, text)).collect()
    };
    any(tests, expressions("http_path", &filter.http_path)?, |path, flow| {
        http(flow).is_some_and(|http| path.is_match(path_of(&http.url)))
    });
    any(tests, expressions("http_url", &filter.http_url)?, |url, flow| {
        http(flow).is_some_and(|http| url.is_match(&http.url))
    });
    any(tests, filter.http_header.clone(), |wanted, flow| {
        let is_it = |header: &crate::flow::HttpHeader| {
            header.key.eq_ignore_ascii_case(&wanted.key) && header.value == wanted.value
        };
        http(flow).is_some_and(|http| http.headers.iter().any(is_it))
    });
    any(
        tests,
        expressions("dns_query", &filter.dns_query)?,
        |query, flow| matches!(record(flow), Some(layer7::Record::Dns(dns)) if query.is_match(&dns.query)),
    );
    Ok(())
}

/// How much of a filter is compiled.
fn compiled(filter: &FlowFilter) -> usize {
    let FlowFilter { source_fqdn, destination_fqdn, node_name, dns_query, http_path, http_url, .. } = filter;
    [source_fqdn, destination_fqdn, node_name, dns_query, http_path, http_url].into_iter().map(Vec::len).sum()
}

fn expression(field: &'static str, text: &str) -> Result<Regex, FilterError> {
    RegexBuilder::new(text)
        .size_limit(EXPRESSION)
        .dfa_size_limit(EXPRESSION)
        .build()
        .map_err(|error| wrong(field, text, format!("is no regular expression: {error}")))
}

/// A pattern with `*` for anything, as a whole.
pub(crate) fn wildcard(field: &'static str, text: &str) -> Result<Regex, FilterError> {
    let parts: Vec<String> = text.split('*').map(regex::escape).collect();
    expression(field, &format!("^{}$", parts.join(".*")))
}

/// `node`, `node*`, `cluster/node`, `cluster/`; without a cluster's name a node has none.
fn node_pattern(text: &str) -> Result<Regex, FilterError> {
    match text.rsplit_once('/') {
        // A node of Sluice is in no cluster with a name: `default` is what Hubble calls that.
        Some(("default" | "*" | "", node)) => wildcard("node_name", if node.is_empty() { "*" } else { node }),
        _ => wildcard("node_name", text),
    }
}

/// The path of a URL, with what is behind it.
fn path_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let from = if url.contains("://") { rest.find('/') } else { Some(0) };
    let path = from.and_then(|at| rest.get(at..)).unwrap_or("/");
    path.split_once(['?', '#']).map_or(path, |(path, _)| path)
}

fn protocol(flow: &Flow) -> Option<&layer4::Protocol> {
    flow.l4.as_ref()?.protocol.as_ref()
}

fn record(flow: &Flow) -> Option<&layer7::Record> {
    flow.l7.as_ref()?.record.as_ref()
}

fn http(flow: &Flow) -> Option<&crate::flow::Http> {
    match record(flow)? {
        layer7::Record::Http(http) => Some(http),
        layer7::Record::Dns(_) => None,
    }
}

/// Whether all flags that are wanted are there.
fn has_flags(flags: &TcpFlags, wanted: &TcpFlags) -> bool {
    let pairs = [
        (flags.fin, wanted.fin),
        (flags.syn, wanted.syn),
        (flags.rst, wanted.rst),
        (flags.psh, wanted.psh),
        (flags.ack, wanted.ack),
        (flags.urg, wanted.urg),
        (flags.ece, wanted.ece),
        (flags.cwr, wanted.cwr),
        (flags.ns, wanted.ns),
    ];
    pairs.into_iter().all(|(there, wanted)| there || !wanted)
}

/// A status code, or those that begin so: `404`, `5+`.
#[derive(Debug, Clone)]
struct Code {
    digits: String,
    more: bool,
}

impl Code {
    fn read(text: &str) -> Result<Self, FilterError> {
        let (digits, more) = text.strip_suffix('+').map_or((text, false), |digits| (digits, true));
        let is_code = |digits: &str| {
            digits.bytes().all(|digit| digit.is_ascii_digit()) && matches!(digits.bytes().next(), Some(b'1'..=b'5'))
        };
        if !is_code(digits) || digits.len() > 3 || (digits.len() < 3 && !more) {
            return Err(wrong(
                "http_status_code",
                text,
                "is neither a status code nor the beginning of one, such as 5+",
            ));
        }
        Ok(Self { digits: digits.to_owned(), more })
    }

    fn is(&self, code: u32) -> bool {
        let code = code.to_string();
        if self.more { code.starts_with(&self.digits) } else { code == self.digits }
    }
}

#[derive(Debug, Clone, Copy)]
enum Protocol {
    Tcp,
    Udp,
    Sctp,
    Icmp,
    IcmpV4,
    IcmpV6,
    Http,
    Dns,
}

impl Protocol {
    fn read(name: &str) -> Result<Self, FilterError> {
        Ok(match name.to_ascii_lowercase().as_str() {
            "tcp" => Self::Tcp,
            "udp" => Self::Udp,
            "sctp" => Self::Sctp,
            "icmp" => Self::Icmp,
            "icmpv4" => Self::IcmpV4,
            "icmpv6" => Self::IcmpV6,
            "http" => Self::Http,
            "dns" => Self::Dns,
            _ => return Err(wrong("protocol", name, "is none of tcp, udp, sctp, icmp, icmpv4, icmpv6, http and dns")),
        })
    }

    fn is_of(self, flow: &Flow) -> bool {
        match (self, protocol(flow)) {
            (Self::Http, _) => http(flow).is_some(),
            (Self::Dns, _) => matches!(record(flow), Some(layer7::Record::Dns(_))),
            (Self::Tcp, Some(layer4::Protocol::Tcp(_)))
            | (Self::Udp, Some(layer4::Protocol::Udp(_)))
            | (Self::Sctp, Some(layer4::Protocol::Sctp(_)))
            | (Self::Icmp | Self::IcmpV4, Some(layer4::Protocol::IcmPv4(_)))
            | (Self::Icmp | Self::IcmpV6, Some(layer4::Protocol::IcmPv6(_))) => true,
            _ => false,
        }
    }
}

/// An address or a block of addresses.
fn block(field: &'static str, text: &str) -> Result<IpNet, FilterError> {
    let one = text.parse::<IpAddr>().map(IpNet::from);
    one.or_else(|_| text.parse()).map_err(|_unread| wrong(field, text, "is neither an IP address nor a block of them"))
}
