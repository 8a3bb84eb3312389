//! DNS through the engine, with peers that others wrote: dnsmasq answers; dig and the C library's resolver ask.

use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sluice_hostnet::netns::NamespaceThread;
use sluice_policy_core::cluster::PodKey;
use sluice_policy_core::l7::dns::NamePattern;
use sluice_policy_core::model::cilium::Application;
use sluice_proxy::dns::{Dns, Limits, Refusal};
use sluice_proxy::flow::{Direction, Flow, Protocol};
use sluice_proxy::names::alone::Pinned;
use sluice_proxy::names::{Alone, Class, Link, Names, Wanted};
use sluice_proxy::net::{Acceptor, Datagrams, Listeners, Places, Upstreams};
use sluice_proxy::policy::{Looks, Outcome, Policy, Refused, RuleList, Rules};
use sluice_proxy::record::{Kind, Record, Recorder};

use super::world::*;

/// What the proxy notes of names while there is no policyd.
const ALONE: &str = "/mnt/names.alone";

/// Outside of the VPC.
const SITE: &str = "198.51.100.7";

/// The same rules for every flow: what the policy of the test says.
#[derive(Debug)]
struct Fixed(Arc<Rules>);

impl Policy for Fixed {
    fn rules(&self, _: &Flow, _: Protocol, _: std::net::SocketAddr) -> Result<Arc<Rules>, Refused> {
        Ok(Arc::clone(&self.0))
    }

    fn version(&self) -> u64 {
        1
    }

    async fn changed(&self, _: u64) {
        std::future::pending().await
    }
}

#[derive(Debug, Default)]
struct Records(Mutex<Vec<Record>>);

impl Recorder for Records {
    fn record(&self, record: Record) {
        self.0.lock().unwrap().push(record);
    }
}

/// The proxy's DNS half.
struct Resolver {
    _places: Places,
    _thread: NamespaceThread,
    link: Link,
    records: Arc<Records>,
}

impl Resolver {
    /// Lets names of the patterns through, and everything else if `passes`.
    async fn start(patterns: &[&str], passes: bool, refusal: Refusal) -> Self {
        let application =
            Application::Dns(patterns.iter().map(|pattern| NamePattern::cilium(pattern).unwrap()).collect());
        let rules = Rules {
            pod: PodKey { namespace: "x".into(), name: "a".into() },
            lists: vec![Arc::new(RuleList::new("rule".into(), application))].into(),
            otherwise: Outcome { passes, reason: "otherwise".into() },
            audit: None,
            looks: Looks::Dns,
        };
        let records = Arc::new(Records::default());
        let alone = Alone::new(Box::new(Pinned::new(ROOT.into())), ALONE.into());
        let (names, link) = Names::new(Some(alone));
        let limits = Limits { refusal, hold: DEADLINE, ..Limits::default() };
        let dns = Arc::new(Dns::new(Arc::new(Fixed(Arc::new(rules))), Arc::clone(&records), names, limits));
        let host = sluice_hostnet::netns::Namespace::current().unwrap();
        let mut places = Places::ensure(&places()).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
        let listeners = Listeners::open(places.of(Direction::Egress), 1).unwrap().remove(0);
        let upstreams = Upstreams::of_workers(Direction::Egress, &host, 1).unwrap().remove(0);
        let thread = places.of(Direction::Egress).thread("dns").unwrap();
        places.take_over(&listeners).unwrap_or_else(|error| panic!("{}", chain(&error)));
        let work = move || async move {
            let Listeners { direction, tcp, udp, udp_v6 } = listeners;
            let acceptor = Acceptor::new(direction, tcp).unwrap();
            let of_streams = Arc::clone(&dns);
            tokio::task::spawn_local(async move {
                loop {
                    let (client, flow) = acceptor.accept().await.unwrap();
                    let (dns, upstreams) = (Arc::clone(&of_streams), Arc::clone(&upstreams));
                    tokio::task::spawn_local(async move { dns.serve_stream(&*upstreams, client, flow).await });
                }
            });
            tokio::task::spawn_local(async move {
                let sockets = std::iter::once(udp).chain(udp_v6).collect();
                dns.serve_datagrams(sockets, Datagrams).await.unwrap();
            });
        };
        thread.run(work).await.unwrap();
        Self { _places: places, _thread: thread, link, records }
    }

    fn want(&self, patterns: &[&str]) {
        let patterns = patterns.iter().map(|pattern| NamePattern::cilium(pattern).unwrap()).collect();
        let wanted = Wanted { patterns, least: Duration::from_secs(60), classes: Vec::new() };
        self.link.wanted.send(Arc::new(wanted)).unwrap();
    }

    /// Runs a shell command as a pod, while what it resolves is made known to the kernel as policyd does.
    async fn as_pod(&mut self, world: &mut World, command: &str) -> String {
        let pod = world.party("a").clone();
        let command = command.to_owned();
        let running = pod.run(move || async move {
            let output = Command::new("sh").args(["-c", &command]).output().unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        });
        tokio::pin!(running);
        loop {
            tokio::select! {
                output = &mut running => return output,
                Some(ask) = self.link.asks.recv() => {
                    world.resolved(ask.resolution.name.as_str(), &ask.resolution.addresses);
                    let _answered = ask.done.send(true);
                }
            }
        }
    }

    fn names(&self) -> Vec<(String, bool, Option<u16>)> {
        let records = self.records.0.lock().unwrap();
        let of = |record: &Record| match &record.kind {
            Kind::Dns { name, rcode, .. } => (name.to_string(), record.passes, *rcode),
            other => panic!("{other:?}"),
        };
        records.iter().map(of).collect()
    }
}

/// dnsmasq in the VPC.
struct Server(Child);

impl Server {
    async fn start(world: &World) -> Self {
        let big = "x".repeat(200);
        let arguments = [
            "--keep-in-foreground".to_owned(),
            "--conf-file=/dev/null".to_owned(),
            "--user=root".to_owned(),
            "--pid-file=".to_owned(),
            "--log-facility=/dev/null".to_owned(),
            "--no-resolv".to_owned(),
            "--no-hosts".to_owned(),
            "--bind-interfaces".to_owned(),
            "--listen-address=10.0.2.9,2001:db8:0:2::9".to_owned(),
            "--local=/example.com/example.org/cluster.local/example.net/".to_owned(),
            format!("--host-record=www.example.com,{SITE},2001:db8:0:2::9,30"),
            format!("--host-record=target.example.net,{SITE},30"),
            "--host-record=second.example.com,198.51.100.8".to_owned(),
            "--cname=alias.example.com,target.example.net,20".to_owned(),
            "--host-record=www.example.org,198.51.100.9".to_owned(),
            format!("--txt-record=big.example.com,{big},{big},{big},{big}"),
        ];
        let spawn = || Command::new("dnsmasq").args(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut server = Self(world.vpc.namespace.run(spawn).unwrap().expect("dnsmasq is not installed"));
        let end = tokio::time::Instant::now() + DEADLINE;
        loop {
            let up = world.vpc.run(|| async { tokio::net::TcpStream::connect("10.0.2.9:53").await.is_ok() }).await;
            if up {
                return server;
            }
            assert_eq!(server.0.try_wait().unwrap(), None, "dnsmasq has ended");
            assert!(tokio::time::Instant::now() < end, "dnsmasq does not come up");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _killed = self.0.kill();
        let _ended = self.0.wait();
    }
}

/// Names of `*.example.com` may be reached at port 80. `rules` are those of port 53.
fn names_policy(rules: &str) -> String {
    format!(
        "{{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {{name: names, namespace: x}}, spec: \
         {{endpointSelector: {{matchLabels: {{app: a}}}}, egress: [{{toEntities: [all], toPorts: [{{ports: [{{port: '53', \
         protocol: ANY}}]{rules}}}]}}, {{toFQDNs: [{{matchPattern: '*.example.com'}}], toPorts: [{{ports: [{{port: '80', \
         protocol: TCP}}]}}]}}]}}}}\n"
    )
}

const DNS_RULES: &str = ", rules: {dns: [{matchPattern: '*.example.com'}]}";

#[test]
fn names_are_resolved_through_the_proxy_and_reached_by_what_they_resolve_to() {
    on_a_node(|| async {
        let mut world = World::new().await;
        let _server = Server::start(&world).await;
        world.vpc.serve("198.51.100.7:80").await;
        world.tell(&names_policy(DNS_RULES));
        let mut resolver = Resolver::start(&["*.example.com"], false, Refusal::Refused).await;
        resolver.want(&["*.example.com"]);
        let a = world.party("a").clone();
        assert!(a.ask_within("198.51.100.7:80", SILENCE).await.is_err(), "nobody has asked for its name");
        let answer = resolver.as_pod(&mut world, "dig +tries=1 +time=3 @10.0.2.9 wWw.example.com").await;
        assert!(answer.contains("status: NOERROR") && answer.contains(SITE), "{answer}");
        assert!(answer.contains("wWw.example.com."), "as it was asked: {answer}");
        let (seen, own) = a.ask_within("198.51.100.7:80", DEADLINE).await.unwrap();
        assert_eq!(own.ip(), "10.0.0.101".parse::<IpAddr>().unwrap());
        assert_eq!(seen.ip(), "10.0.0.10".parse::<IpAddr>().unwrap(), "beyond the VPC it is the node's");
        let refused = resolver.as_pod(&mut world, "dig +tries=1 +time=3 @10.0.2.9 www.example.org").await;
        assert!(refused.contains("status: REFUSED") && refused.contains("EDNS: version: 0"), "{refused}");
        // By IPv6, and over TCP.
        for how in ["@2001:db8:0:2::9", "+tcp @10.0.2.9", "+tcp @2001:db8:0:2::9"] {
            let answer = resolver.as_pod(&mut world, &format!("dig +tries=1 +time=3 {how} www.example.com AAAA")).await;
            assert!(answer.contains("2001:db8:0:2::9"), "{how}: {answer}");
            let refused = resolver.as_pod(&mut world, &format!("dig +tries=1 +time=3 {how} evil.test")).await;
            assert!(refused.contains("status: REFUSED"), "{how}: {refused}");
        }
        // Too long for a datagram of 512 octets: dig asks again over TCP.
        let big = resolver.as_pod(&mut world, "dig +tries=1 +time=3 +noedns @10.0.2.9 big.example.com TXT").await;
        assert!(big.contains("Truncated, retrying in TCP mode") && big.contains("status: NOERROR"), "{big}");
        let large =
            resolver.as_pod(&mut world, "dig +tries=1 +time=3 +bufsize=4096 @10.0.2.9 big.example.com TXT").await;
        assert!(large.contains("status: NOERROR") && !large.contains("Truncated"), "{large}");
        let alias = resolver.as_pod(&mut world, "dig +short +tries=1 +time=3 @10.0.2.9 alias.example.com").await;
        assert_eq!(alias, format!("target.example.net.\n{SITE}\n"));
        assert!(resolver.names().contains(&("www.example.org".to_owned(), false, Some(5))));
        assert!(resolver.names().contains(&("alias.example.com".to_owned(), true, Some(0))));
        remove_places().await;
    });
}

/// Without a dns rule what may go to port 53 goes through the proxy all the same, for looking on: nothing is refused.
#[test]
fn a_rule_by_name_alone_has_the_pods_dns_looked_at() {
    on_a_node(|| async {
        let mut world = World::new().await;
        let _server = Server::start(&world).await;
        world.vpc.serve("198.51.100.7:80").await;
        world.tell(&names_policy(""));
        let mut resolver = Resolver::start(&[], true, Refusal::Refused).await;
        resolver.want(&["*.example.com"]);
        let a = world.party("a").clone();
        assert!(a.ask_within("198.51.100.7:80", SILENCE).await.is_err());
        let other = resolver.as_pod(&mut world, "dig +short +tries=1 +time=3 @10.0.2.9 www.example.org").await;
        assert_eq!(other, "198.51.100.9\n");
        resolver.as_pod(&mut world, "dig +tcp +tries=1 +time=3 @10.0.2.9 www.example.com").await;
        a.ask_within("198.51.100.7:80", DEADLINE).await.unwrap();
        assert_eq!(resolver.names().len(), 2);
        remove_places().await;
    });
}

/// policyd goes: what is known stays, and another name of a known kind is reached as well, by what the proxy writes to the
/// kernel's maps. A name of a kind that is not known is answered, and not reached.
#[test]
fn names_go_on_without_policyd() {
    on_a_node(|| async {
        let mut world = World::new().await;
        let _server = Server::start(&world).await;
        sh(Some(&world.vpc.namespace), "ip addr add 198.51.100.8/32 dev lo; ip addr add 198.51.100.9/32 dev lo");
        for address in ["198.51.100.7:80", "198.51.100.8:80", "198.51.100.9:80"] {
            world.vpc.serve(address).await;
        }
        let policy = names_policy("").replace(
            "{matchPattern: '*.example.com'}",
            "{matchPattern: '*.example.com'}, {matchName: www.example.org}",
        );
        world.tell(&policy);
        let mut resolver = Resolver::start(&[], true, Refusal::Refused).await;
        resolver.want(&["*.example.com", "www.example.org"]);
        let a = world.party("a").clone();
        resolver.as_pod(&mut world, "dig +tries=1 +time=3 @10.0.2.9 www.example.com").await;
        a.ask_within("198.51.100.7:80", DEADLINE).await.unwrap();
        let classes: Vec<Class> = world.name_classes();
        // One for IPv4 only: what was learned of IPv6 would be another.
        assert_eq!(classes.len(), 1, "{classes:?}");
        let patterns =
            ["*.example.com", "www.example.org"].map(|pattern| NamePattern::cilium(pattern).unwrap()).to_vec();
        let wanted = Wanted { patterns, least: Duration::from_secs(60), classes };
        resolver.link.wanted.send(Arc::new(wanted)).unwrap();
        resolver.link.asks.close();
        assert!(a.ask_within("198.51.100.8:80", SILENCE).await.is_err());
        for (name, address) in [("second.example.com", "198.51.100.8"), ("www.example.org", "198.51.100.9")] {
            let found = resolver.as_pod(&mut world, &format!("dig +short +tries=1 +time=3 @10.0.2.9 {name}")).await;
            assert_eq!(found, format!("{address}\n"));
        }
        a.ask_within("198.51.100.7:80", DEADLINE).await.unwrap();
        a.ask_within("198.51.100.8:80", DEADLINE).await.unwrap();
        assert!(a.ask_within("198.51.100.9:80", SILENCE).await.is_err(), "policyd has never known its like");
        let noted = std::fs::read_to_string(ALONE).unwrap();
        assert!(noted.contains("second.example.com") && !noted.contains("example.org"), "{noted}");
        remove_places().await;
    });
}

/// The C library's resolver with a search list, as Kubernetes writes it: the names that it tries first are refused, by NXDOMAIN
/// so that it goes on.
#[test]
fn the_c_library_goes_through_its_search_list() {
    on_a_node(|| async {
        let mut world = World::new().await;
        let _server = Server::start(&world).await;
        world.tell(&names_policy(DNS_RULES));
        let mut resolver = Resolver::start(&["*.example.com"], false, Refusal::NameError).await;
        resolver.want(&["*.example.com"]);
        let conf =
            "nameserver 10.0.2.9\nsearch x.svc.cluster.local svc.cluster.local\noptions ndots:5 timeout:2 attempts:1\n";
        std::fs::write("/mnt/resolv.conf", conf).unwrap();
        std::fs::write("/mnt/nsswitch.conf", "hosts: dns\n").unwrap();
        let command = "unshare -m sh -c 'mount --bind /mnt/resolv.conf /etc/resolv.conf && \
                       mount --bind /mnt/nsswitch.conf /etc/nsswitch.conf && getent ahosts www.example.com'";
        let found = resolver.as_pod(&mut world, command).await;
        assert!(found.contains(SITE), "{found} {:?}", resolver.names());
        let seen = resolver.names();
        assert!(seen.contains(&("www.example.com.x.svc.cluster.local".to_owned(), false, Some(3))), "{seen:?}");
        assert!(seen.iter().any(|(name, passes, _)| name == "www.example.com" && *passes), "{seen:?}");
        remove_places().await;
    });
}
