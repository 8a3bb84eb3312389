//! Policies for what is in a connection, on the running pods: HTTP requests by method and path, peers by DNS name; and what the
//! proxy recorded of each.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use sluice_hostnet::netns::NamespaceThread;
use sluice_policy_core::manifest;
use sluice_vpcsim::probe::dns::{self, DNS_PORT};
use sluice_vpcsim::probe::http::{self, HTTP_PORT};
use sluice_vpcsim::probe::{self, ECHO_PORT};
use tokio::time::Instant;

use super::Progress;
use super::act::{ActError, Actor, Stage};
use super::cluster::Cluster;
use super::policy::{enforce, key};
use super::report::{RequestAct, RequestCell};

const HTTP: (&str, &str) =
    ("shop's databases answer GET /public, and no other request, to anyone", include_str!("policies/http.yaml"));
const NAMES: (&str, &str) =
    ("guest may look up *.example, and reach api.example only", include_str!("policies/names.yaml"));
/// The DNS server on the Internet.
const DNS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 53);
/// Names that it knows, and whose they are.
const KNOWN: [(&str, Ipv4Addr); 3] = [
    ("api.example", Ipv4Addr::new(198, 51, 100, 10)),
    ("ads.example", Ipv4Addr::new(198, 51, 100, 20)),
    ("evil.test", Ipv4Addr::new(198, 51, 100, 20)),
];
/// How long what is allowed may take, and how long silence is listened to.
const ALLOWED: Duration = Duration::from_secs(5);
const DENIED: Duration = Duration::from_millis(500);
/// How long a record may take to show.
const RECORD: Duration = Duration::from_secs(3);
/// Between two looks at the records.
const LOOK: Duration = Duration::from_millis(50);

/// Applies both policies, one after the other, and tries what they are about.
pub(crate) async fn play(
    stage: &Stage<'_>,
    cluster: &mut Cluster,
    progress: &Progress,
) -> Result<Vec<RequestAct>, ActError> {
    let server = stage.actors.first().ok_or_else(|| wrong("there is no pod to serve HTTP"))?;
    let guest = stage.actors.last().ok_or_else(|| wrong("there is no pod of the other node"))?;
    let address = SocketAddrV4::new(server.pod.address, HTTP_PORT);
    let served = thread(stage, server).await?.run(move || http::serve_in_background(address)).await;
    served.map_err(|error| wrong(&error.to_string()))?.map_err(ActError::Cluster)?;
    let zone = KNOWN.iter().map(|(name, address)| ((*name).to_owned(), vec![(*address).into()])).collect();
    let dns = SocketAddrV4::new(DNS, DNS_PORT);
    let served = stage.world.internet().await.run(move || dns::serve_in_background(dns, zone)).await;
    served.map_err(|error| wrong(&error.to_string()))?.map_err(ActError::Cluster)?;

    apply(stage, cluster, HTTP.1).await?;
    let mut cells = Vec::new();
    for from in stage.actors.iter().skip(1) {
        for (method, path, status) in [("GET", "/public", 200), ("POST", "/public", 403), ("GET", "/admin", 403)] {
            cells.push(request(stage, from, server, (method, path, status)).await?);
        }
    }
    let http = RequestAct { title: HTTP.0.to_owned(), cells };

    apply(stage, cluster, NAMES.1).await?;
    let mut cells = vec![reach(stage, guest, "api.example", "silence").await?];
    for (name, answer, reached) in
        [("api.example", "198.51.100.10", "reached"), ("ads.example", "198.51.100.20", "silence")]
    {
        cells.push(look_up(stage, guest, name, answer).await?);
        cells.push(reach(stage, guest, name, reached).await?);
    }
    cells.push(look_up(stage, guest, "evil.test", "refused").await?);
    let names = RequestAct { title: NAMES.0.to_owned(), cells };

    cluster.more.clear();
    enforce(stage, cluster).await?;
    progress.done("requests and DNS names were judged by the proxies of both nodes");
    Ok(vec![http, names])
}

fn wrong(what: &str) -> ActError {
    ActError::Policies { what: what.to_owned() }
}

async fn apply(stage: &Stage<'_>, cluster: &mut Cluster, text: &str) -> Result<(), ActError> {
    cluster.more = manifest::documents(text).map_err(|error| wrong(&error.to_string()))?;
    enforce(stage, cluster).await
}

async fn thread(stage: &Stage<'_>, actor: &Actor) -> Result<Arc<NamespaceThread>, ActError> {
    Ok(stage.deployment(&actor.node)?.node().pod(&actor.pod.sandbox.netns).await?)
}

/// One HTTP request from a pod to another, with the status that it has to have.
async fn request(
    stage: &Stage<'_>,
    from: &Actor,
    to: &Actor,
    (method, path, status): (&'static str, &'static str, u16),
) -> Result<RequestCell, ActError> {
    let (client, server) = (from.pod.address, SocketAddrV4::new(to.pod.address, HTTP_PORT));
    let work = move || async move { http::get(server, method, path, ALLOWED).await };
    let answer = thread(stage, from).await?.run(work).await.map_err(|error| wrong(&error.to_string()))?;
    let seen = match answer {
        Ok(answer) if answer.status == 200 && !answer.body.ends_with(&format!(" {client}\n")) => {
            format!("200, and the server saw {}", answer.body.trim())
        }
        Ok(answer) => answer.status.to_string(),
        Err(error) => error.to_string(),
    };
    let is_it = |record: &Value| {
        text(record, "kind") == Some("http")
            && text(record, "method") == Some(method)
            && text(record, "path") == Some(path)
            && is_from(record, client)
    };
    Ok(RequestCell {
        from: key(from).to_string(),
        to: key(to).to_string(),
        request: format!("{method} {path}"),
        expected: status.to_string(),
        seen,
        recorded: recorded(stage, &to.node, is_it).await?,
        needs_record: true,
    })
}

/// One question for a name, with the address that has to come, or `refused`.
async fn look_up(stage: &Stage<'_>, from: &Actor, name: &'static str, expected: &str) -> Result<RequestCell, ActError> {
    let (client, server) = (from.pod.address, SocketAddrV4::new(DNS, DNS_PORT));
    let work = move || async move { dns::resolve(server, name, ALLOWED).await };
    let answer = thread(stage, from).await?.run(work).await.map_err(|error| wrong(&error.to_string()))?;
    let seen = match answer {
        Ok(answer) if answer.rcode == dns::REFUSED => "refused".to_owned(),
        Ok(answer) => answer.addresses.first().map_or_else(|| format!("code {}", answer.rcode), ToString::to_string),
        Err(error) => error.to_string(),
    };
    let is_it = |record: &Value| {
        let asked = text(record, "name").map(|asked| asked.trim_end_matches('.'));
        text(record, "kind") == Some("dns") && asked == Some(name) && is_from(record, client)
    };
    Ok(RequestCell {
        from: key(from).to_string(),
        to: "DNS".to_owned(),
        request: format!("A {name}"),
        expected: expected.to_owned(),
        seen,
        recorded: recorded(stage, &from.node, is_it).await?,
        needs_record: true,
    })
}

/// A connection to the host that has a name; what is to come of it.
async fn reach(
    stage: &Stage<'_>,
    from: &Actor,
    name: &'static str,
    expected: &'static str,
) -> Result<RequestCell, ActError> {
    let known = KNOWN.iter().find(|(known, _)| *known == name).ok_or_else(|| wrong("a name without an address"))?;
    let to = SocketAddrV4::new(known.1, ECHO_PORT);
    let limit = if expected == "reached" { ALLOWED } else { DENIED };
    let work = move || async move { probe::tcp(None, to, limit).await };
    let reached = thread(stage, from).await?.run(work).await.map_err(|error| wrong(&error.to_string()))?;
    let seen = match reached {
        Ok(_) => "reached".to_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::TimedOut => "silence".to_owned(),
        Err(error) => error.to_string(),
    };
    Ok(RequestCell {
        from: key(from).to_string(),
        to: name.to_owned(),
        request: format!("connect to {to}"),
        expected: expected.to_owned(),
        seen,
        recorded: None,
        needs_record: false,
    })
}

fn text<'v>(record: &'v Value, key: &str) -> Option<&'v str> {
    record.get(key).and_then(Value::as_str)
}

fn is_from(record: &Value, client: Ipv4Addr) -> bool {
    text(record, "client").and_then(|address| address.rsplit_once(':')).is_some_and(|(ip, _)| ip == client.to_string())
}

/// What a node's proxy says of a request: the verdict, and the rule or the reason.
async fn recorded(stage: &Stage<'_>, node: &str, is_it: impl Fn(&Value) -> bool) -> Result<Option<String>, ActError> {
    let Some(proxy) = stage.deployment(node)?.proxy() else { return Ok(None) };
    let end = Instant::now() + RECORD;
    loop {
        if let Some(record) = proxy.records().await?.iter().find(|record| is_it(record)) {
            let verdict = text(record, "verdict").unwrap_or("?");
            return Ok(Some(match text(record, "rule") {
                Some(rule) => format!("{verdict} by {rule}"),
                None => format!("{verdict}: {}", text(record, "reason").unwrap_or("no reason is given")),
            }));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use sluice_policy_core::parse;

    use super::*;

    #[test]
    fn the_policies_of_the_demo_are_faultless() {
        for (title, policies) in [HTTP, NAMES] {
            let documents = manifest::documents(policies).unwrap();
            assert_eq!(documents.len(), 1, "{title}");
            assert!(parse::object(&documents[0]).issues.is_empty(), "{title}");
        }
    }
}
