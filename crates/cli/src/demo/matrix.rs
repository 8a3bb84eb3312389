//! Who reaches whom: a TCP connection from each to each, and the source address that the far side saw.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use sluice_hostnet::netns::NamespaceThread;
use sluice_vpcsim::node::Node;
use sluice_vpcsim::probe::{self, ECHO_PORT};

use super::act::{ActError, Stage};
use super::report::Cell;

/// How long one connection may take. A packet that a wrong route loses never comes.
const LIMIT: Duration = Duration::from_secs(3);
/// The host on the Internet.
const INTERNET: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);

/// Somebody who asks and answers.
struct Party {
    name: String,
    address: Ipv4Addr,
    /// The address that the Internet sees.
    public: Ipv4Addr,
    home: Home,
}

enum Home {
    Node(Arc<Node>),
    Pod(Arc<NamespaceThread>),
}

impl Party {
    /// Makes an echo server, and returns once it listens.
    async fn serve(&self) -> Result<(), String> {
        let address = SocketAddrV4::new(self.address, ECHO_PORT);
        let work = move || async move { probe::serve_in_background(address).await.map_err(|error| error.to_string()) };
        match &self.home {
            Home::Node(node) => node.run_async(work).await.map_err(|error| error.to_string())?,
            Home::Pod(thread) => thread.run(work).await.map_err(|error| error.to_string())?,
        }
    }

    /// Asks an echo server which source it sees.
    async fn ask(&self, to: Ipv4Addr) -> Result<Ipv4Addr, String> {
        let to = SocketAddrV4::new(to, ECHO_PORT);
        let work = move || async move { probe::tcp(None, to, LIMIT).await.map_err(|error| error.to_string()) };
        let seen = match &self.home {
            Home::Node(node) => node.run_async(work).await.map_err(|error| error.to_string())?,
            Home::Pod(thread) => thread.run(work).await.map_err(|error| error.to_string())?,
        };
        Ok(*seen?.ip())
    }
}

/// Probes every pair, nodes and the Internet's host among them.
pub(crate) async fn probe(stage: &Stage<'_>) -> Result<Vec<Cell>, ActError> {
    let mut parties = Vec::new();
    for (name, deployment) in &stage.deployments {
        let (address, public) = stage.addresses_of(name)?;
        let node = Arc::clone(deployment.node());
        for actor in stage.actors.iter().filter(|actor| actor.node == *name) {
            let thread = node.pod(&actor.pod.sandbox.netns).await?;
            let kind = if actor.place.device == 0 { "primary" } else { "secondary" };
            parties.push(Party {
                name: format!("{} ({kind})", actor.name),
                address: actor.pod.address,
                public,
                home: Home::Pod(thread),
            });
        }
        parties.push(Party { name: name.clone(), address, public, home: Home::Node(node) });
    }
    let mut cells = Vec::new();
    for party in &parties {
        if let Err(problem) = party.serve().await {
            cells.push(cell(&party.name, "its own echo server", party.address, Err(problem)));
        }
    }
    for from in &parties {
        for to in parties.iter().filter(|to| to.name != from.name) {
            // Inside the VPC everybody keeps its address.
            cells.push(cell(&from.name, &to.name, from.address, from.ask(to.address).await));
        }
        cells.push(cell(&from.name, "Internet", from.public, from.ask(INTERNET).await));
    }
    Ok(cells)
}

fn cell(from: &str, to: &str, expected: Ipv4Addr, seen: Result<Ipv4Addr, String>) -> Cell {
    let (seen, problem) = match seen {
        Ok(seen) => (Some(seen.to_string()), None),
        Err(problem) => (None, Some(problem)),
    };
    Cell { from: from.to_owned(), to: to.to_owned(), expected: expected.to_string(), seen, problem }
}
