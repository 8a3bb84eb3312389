//! The matrix: each side, way, ENI, node, protocol and family. What is allowed works, what is not is refused in the protocol's
//! words and reaches no server, the server sees who has asked, and packets take the ENI that they have to.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;
use sluice_policy_core::vector::schema::Family;
use sluice_tests::live::eni::Eni;
use sluice_tests::privileged::{everything, privileged};

use super::dns::{self, A, AAAA, Entry, Zone};
use super::ground::{
    Ground, READY, RESOLVER, SERVERS, SERVICE_PORT, SITE, at, external, must, node_port, policy, ports, suite,
};
use super::speak::{Common, LIMIT, Said, Speaks};

/// Whose gate sends it to the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    Egress,
    Ingress,
    Both,
}

/// How the server is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    PodIp,
    ClusterIp,
    NodePort,
    /// By a name that DNS has: out to the Internet; in from there; both, to a Service's external address.
    Internet,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Cell {
    side: Side,
    way: Way,
    eni: Eni,
    /// Whether the server is on the client's node.
    near: bool,
    speaks: Speaks,
    family: Family,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { side, way, eni, near, speaks, family } = self;
        let node = if *near { "same node" } else { "other node" };
        write!(f, "{side:?}, {way:?}, {eni:?} ENI, {node}, {speaks:?}, {family:?}")
    }
}

impl Cell {
    /// What of two cells is to be met together, by its number.
    fn values(self) -> [u8; 6] {
        [self.side as u8, self.way as u8, self.eni as u8, self.near.into(), self.speaks as u8, self.family as u8]
    }

    fn pairs(self) -> impl Iterator<Item = (usize, u8, usize, u8)> {
        let values = self.values();
        (0..6).flat_map(move |one| (one + 1..6).map(move |other| (one, values[one], other, values[other])))
    }

    fn client(self) -> &'static str {
        match (self.side, self.way, self.eni) {
            (Side::Ingress, Way::Internet, _) => "",
            (.., Eni::Primary) => "client-primary",
            (.., Eni::Second) => "client-second",
        }
    }

    fn server(self) -> &'static str {
        match (self.side, self.way, self.near, self.eni) {
            (Side::Egress, Way::Internet, ..) => "",
            (.., true, Eni::Primary) => "near-primary",
            (.., true, Eni::Second) => "near-second",
            (.., false, Eni::Primary) => "far-primary",
            (.., false, Eni::Second) => "far-second",
        }
    }

    /// The node of the server; the client's is the first.
    const fn node(self) -> &'static str {
        if self.near { "n1" } else { "n2" }
    }
}

/// All of them. The Internet is on no node.
fn all() -> Vec<Cell> {
    let mut cells = Vec::new();
    for side in [Side::Egress, Side::Ingress, Side::Both] {
        for way in [Way::PodIp, Way::ClusterIp, Way::NodePort, Way::Internet] {
            for eni in [Eni::Primary, Eni::Second] {
                for near in [false, true] {
                    if near && (side, way) == (Side::Egress, Way::Internet) {
                        continue;
                    }
                    for speaks in Speaks::ALL {
                        let families = [Family::V4, Family::V6];
                        cells.extend(families.map(|family| Cell { side, way, eni, near, speaks, family }));
                    }
                }
            }
        }
    }
    cells
}

/// As few of them as have every two values together that any of them has: always the one with most that is new.
fn slice(cells: &[Cell]) -> Vec<Cell> {
    let mut missing: BTreeSet<(usize, u8, usize, u8)> = cells.iter().flat_map(|cell| cell.pairs()).collect();
    let mut chosen = Vec::new();
    while !missing.is_empty() {
        let new = |cell: &&Cell| cell.pairs().filter(|pair| missing.contains(pair)).count();
        // The first of the best.
        let best = *cells.iter().rev().max_by_key(new).unwrap();
        missing = &missing - &best.pairs().collect();
        chosen.push(best);
    }
    chosen.sort_unstable();
    chosen
}

#[test]
fn a_slice_has_every_pair() {
    let cells = all();
    assert_eq!(cells.len(), 3 * 4 * 2 * 2 * 5 * 2 - 20);
    let part = slice(&cells);
    let pairs = |cells: &[Cell]| cells.iter().flat_map(|cell| cell.pairs()).collect::<BTreeSet<_>>();
    assert_eq!(pairs(&part), pairs(&cells));
    assert!(part.len() < 40, "{}", part.len());
}

fn steps() -> String {
    let egress = policy(
        "egress",
        "client",
        &format!(
            "egress: [{{toEntities: [cluster], {ports}}}, {{toFQDNs: [{{matchName: site.example}}], {ports}}}, {{toEntities: \
             [world], toPorts: [{{ports: [{{port: '53', protocol: ANY}}], rules: {{dns: [{{matchPattern: '*.example'}}]}}}}]}}]",
            ports = ports()
        ),
    );
    let ingress = policy("ingress", "server", &format!("ingress: [{{fromEntities: [all], {}}}]", ports()));
    format!(
        "  - apply: [{egress}]
  - apply: [{ingress}]
    delete: [{{kind: CiliumNetworkPolicy, namespace: x, name: egress}}]
  - apply: [{egress}]
"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_judged_in_every_cell() {
    if !privileged() {
        return;
    }
    let cells = all();
    let cells = if everything() { cells } else { slice(&cells) };
    let suite = suite(&steps());
    let mut ground = Ground::new(suite, &[("SLUICE_PROXY_RECORDS", "65536")]).await;
    let common = Common::new();
    for server in SERVERS.into_iter().chain([""]) {
        for family in [Family::V4, Family::V6] {
            let address = if server.is_empty() { site(family) } else { ground.address(server, family) };
            for speaks in Speaks::ALL {
                let (to, common) = (at(address, speaks.port()), common.clone());
                ground.places.of(server).run(move || speaks.serve(to, common)).await.unwrap().unwrap();
            }
        }
    }
    let zone = Zone::default();
    let entry = |addresses: [IpAddr; 2]| Entry { ttl: 30, addresses: addresses.into(), long: false };
    zone.put("site.example", entry([site(Family::V4), site(Family::V6)]));
    SERVERS.into_iter().for_each(|server| zone.put(&format!("{server}.example"), entry(external(server))));
    let served = zone.clone();
    ground.places.of("").run(move || async move { served.serve(resolver()).await }).await.unwrap().unwrap();

    let asker = Asker::new(&ground, common.clone());
    must(ground.stage.town.count().await);
    let mut wrong = Vec::new();
    let mut records = BTreeMap::new();
    {
        let mut act = ground.begin().await;
        for (step, side) in suite.vectors[0].steps.iter().zip([Side::Egress, Side::Ingress, Side::Both]) {
            must(act.advance(step).await);
            for cell in cells.iter().filter(|cell| cell.side == side) {
                let before = must(act.stage.town.counted().await);
                if let Err(why) = asker.ask(*cell, &act.world).await {
                    wrong.push(format!("{cell}: {why}"));
                    continue;
                }
                let after = must(act.stage.town.counted().await);
                for way in asker.crossed(*cell) {
                    if after.get(&way).unwrap_or(&0) <= before.get(&way).unwrap_or(&0) {
                        wrong.push(format!("{cell}: no packet {way:?}"));
                    }
                }
                for (node, direction, passes) in judged(*cell) {
                    *records.entry((node, direction, passes)).or_insert(0_usize) += 1;
                }
            }
        }
    }
    wrong.extend(asker.strayed(&must(ground.stage.town.counted().await)));
    assert_eq!(common.strays.load(Ordering::Relaxed), 0, "refused requests at servers\n{}", wrong.join("\n"));
    assert!(wrong.is_empty(), "{} of {} cells:\n{}", wrong.len(), cells.len(), wrong.join("\n"));
    // Each request is on record, once at every side that has judged it.
    let end = tokio::time::Instant::now() + READY;
    loop {
        let mut found = BTreeMap::new();
        for (node, proxy) in &ground.proxies {
            let page = must(proxy.page("/v1/records?most=10000").await);
            for record in page.as_array().unwrap() {
                let text = |key: &str| record.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
                if ["http", "tls"].contains(&&*text("kind")) {
                    let verdict = (node.to_string(), text("direction"), text("verdict") == "passed");
                    *found.entry(verdict).or_insert(0_usize) += 1;
                }
            }
        }
        if found == records {
            break;
        }
        assert!(tokio::time::Instant::now() < end, "recorded {found:?}, asked {records:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What a cell's two requests leave on record: node, direction, and whether the request passed.
fn judged(cell: Cell) -> Vec<(String, String, bool)> {
    let of = |node: &str, direction: &str, passes| (node.to_owned(), direction.to_owned(), passes);
    match cell.side {
        Side::Egress => vec![of("n1", "egress", true), of("n1", "egress", false)],
        Side::Ingress => vec![of(cell.node(), "ingress", true), of(cell.node(), "ingress", false)],
        Side::Both => {
            vec![of("n1", "egress", true), of("n1", "egress", false), of(cell.node(), "ingress", true)]
        }
    }
}

fn site(family: Family) -> IpAddr {
    SITE[family as usize].parse().unwrap()
}

fn resolver() -> SocketAddr {
    at(RESOLVER.parse().unwrap(), 53)
}

/// What asks, and knows what is to be seen.
struct Asker {
    places: super::ground::Places,
    common: Common,
    pods: BTreeMap<(&'static str, Family), IpAddr>,
    /// Addresses of nodes, by node, ENI and family.
    nodes: BTreeMap<(&'static str, Eni, Family), IpAddr>,
    /// The router's link of each node's ENI.
    links: BTreeMap<(&'static str, Eni), String>,
}

impl Asker {
    fn new(ground: &Ground, common: Common) -> Self {
        let families = [Family::V4, Family::V6];
        let names = SERVERS.into_iter().chain(["client-primary", "client-second"]);
        let pods = names.flat_map(|pod| families.map(|family| ((pod, family), ground.address(pod, family)))).collect();
        let (mut nodes, mut links) = (BTreeMap::new(), BTreeMap::new());
        for (number, node) in ["n1", "n2"].into_iter().enumerate() {
            for family in families {
                nodes.insert((node, Eni::Primary, family), ground.node_address(node, family));
                nodes.insert((node, Eni::Second, family), Eni::Second.own(number)[family as usize]);
            }
            for eni in [Eni::Primary, Eni::Second] {
                links.insert((node, eni), must(ground.stage.town.link(node, eni)));
            }
        }
        Self { places: ground.places.clone(), common, pods, nodes, links }
    }

    /// Asks for what rules let pass, and for what they do not.
    async fn ask(&self, cell: Cell, world: &sluice_policy_core::vector::world::World) -> Result<(), String> {
        let client = self.places.of(cell.client());
        let (speaks, family) = (cell.speaks, cell.family);
        let to = match cell.way {
            Way::PodIp => at(self.pods[&(cell.server(), family)], speaks.port()),
            Way::ClusterIp => {
                let services = &world.cluster().services;
                let service = services.values().find(|service| &*service.key.name == cell.server()).unwrap();
                let outer = external(cell.server());
                let mut own = service.addresses.iter().filter(|address| !outer.contains(address));
                let address = own.find(|address| Family::of(*address) == family).unwrap();
                at(address, speaks.after(SERVICE_PORT))
            }
            Way::NodePort => at(self.nodes[&("n1", Eni::Primary, family)], speaks.after(node_port(cell.server()))),
            Way::Internet if cell.side == Side::Ingress => at(self.pods[&(cell.server(), family)], speaks.port()),
            Way::Internet => {
                let name = if cell.side == Side::Egress { "site" } else { cell.server() };
                let name = format!("{name}.example");
                let kind = if family == Family::V4 { A } else { AAAA };
                let found = client.run(move || async move { dns::ask(resolver(), &name, kind, LIMIT).await });
                let found = found.await.unwrap().map_err(|error| format!("its name: {error}"))?;
                let address = *found.first().ok_or_else(|| format!("its name: {found:?}"))?;
                let port = if cell.side == Side::Egress { speaks.port() } else { speaks.after(SERVICE_PORT) };
                at(address, port)
            }
        };
        let common = self.common.clone();
        let said = client.run(move || speaks.ask(to, true, common)).await.unwrap()?;
        let Said::Served(seen) = said else { return Err(format!("{to}: refused")) };
        if !self.may_see(cell).contains(&seen) {
            return Err(format!("{to}: the server has seen {seen}, not {:?}", self.may_see(cell)));
        }
        let common = self.common.clone();
        let said = client.run(move || speaks.ask(to, false, common)).await.unwrap()?;
        if said == Said::Refused { Ok(()) } else { Err(format!("{to}: not refused but {said:?}")) }
    }

    /// Whom the server may see: the client, but where the service proxy masquerades (node ports, external addresses) or the
    /// node translates (out to the Internet, in IPv4).
    fn may_see(&self, cell: Cell) -> Vec<IpAddr> {
        let family = cell.family;
        match (cell.side, cell.way) {
            (Side::Ingress, Way::Internet) => vec![site(family)],
            (Side::Egress, Way::Internet) if family == Family::V4 => vec![self.nodes[&("n1", Eni::Primary, family)]],
            (_, Way::NodePort) | (Side::Both, Way::Internet) if cell.near => {
                [Eni::Primary, Eni::Second].map(|eni| self.nodes[&("n1", eni, family)]).into()
            }
            (_, Way::NodePort) | (Side::Both, Way::Internet) => vec![self.nodes[&("n1", cell.eni, family)]],
            _ => vec![self.pods[&(cell.client(), family)]],
        }
    }

    /// Which packets the VPC has to have seen: of both directions, if both are nodes.
    fn crossed(&self, cell: Cell) -> Vec<(String, IpAddr, IpAddr)> {
        let (family, eni) = (cell.family, cell.eni);
        let link = |node, eni| self.links[&(node, eni)].clone();
        let seen = self.may_see(cell);
        match (cell.side, cell.way) {
            (Side::Egress, Way::Internet) => {
                let by = if family == Family::V4 { Eni::Primary } else { eni };
                vec![(link("n1", by), seen[0], site(family))]
            }
            (Side::Ingress, Way::Internet) => {
                vec![(link(cell.node(), eni), self.pods[&(cell.server(), family)], site(family))]
            }
            _ if cell.near => Vec::new(),
            _ => {
                let server = self.pods[&(cell.server(), family)];
                vec![(link("n1", eni), seen[0], server), (link("n2", eni), server, seen[0])]
            }
        }
    }

    /// Packets that came by an ENI which does not have their source.
    fn strayed(&self, counted: &BTreeMap<(String, IpAddr, IpAddr), u64>) -> Vec<String> {
        let mut right: BTreeMap<IpAddr, String> = BTreeMap::new();
        for ((node, eni, _), address) in &self.nodes {
            right.insert(*address, self.links[&(*node, *eni)].clone());
        }
        for ((pod, _), address) in &self.pods {
            let eni = if pod.ends_with("second") { Eni::Second } else { Eni::Primary };
            let node = if pod.starts_with("far") { "n2" } else { "n1" };
            right.insert(*address, self.links[&(node, eni)].clone());
        }
        let wrong = counted.iter().filter(|((link, source, _), _)| right.get(source).is_some_and(|own| own != link));
        wrong.map(|(way, packets)| format!("by the wrong ENI: {way:?}, {packets} packets")).collect()
    }
}
