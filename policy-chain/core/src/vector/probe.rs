//! One probe: the gates on its way, what each says, and what becomes of it.

use std::net::IpAddr;
use std::sync::Arc;

use super::application;
use super::schema::{Endpoint, Expected, Family, Mode, Request, Row, Via};
use super::world::{Behind, Fault, Party, World};
use crate::cluster::{ObjectKey, PodKey, Service, ServicePort};
use crate::flow::{Direction, Judgement, Origin, Outcome, Protocol, Query, Reason, Verdict};
use crate::model::Text;

/// What a probe is made of.
#[derive(Debug, Clone, Copy)]
pub struct Probe<'a> {
    /// The row that it is of.
    pub row: &'a Row,
    /// Source.
    pub from: &'a Endpoint,
    /// Destination.
    pub to: &'a Endpoint,
    /// How it reaches a pod, where the row does not say.
    pub mode: Mode,
}

/// A question on the way, and the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leg {
    /// Node of the gate.
    pub node: Option<Text>,
    /// The address that is dialled: the destination's, or that of the Service before it.
    pub dialled: IpAddr,
    /// What is asked.
    pub query: Query,
    /// Whether the peer is the address of a Service: what becomes of the probe is then said by its backend, which is next.
    pub frontend: bool,
    /// What is answered.
    pub judgement: Judgement,
}

/// What becomes of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fate {
    /// In a word.
    pub verdict: Expected,
    /// What decided, by direction: of a probe that does not pass, where it ends; of one that does, all.
    pub because: Vec<(Direction, Reason)>,
    /// Whether the proxy has a part in it.
    pub proxied: bool,
}

/// A way to the destination: the Service's address, if it is dialled, and who is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// The Service, if one is dialled, and the backend behind it.
    pub behind: Option<Behind>,
    /// The address that is dialled.
    pub address: IpAddr,
    /// The port that is dialled.
    pub port: u16,
    /// Who is reached.
    pub party: Party,
}

impl Probe<'_> {
    fn family(&self) -> Family {
        self.row.family
    }

    fn transport(&self) -> bool {
        matches!(self.row.protocol, Protocol::TCP | Protocol::UDP | Protocol::SCTP)
    }

    /// The Service that has to be made up for this probe, if no Service of the cluster leads to its destination: for which
    /// pod, protocol, port, and port of the pod.
    #[must_use]
    pub fn makes_up(&self, world: &World) -> Option<(PodKey, (Protocol, u16, u16))> {
        let Endpoint::Pod(key) = self.to else { return None };
        let pod = world.cluster().pods.get(key)?;
        let target = self.row.target_port.unwrap_or(self.row.port);
        match self.row.via {
            None if self.mode == Mode::ServiceIp && self.transport() => {}
            Some(Via::Service) if self.transport() => {
                let address = pod.addresses.iter().find(|address| Family::of(*address) == self.family())?;
                if self.declared(world, address).is_some() {
                    return None;
                }
            }
            _ => return None,
        }
        Some((key.clone(), (self.row.protocol, self.row.port, target)))
    }

    fn declared(&self, world: &World, address: IpAddr) -> Option<Behind> {
        world.in_front_of(address, self.row.protocol, self.row.port, self.row.target_port)
    }

    /// The ways to the destination: one, or one for each backend where the destination is a Service; none where nobody is
    /// behind it.
    ///
    /// # Errors
    /// The destination is not there, or has no address of the family.
    pub fn ways(&self, world: &World, from: &Party) -> Result<Vec<Way>, Fault> {
        let row = self.row;
        let direct = |party: Party| Way { behind: None, address: party.address, port: row.port, party };
        let through = |behind: Behind, frontend: IpAddr| Way {
            address: frontend,
            port: row.port,
            party: world.holder(behind.backend),
            behind: Some(behind),
        };
        if let Endpoint::Pod(key) = self.to
            && !world.cluster().pods.contains_key(key)
        {
            let name = ObjectKey { namespace: Arc::clone(&key.namespace), name: Arc::clone(&key.name) };
            if let Some(service) = world.cluster().services.get(&name) {
                if service.addresses.is_empty() {
                    // Its name stands for its backends' addresses.
                    let backends = world.backends(service, row.family);
                    return Ok(backends.into_iter().map(|address| direct(world.holder(address))).collect());
                }
                let behind = self.behind(world, service, from)?;
                let wanted = behind.into_iter().filter(|one| row.target_port.is_none_or(|target| target == one.port));
                return Ok(wanted.map(|one| (one.frontend, one)).map(|(at, one)| through(one, at)).collect());
            }
        }
        if let Endpoint::Address(address) = self.to {
            let dialled = world.cluster().services.values().find(|service| {
                let port = |one: &ServicePort| one.protocol == row.protocol && one.port == row.port;
                service.addresses.contains(address) && service.ports.iter().any(port)
            });
            if let Some(service) = dialled {
                let behind = world.behind(service, row.protocol, |port| port.port == row.port, row.family);
                return Ok(behind.into_iter().map(|one| through(one, *address)).collect());
            }
        }
        let to = world.party(self.to, row.family, &format!("{}.to", row.path))?;
        let missing = |what: &str| {
            let protocol = row.protocol;
            Fault::new(&row.path, format!("no {what} leads from port {}/{protocol} to {}", row.port, self.to))
        };
        match row.via {
            Some(Via::NodePort) => {
                let behind = world.in_front_by_node_port(to.address, row.protocol, row.port);
                let behind = behind.ok_or_else(|| missing("node port"))?;
                let frontend = self.dialled_node(world, from)?.unwrap_or(to.address);
                Ok(vec![through(behind, frontend)])
            }
            Some(Via::Service) if self.transport() => {
                if let Some(behind) = self.declared(world, to.address) {
                    let frontend = behind.frontend;
                    return Ok(vec![through(behind, frontend)]);
                }
                self.made_up(world, to).map(|way| vec![way]).ok_or_else(|| missing("Service"))
            }
            None if self.mode == Mode::ServiceIp && self.transport() && matches!(self.to, Endpoint::Pod(_)) => {
                self.made_up(world, to).map(|way| vec![way]).ok_or_else(|| missing("Service"))
            }
            Some(Via::Service | Via::Pod) | None => Ok(vec![direct(to)]),
        }
    }

    /// All ready backends of a Service, by the port that the row dials.
    fn behind(&self, world: &World, service: &Service, from: &Party) -> Result<Vec<Behind>, Fault> {
        let row = self.row;
        let by_node = row.via == Some(Via::NodePort);
        let port = |port: &ServicePort| if by_node { port.node_port == Some(row.port) } else { port.port == row.port };
        let fault =
            |what: String| Err(Fault::new(format!("{}.to", row.path), format!("Service {} has no {what}", self.to)));
        if !service.ports.iter().any(|one| one.protocol == row.protocol && port(one)) {
            let kind = if by_node { "node port" } else { "port" };
            return fault(format!("{kind} {}/{}", row.port, row.protocol));
        }
        if !service.addresses.iter().any(|address| Family::of(address) == row.family) {
            return fault(format!("{} address", row.family.as_str()));
        }
        let mut behind = world.behind(service, row.protocol, port, row.family);
        if by_node && let Some(node) = self.dialled_node(world, from)? {
            behind.iter_mut().for_each(|one| one.frontend = node);
        }
        Ok(behind)
    }

    /// The address at which a node port is dialled: that of the source's own node, if it has one.
    fn dialled_node(&self, world: &World, from: &Party) -> Result<Option<IpAddr>, Fault> {
        let node = from.node.clone().or_else(|| from.pod.as_ref().and_then(|pod| pod.node.clone()));
        let path = format!("{}.from", self.row.path);
        node.map(|node| Ok(world.party(&Endpoint::Node(node), self.row.family, &path)?.address)).transpose()
    }

    fn made_up(&self, world: &World, to: Party) -> Option<Way> {
        let Endpoint::Pod(key) = self.to else { return None };
        let service = world.made_up_for(key)?;
        let behind = world.behind(service, self.row.protocol, |port| port.port == self.row.port, self.row.family);
        let behind = behind.into_iter().find(|behind| behind.backend == to.address)?;
        Some(Way { address: behind.frontend, port: self.row.port, party: to, behind: Some(behind) })
    }

    /// The questions on each way to the destination, in order, each answered by `judge`.
    ///
    /// # Errors
    /// An endpoint is not there, or has no address of the family.
    pub fn legs(
        &self,
        world: &World,
        judge: &mut dyn FnMut(Option<&Text>, &Query) -> Judgement,
    ) -> Result<Vec<Vec<Leg>>, Fault> {
        let from = world.party(self.from, self.row.family, &format!("{}.from", self.row.path))?;
        let ways = self.ways(world, &from)?;
        Ok(ways.iter().map(|way| self.legs_of(way, &from, judge)).collect())
    }

    fn legs_of(&self, way: &Way, from: &Party, judge: &mut dyn FnMut(Option<&Text>, &Query) -> Judgement) -> Vec<Leg> {
        let mut legs = Vec::new();
        let mut ask = |node: Option<&Text>, query: Query, frontend: bool| {
            let judgement = judge(node, &query);
            legs.push(Leg { node: node.cloned(), dialled: way.address, query, frontend, judgement });
        };
        let (backend, target) = match &way.behind {
            Some(behind) => (behind.backend, behind.port),
            None => (way.address, way.port),
        };
        let itself =
            from.pod.is_some() && from.pod.as_ref().map(|pod| &pod.key) == way.party.pod.as_ref().map(|pod| &pod.key);
        let hairpin = itself && way.behind.is_some();
        let plain = if hairpin { Origin::Hairpin } else { Origin::Forwarded };
        let query = |subject: &PodKey, direction, peer, port, origin| Query {
            subject: subject.clone(),
            direction,
            peer,
            protocol: self.row.protocol,
            port,
            origin,
        };
        if let Some(pod) = &from.pod {
            let node = pod.node.as_ref();
            if way.behind.is_some() {
                ask(node, query(&pod.key, Direction::Egress, way.address, way.port, Origin::Forwarded), true);
            }
            ask(node, query(&pod.key, Direction::Egress, backend, target, plain), false);
        }
        if let Some(pod) = &way.party.pod {
            let node = pod.node.as_ref();
            let own = from.node.is_some() && from.node.as_ref() == node;
            let origin = self.row.origin.unwrap_or(if own { Origin::OwnNode } else { plain });
            ask(node, query(&pod.key, Direction::Ingress, from.address, target, origin), false);
        }
        legs
    }
}

/// What becomes of a probe, by what is answered at each gate. `of` says which answer counts: what is enforced, or what is
/// recorded. A drop at any gate is a drop, whatever the proxy would say to the request.
#[must_use]
pub fn fate(legs: &[Leg], request: Option<&Request>, of: fn(&Judgement) -> &Judgement) -> Fate {
    let mut because = Vec::new();
    let mut refused = Vec::new();
    let mut denied = Vec::new();
    let mut proxied = false;
    let mut dialled_by_proxy = false;
    for leg in legs {
        let judgement = of(&leg.judgement);
        let why = (leg.query.direction, judgement.reason.clone());
        match &judgement.verdict {
            // A request that the proxy has, and whose backend may not be reached, is refused by the proxy.
            Verdict::Deny if dialled_by_proxy && leg.query.direction == Direction::Egress && request.is_some() => {
                refused.push(why);
            }
            Verdict::Deny => denied.push(why),
            Verdict::Allow => because.push(why),
            Verdict::Defer => {}
            Verdict::Redirect(_) if leg.frontend => {
                proxied = true;
                dialled_by_proxy = true;
            }
            Verdict::Redirect(to) => {
                proxied = true;
                match request.map(|request| application::outcome(leg, to, request)) {
                    None => because.push(why),
                    Some(Outcome::Allow(reason)) => because.push((leg.query.direction, reason)),
                    Some(Outcome::Deny(reason)) => refused.push((leg.query.direction, reason)),
                }
            }
        }
    }
    let (verdict, because) = if !denied.is_empty() {
        (Expected::Deny, denied)
    } else if !refused.is_empty() {
        (Expected::Refuse, refused)
    } else {
        (Expected::Allow, because)
    };
    Fate { verdict, because, proxied }
}

/// What is enforced.
#[must_use]
pub const fn enforced(judgement: &Judgement) -> &Judgement {
    judgement
}

/// What would be enforced if dry runs were in force.
#[must_use]
pub fn recorded(judgement: &Judgement) -> &Judgement {
    judgement.audit.as_deref().unwrap_or(judgement)
}

/// Whether a reason is what a row's `rule` names: a rule, any rule of a policy (its isolation too), or a word.
#[must_use]
pub fn is_named(reason: &Reason, name: &str) -> bool {
    match reason {
        Reason::Rule(rule) => rule.to_string() == name || rule.policy.to_string() == name,
        Reason::Isolated(policy) => policy.to_string() == name,
        Reason::NoPolicy => name == "no policy",
        Reason::OwnNode => name == "own node",
        Reason::OwnAddress => name == "own address",
        Reason::Service => name == "service",
        Reason::TooLarge => name == "too large",
        Reason::Unknown => name == "unknown",
    }
}
