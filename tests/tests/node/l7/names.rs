//! Names on nodes, asked for by resolvers that nobody here wrote, of a DNS server behind a Service: which are refused, which
//! are reached and for how long, also without the agent.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use sluice_policy_core::vector::schema::Family;
use sluice_policy_core::vector::world::World;
use sluice_tests::directory::Directory;
use sluice_tests::live::stage::APPLIED;
use sluice_tests::privileged::may_run;
use tokio::time::timeout;

use super::dns::{A, AAAA, Entry, Zone};
use super::ground::{Ground, at, must, policy, suite};
use super::speak::{Common, Said, Speaks};

/// How long a connection may take that has to fail.
const DROP: Duration = Duration::from_millis(300);
/// A port of the Internet's hosts that no rule looks into.
const PLAIN: u16 = 9000;
/// The pod that asks.
const POD: &str = "client-primary";
/// The names, each of an address of its own in both families.
const NAMES: [&str; 8] = [
    "glibc.example",
    "musl.example",
    "python.example",
    "dig.example",
    "long.example",
    "away.example",
    "kcnp.shop.example",
    "other.shop.example",
];
/// What a name may be kept at most, in seconds, by its record; and at least, whatever its record says.
const TTL: u32 = 300;
const LEAST: u64 = 60;

/// The addresses of a name.
fn addresses(name: &str) -> [IpAddr; 2] {
    let number = NAMES.iter().position(|known| *known == name).unwrap() + 20;
    [format!("198.51.100.{number}"), format!("2001:db8:77::{number}")].map(|text| text.parse().unwrap())
}

/// A pod that may ask for `dns`, and may reach what has a name of `*.example`.
fn rules(dns: &str) -> String {
    policy(
        "names",
        "client",
        &format!(
            "egress: [{{toFQDNs: [{{matchPattern: '*.example'}}], toPorts: [{{ports: [{{port: '{PLAIN}', protocol: TCP}}]}}]}}, \
             {{toEntities: [cluster], toPorts: [{{ports: [{{port: '53', protocol: ANY}}], rules: {{dns: [{dns}]}}}}]}}]"
        ),
    )
}

/// ClusterNetworkPolicy says nothing of DNS' contents: only that it is allowed.
fn domain_names() -> String {
    format!(
        "{{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {{name: domains}}, spec: {{tier: \
         Admin, priority: 1, subject: {{pods: {{namespaceSelector: {{}}, podSelector: {{matchLabels: {{app: client}}}}}}}}, egress: \
         [{{name: site, action: Accept, to: [{{domainNames: [kcnp.shop.example]}}], protocols: [{{tcp: {{destinationPort: \
         {{number: {PLAIN}}}}}}}]}}, {{name: dns, action: Accept, to: [{{namespaces: {{}}}}], protocols: [{{udp: \
         {{destinationPort: {{number: 53}}}}}}, {{tcp: {{destinationPort: {{number: 53}}}}}}]}}, {{name: rest, action: Deny, to: \
         [{{networks: [0.0.0.0/0, '::/0']}}]}}]}}}}"
    )
}

/// What the resolvers need: their configuration, and one that is built with musl.
struct Folder(Directory);

impl Folder {
    fn new() -> Self {
        let directory = Directory::new("names").unwrap();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/node/l7/resolve.c");
        let built = Command::new("musl-gcc")
            .args(["-static", "-o"])
            .arg(directory.path().join("resolve"))
            .arg(source)
            .output()
            .unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        Self(directory)
    }

    /// A pod's, as the kubelet writes it.
    fn configure(&self, server: IpAddr) {
        let text = format!(
            "nameserver {server}\nsearch x.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5 timeout:3 attempts:2\n"
        );
        self.0.write("resolv.conf", &text).unwrap();
        self.0.write("nsswitch.conf", "hosts: dns\n").unwrap();
    }
}

/// Everything that the tests below look at.
struct Town {
    ground: Ground,
    zone: Zone,
    folder: Folder,
    common: Common,
}

impl Town {
    async fn new(steps: &str, env: &[(&str, &str)]) -> Self {
        let mut ground = Ground::new(suite(steps), env).await;
        let (zone, common) = (Zone::default(), Common::new());
        for name in NAMES {
            for address in addresses(name) {
                must(ground.stage.town.outside(address).await);
                let common = common.clone();
                let serve = move || Speaks::Http1.serve(at(address, PLAIN), common);
                ground.places.of("").run(serve).await.unwrap().unwrap();
            }
            let ttl = if name == "musl.example" { 1 } else { TTL };
            zone.put(name, Entry { ttl, addresses: addresses(name).into(), long: name == "long.example" });
        }
        let own = ground.address("far-primary", Family::V4);
        let served = zone.clone();
        ground
            .places
            .of("far-primary")
            .run(move || async move { served.serve(at(own, 53)).await })
            .await
            .unwrap()
            .unwrap();
        Self { ground, zone, folder: Folder::new(), common }
    }

    /// What a program prints that runs as the pod does.
    async fn run(&self, command: &str) -> String {
        let folder = self.folder.0.path().to_owned();
        let command = command.replace("DIR", &folder.display().to_string());
        let run = move || async move {
            let bind = |file: &str| format!("mount --bind {}/{file} /etc/{file}", folder.display());
            let script = format!("{} && {} && {command}", bind("resolv.conf"), bind("nsswitch.conf"));
            let output = Command::new("unshare").args(["-m", "sh", "-c", &script]).output().unwrap();
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
        };
        self.ground.places.of(POD).run(run).await.unwrap()
    }

    /// Whether the pod reaches an address.
    async fn reaches(&self, address: IpAddr) -> bool {
        let (to, common): (SocketAddr, _) = (at(address, PLAIN), self.common.clone());
        let asked = self.ground.places.of(POD).run(move || async move {
            timeout(DROP, Speaks::Http1.ask(to, true, common)).await.unwrap_or_else(|_| Err("silence".into()))
        });
        matches!(asked.await.unwrap(), Ok(Said::Served(_)))
    }

    /// A resolver finds a name, which could not be reached before and can be then.
    async fn finds(&self, name: &str, command: &str) {
        let [v4, v6] = addresses(name);
        assert!(!self.reaches(v4).await && !self.reaches(v6).await, "{name}: nobody has asked for it");
        let said = self.run(&command.replace("NAME", name)).await;
        assert!(said.contains(&v4.to_string()) && said.contains(&v6.to_string()), "{command}: {said}");
        assert!(self.reaches(v4).await && self.reaches(v6).await, "{name}: {said}");
    }

    /// When the agent forgets a name, in seconds from now; none if it does not know it.
    async fn kept(&self, name: &str) -> Option<u64> {
        let page = must(self.ground.stage.agents["n1"].page("/v1/names").await);
        let known = page.get("names").and_then(Value::as_array).cloned().unwrap_or_default();
        let until = known.iter().filter(|known| known.get("name").and_then(Value::as_str) == Some(name));
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        until.filter_map(|known| known.get("until")?.as_u64()).map(|until| until.saturating_sub(now)).max()
    }
}

/// The address by which pods know their DNS server, and the cluster's own that it stands for.
fn server(world: &World) -> IpAddr {
    let service = world.cluster().services.values().find(|service| &*service.key.name == "dns").unwrap();
    service.addresses.iter().find(|address| address.is_ipv4()).unwrap()
}

/// The programs that are asked.
fn needs() -> Result<(), String> {
    let missing = ["/usr/bin/musl-gcc", "/usr/bin/dig", "/usr/lib/python3/dist-packages/dns"]
        .into_iter()
        .find(|program| !Path::new(program).exists());
    missing.map_or(Ok(()), |program| Err(format!("it needs {program}")))
}

const GLIBC: &str = "getent ahosts NAME";
const MUSL: &str = "DIR/resolve NAME";
const PYTHON: &str = "/usr/bin/python3 -c 'import dns.resolver as d; r = d.Resolver(); print([a.to_text() for k in (\"A\", \"AAAA\") for a in \
                      r.resolve(\"NAME\", k, search=True)])'";
const DIG: &str = "dig +short +tries=1 +time=3 NAME A NAME AAAA";

#[tokio::test(flavor = "multi_thread")]
async fn names_are_found_by_every_resolver_and_reached_as_policy_means_them() {
    if !may_run(needs()) {
        return;
    }
    let steps = format!(
        "  - apply: [{}]\n  - apply: [{}]\n    delete: [{{kind: CiliumNetworkPolicy, namespace: x, name: names}}]\n",
        rules("{matchPattern: '*.example'}"),
        domain_names()
    );
    let mut town = Town::new(&steps, &[("SLUICE_PROXY_DNS_REFUSAL", "nxdomain")]).await;
    let steps = &town.ground.suite.vectors[0].steps;
    {
        let mut act = town.ground.begin().await;
        must(act.advance(&steps[0]).await);
        town.folder.configure(server(&act.world));
    }
    for (name, command) in
        [("glibc.example", GLIBC), ("musl.example", MUSL), ("python.example", PYTHON), ("dig.example", DIG)]
    {
        town.finds(name, command).await;
        assert!(town.zone.asked(name, A) > 0 && town.zone.asked(name, AAAA) > 0);
    }
    // The search list's names ended at the proxy.
    let asked = town.zone.all();
    assert!(asked.iter().all(|asked| asked.name.ends_with(".example")), "{asked:?}");
    // Too long for a datagram: asked again over TCP.
    town.finds("long.example", GLIBC).await;
    let asked = town.zone.all();
    assert!(
        [true, false].iter().all(|tcp| asked.iter().any(|asked| asked.name == "long.example" && asked.tcp == *tcp))
    );
    let said = town.run("dig +tries=1 +time=3 www.other.test").await;
    assert!(said.contains("status: NXDOMAIN"), "{said}");
    assert_eq!(town.zone.asked("www.other.test", A), 0);
    // By the record, and not less than the least.
    let (long, short) = (town.kept("glibc.example").await.unwrap(), town.kept("musl.example").await.unwrap());
    assert!((u64::from(TTL) / 2..=u64::from(TTL) + 1).contains(&long), "{long}");
    assert!((1..=LEAST + 1).contains(&short), "{short}");

    // Without the agent: what is known is reached, and so is what is like it; it is there when the agent is back.
    let agent = &town.ground.stage.agents["n1"];
    agent.kill().await;
    assert!(town.reaches(addresses("glibc.example")[0]).await);
    town.finds("away.example", GLIBC).await;
    must(agent.start().await);
    must(agent.ready(APPLIED).await);
    assert!(town.reaches(addresses("away.example")[0]).await && town.reaches(addresses("glibc.example")[1]).await);
    must(
        agent
            .until("the proxy's name was not taken over", APPLIED, |view| {
                view.get("name_addresses").and_then(Value::as_u64) >= Some(12)
            })
            .await,
    );
    assert!(town.kept("away.example").await.is_some());

    {
        let mut act = town.ground.begin().await;
        must(act.advance(&steps[0]).await);
        must(act.advance(&steps[1]).await);
        town.folder.configure(server(&act.world));
    }
    town.finds("kcnp.shop.example", GLIBC).await;
    let said = town.run(&GLIBC.replace("NAME", "other.shop.example")).await;
    let [v4, v6] = addresses("other.shop.example");
    assert!(said.contains(&v4.to_string()), "no rule restricts what is asked for: {said}");
    assert!(!town.reaches(v4).await && !town.reaches(v6).await);
}

/// What REFUSED does to resolvers with a search list: glibc goes on with its next name, musl ends there; so musl's pods need
/// rules for those names, whose answer is then the server's.
#[tokio::test(flavor = "multi_thread")]
async fn refused_names_of_a_search_list_end_some_resolvers() {
    if !may_run(needs()) {
        return;
    }
    let steps = format!(
        "  - apply: [{}]\n  - apply: [{}]\n",
        rules("{matchPattern: '*.example'}"),
        rules("{matchPattern: '*.example'}, {matchPattern: '**.cluster.local'}")
    );
    let mut town = Town::new(&steps, &[]).await;
    let steps = &town.ground.suite.vectors[0].steps;
    {
        let mut act = town.ground.begin().await;
        must(act.advance(&steps[0]).await);
        town.folder.configure(server(&act.world));
    }
    let said = town.run("dig +tries=1 +time=3 www.other.test").await;
    assert!(said.contains("status: REFUSED"), "{said}");
    assert_eq!(town.zone.asked("www.other.test", A), 0);
    let [glibc, musl] = [("glibc.example", GLIBC), ("musl.example", MUSL)];
    town.finds(glibc.0, glibc.1).await;
    let said = town.run(&musl.1.replace("NAME", musl.0)).await;
    assert!(!said.contains(&addresses(musl.0)[0].to_string()), "{said}");
    {
        let mut act = town.ground.begin().await;
        must(act.advance(&steps[0]).await);
        must(act.advance(&steps[1]).await);
    }
    town.finds(musl.0, musl.1).await;
    assert!(town.zone.asked("musl.example.x.svc.cluster.local", A) > 0);
}
