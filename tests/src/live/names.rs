//! Names that resolve: a name server outside of the cluster, and on every node a pod that asks it. What passes the node's proxy is
//! known to the node, as when an application asks.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};
use sluice_policy_core::cluster::{Labels, PodKey};
use sluice_policy_core::model::Text;
use sluice_policy_core::vector::schema::{self, Endpoint, External, Family, Fixture, PodSpec, Step, Suite, Vector};
use sluice_policy_core::vector::world::World;
use sluice_vpcsim::probe::dns::{DNS_PORT, Kind, Zone};

use super::objects::MARKER_NAMESPACE;
use super::stage::{APPLIED, LiveError, Stage};
use crate::prober::{Answer, Ask, Dial, Transport};

/// The name server among the externals.
const SERVER: &str = "name-server";
/// Its address (RFC 5737, TEST-NET-1).
const SERVER_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 253);
/// The label of pods that ask.
const RESOLVER: &str = "resolver";

/// The addresses of a name, and when they end, in the vector's seconds; none: never.
type Addresses = BTreeMap<IpAddr, Option<u64>>;

/// The names of a vector, in its own time.
#[derive(Debug)]
pub(super) struct Names {
    /// Whether the vector needs them to be learned.
    needed: bool,
    now: u64,
    known: BTreeMap<String, Addresses>,
}

impl Names {
    pub(super) fn new(fixture: &Fixture, vector: &Vector) -> Self {
        let mut known: BTreeMap<String, Addresses> = BTreeMap::new();
        for external in fixture.externals.values() {
            for name in &external.names {
                let addresses = external.addresses.iter().map(|address| (address, None));
                known.entry(name.as_str().to_owned()).or_default().extend(addresses);
            }
        }
        Self { needed: vector.steps.iter().any(needs_names), now: 0, known }
    }

    /// Whether a name had this address whose time has ended.
    pub(super) fn was(&self, address: IpAddr) -> bool {
        let ended = |until: &Option<u64>| until.is_some_and(|until| until <= self.now);
        self.known.values().any(|addresses| addresses.get(&address).is_some_and(ended))
    }

    /// Does what a step says of time and names; returns the names that are to be asked for.
    fn step(&mut self, step: &Step) -> Zone {
        self.now = self.now.saturating_add(step.advance_seconds);
        let for_good = |addresses: &Addresses| {
            let stay = addresses.iter().filter(|(_, until)| until.is_none());
            stay.map(|(address, _)| *address).collect::<Vec<IpAddr>>()
        };
        let mut asked: Zone = self.known.iter().map(|(name, addresses)| (name.clone(), for_good(addresses))).collect();
        asked.retain(|_, addresses| !addresses.is_empty());
        for (name, resolution) in &step.resolve {
            let until = resolution.ttl.map(|ttl| self.now.saturating_add(ttl));
            asked.insert(name.as_str().to_owned(), resolution.addresses.clone());
            let known = self.known.entry(name.as_str().to_owned()).or_default();
            known.extend(resolution.addresses.iter().map(|address| (*address, until)));
        }
        asked
    }
}

/// Whether a step needs names to be learned.
fn needs_names(step: &Step) -> bool {
    !step.resolve.is_empty() || step.apply.iter().any(|object| mentions(object, &["toFQDNs", "domainNames"]))
}

/// Whether a step needs sluice-proxy.
pub(super) fn needs_proxy(step: &Step) -> bool {
    needs_names(step) || step.apply.iter().any(|object| mentions(object, &["rules", "serverNames"]))
}

/// Whether an object has a field of these names, anywhere.
fn mentions(value: &Value, names: &[&str]) -> bool {
    match value {
        Value::Object(map) => map.iter().any(|(key, value)| names.contains(&key.as_str()) || mentions(value, names)),
        Value::Array(list) => list.iter().any(|value| mentions(value, names)),
        _ => false,
    }
}

/// Gives every node a pod that asks for names, in the clusters of vectors that need them.
pub(super) fn with_resolvers(suite: &mut Suite) {
    for vector in suite.vectors.iter_mut().filter(|vector| vector.steps.iter().any(needs_names)) {
        let Some(fixture) = suite.fixtures.get_mut(&vector.fixture) else { continue };
        fixture.namespaces.entry(MARKER_NAMESPACE.into()).or_default();
        let server = schema::Addresses { v4: Some(SERVER_ADDRESS.into()), v6: None };
        fixture.externals.entry(SERVER.into()).or_insert(External { addresses: server, names: Vec::new() });
        for (node, number) in fixture.nodes.keys().zip(100..) {
            fixture.pods.entry(resolver(node)).or_insert_with(|| PodSpec {
                labels: Labels::new([(Text::from("app"), Text::from(RESOLVER))]),
                addresses: schema::Addresses { v4: Some(Ipv4Addr::new(192, 0, 2, number).into()), v6: None },
                node: Some(Text::clone(node)),
                host_network: false,
                ports: Vec::new(),
                service_account: None,
                ready: true,
                finished: false,
                audit: false,
                visible: Box::default(),
            });
        }
        if let Some(step) = vector.steps.first_mut() {
            step.apply.push(policy());
        }
    }
}

fn resolver(node: &str) -> PodKey {
    PodKey { namespace: MARKER_NAMESPACE.into(), name: format!("{RESOLVER}-{node}").into() }
}

/// Has the pods that ask speak DNS by way of the proxy, and nothing else.
fn policy() -> Value {
    json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "metadata": {"name": RESOLVER, "namespace": MARKER_NAMESPACE},
        "spec": {"endpointSelector": {"matchLabels": {"app": RESOLVER}}, "egress": [{
            "toCIDR": [format!("{SERVER_ADDRESS}/32")],
            "toPorts": [{"ports": [{"port": DNS_PORT.to_string(), "protocol": "ANY"}],
                "rules": {"dns": [{"matchPattern": "*"}]}}]
        }]}
    })
}

/// Has all names of a step resolve, on every node.
///
/// # Errors
/// [`LiveError::Name`]: a question was not answered.
pub(super) async fn learn(
    names: &mut Names,
    step: &Step,
    stage: &mut Stage<'_>,
    world: &World,
    family: Family,
) -> Result<(), LiveError> {
    let asked = names.step(step);
    stage.town.prober.know(asked.clone());
    let server = Endpoint::External(SERVER.into());
    if !names.needed || stage.proxies.is_empty() {
        return Ok(());
    }
    let server = world.party(&server, family, SERVER)?;
    let at = stage.station(&server).await?;
    stage.town.prober.serve([(at, Transport::Udp, DNS_PORT)]).await?;
    let (mut askers, mut dials) = (Vec::new(), Vec::new());
    let fixture = stage.fixture;
    for node in fixture.nodes.keys() {
        let asker = resolver(node);
        let from = stage.station(&world.party(&Endpoint::Pod(asker.clone()), family, SERVER)?).await?;
        for (name, addresses) in &asked {
            for kind in [Kind::A, Kind::Aaaa] {
                if addresses.iter().any(|address| address.is_ipv4() == (kind == Kind::A)) {
                    askers.push((asker.clone(), name.clone()));
                    dials.push(Dial {
                        from: from.clone(),
                        to: server.address,
                        port: DNS_PORT,
                        transport: Transport::Udp,
                        ask: Ask::Dns { name: name.clone(), kind },
                        patience: APPLIED,
                    });
                }
            }
        }
    }
    let answers = stage.town.prober.dial(&dials).await?;
    let wrong = askers.into_iter().zip(&answers).find(|(_, answer)| !matches!(answer, Answer::Answered));
    match wrong {
        Some(((asker, name), answer)) => Err(LiveError::Name { asker, name, answer: answer.to_string() }),
        None => Ok(()),
    }
}
