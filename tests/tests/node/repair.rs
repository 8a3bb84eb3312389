//! A careless operator: whatever is deleted and added on a node, ours is whole again, and what is not ours is as the operator left
//! it. With `--all` also within two seconds of when ipamd has heard of it, by its own clock.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;
use sluice_tests::bed::{Bed, INTERNET, LIMIT, add_pods, ask, ip, run, scene_with_ipv6, serve};
use sluice_tests::privileged::{everything, privileged};
use sluice_vpcsim::deployment::{Deployment, Pod};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// How soon ours is whole again, in seconds, as a bucket of the metric is called.
const MENDED: &str = "2.0";
/// The metric of what was mended.
const REPAIRS: &str = "sluice_ipamd_repairs_total{";
/// Rounds in CI, and all of them.
const ROUNDS: [u64; 2] = [6, 100];

/// What a node's network is, as text that can be compared: rules, routes of all tables, addresses, links, permanent neighbours and
/// nftables. What the kernel counts or changes by itself is left out.
async fn picture(node: &Deployment) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for family in ["-4", "-6"] {
        for rule in list(node, &[family, "rule", "show"]).await {
            lines.insert(format!("rule {family} {rule}"));
        }
        for mut route in list(node, &[family, "route", "show", "table", "all"]).await {
            let route = route.as_object_mut().unwrap();
            // The kernel's own: host and multicast routes.
            if ["local", "broadcast", "multicast", "anycast"]
                .iter()
                .any(|kind| route.get("type") == Some(&(*kind).into()))
            {
                continue;
            }
            route.remove("flags");
            route.remove("pref");
            lines.insert(format!("route {family} {}", Value::Object(route.clone())));
        }
        for neighbour in list(node, &[family, "neigh", "show", "nud", "permanent"]).await {
            lines.insert(format!("neighbour {} {} {}", neighbour["dst"], neighbour["dev"], neighbour["lladdr"]));
        }
    }
    for link in list(node, &["addr", "show"]).await {
        let up = link["flags"].as_array().unwrap().contains(&"UP".into());
        lines.insert(format!("link {} up {up} mtu {}", link["ifname"], link["mtu"]));
        for address in link["addr_info"].as_array().unwrap() {
            if address["scope"] == "global" {
                lines.insert(format!("address {} {}/{}", link["ifname"], address["local"], address["prefixlen"]));
            }
        }
    }
    let tables = run(node, &["nft", "-s", "list", "ruleset"]).await.unwrap();
    lines.extend(format!("\n{tables}").split("\ntable ").map(|table| table.trim().to_owned()));
    lines
}

async fn list(node: &Deployment, words: &[&str]) -> Vec<Value> {
    ip(node, None, words).await.unwrap().as_array().unwrap().clone()
}

/// xorshift64: the same operator in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[usize::try_from(self.next() % from.len() as u64).unwrap()]
    }
}

/// What an operator does to what is ours. `POD`, `POD6` and `VETH` stand for a pod on the second ENI, `NEAR` and `NEARVETH` for one on
/// the first, `ENI` for the second ENI's own address.
const CARELESS: [&str; 29] = [
    "ip rule del priority 1024",
    "ip -6 rule del priority 1024",
    "ip rule del priority 512 to POD",
    "ip -6 rule del priority 512 to POD6",
    "ip rule del priority 1536 from POD",
    "ip -6 rule del priority 1536 from POD6",
    "ip rule del priority 512 to NEAR",
    "ip rule del priority 32765 from ENI",
    "ip rule add priority 1536 from POD lookup 77",
    "ip rule add priority 512 to POD lookup 77",
    "ip rule add priority 1024 from 192.0.2.0/24 lookup 77",
    "ip route del default table 2",
    "ip -6 route del default table 2",
    "ip route flush table 2",
    "ip route add default via 10.0.1.99 dev eth1 table 2 metric 5 onlink",
    "ip route replace default via 10.0.1.99 dev eth1 table 2 onlink",
    "ip route replace default via 10.0.1.1 dev eth1 table 2 mtu 1300",
    "ip route add blackhole 198.51.100.0/24 table 2",
    "ip route del POD dev VETH",
    "ip -6 route del POD6 dev VETH",
    "ip route replace POD dev eth0",
    "ip neigh replace 10.0.1.1 lladdr 02:00:00:00:00:99 dev eth1 nud permanent",
    "ip neigh replace POD lladdr 02:00:00:00:00:99 dev VETH nud permanent",
    "ip addr flush dev eth1 scope global",
    "ip addr add 10.0.1.250/24 dev eth1",
    "ip link set eth1 down",
    "ip link set eth1 mtu 1400",
    "ip link set NEARVETH down",
    "nft flush chain ip sluice outbound",
];

/// The same for nftables, which has few words that go with blanks between them.
const CARELESS_NFT: [&str; 5] = [
    "delete table ip sluice",
    "flush table ip sluice",
    "add rule ip sluice leave-vpc drop",
    "insert rule ip sluice outbound meta mark set 0x80",
    "delete table ip6 sluice",
];

/// What is an operator's own.
const THEIRS: [&str; 7] = [
    "ip rule add priority N from 192.0.2.0/24 lookup 77",
    "ip route add 192.0.2.N/32 dev eth0 table 77",
    "ip route add 203.0.113.N/32 dev eth0",
    "ip addr add 192.0.2.N/32 dev lo",
    "ip neigh replace 10.0.1.N lladdr 02:00:00:00:01:00 dev eth0 nud permanent",
    "ip link add theirN type bridge",
    "nft add table ip theirN",
];

async fn host_of(node: &Deployment, pod: &Pod) -> String {
    let at = list(node, &["route", "show", &pod.address.to_string()]).await;
    at[0]["dev"].as_str().unwrap().to_owned()
}

/// What the metrics whose names begin so come to together.
async fn counted(node: &Deployment, name: &str) -> u64 {
    let asked = node.node().run_async(|| async {
        let mut stream = TcpStream::connect(("127.0.0.1", 61678)).await?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.map(|_| text)
    });
    let text = asked.await.unwrap().unwrap();
    let counts = text.lines().filter_map(|line| line.strip_prefix(name));
    counts.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
}

/// Issue F, 4.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_careless_operator_does_ours_is_whole_again_and_theirs_stays() {
    if !privileged() {
        return;
    }
    let settings = [("ENABLE_IPv6", "true"), ("MAX_ENI", "2")];
    let bed = Bed::up(&scene_with_ipv6(0.1), &settings).await.unwrap();
    bed.booted().await.unwrap();
    let node = bed.node("node-a").unwrap();
    let pods = add_pods(node, "default", "p", 10).await.unwrap();
    let (near, far): (Vec<_>, Vec<_>) = pods.iter().partition(|pod| bed.device_of(pod.address) == Some(0));
    let (near, far) = (near[0], far[0]);
    serve(node, near).await.unwrap();
    let instance = bed.world.instance("node-a").unwrap().clone();
    let second = bed.world.look(|model, _| model.state().attached(&instance)[1].primary.to_string());
    let words = [
        ("POD6", far.ipv6.unwrap().to_string()),
        ("POD", far.address.to_string()),
        ("NEARVETH", host_of(node, near).await),
        ("NEAR", near.address.to_string()),
        ("VETH", host_of(node, far).await),
        ("ENI", second),
    ];
    let filled = |command: &str| {
        let mut command = command.to_owned();
        for (word, value) in &words {
            command = command.replace(word, value);
        }
        command
    };
    let rounds = ROUNDS[usize::from(everything())];
    let mut random = Random(0x5eed_0007);
    let (mut slowest, mut before) = (Duration::ZERO, counted(node, REPAIRS).await);
    for round in 0..rounds {
        // Theirs is part of what must be there afterwards.
        let number = (30 + round % 200).to_string();
        let own = random.pick(&THEIRS).replace('N', &number);
        run(node, &own.split_whitespace().collect::<Vec<_>>()).await.unwrap();
        let theirs = picture(node).await;
        let mut done = vec![own];
        for _ in 0..=random.next() % 4 {
            let nft = random.next().is_multiple_of(6);
            let command = if nft { random.pick(&CARELESS_NFT) } else { random.pick(&CARELESS) };
            let command = filled(command);
            let words: Vec<&str> = if nft { vec!["nft", &command] } else { command.split_whitespace().collect() };
            // What is gone already cannot be deleted again.
            if run(node, &words).await.is_ok() {
                done.push(command);
            }
        }
        let begun = Instant::now();
        loop {
            // What is seen now may be as old as this.
            let looked = begun.elapsed();
            let now = picture(node).await;
            if now == theirs {
                slowest = slowest.max(begun.elapsed());
                break;
            }
            let difference: Vec<_> = now.symmetric_difference(&theirs).collect();
            assert!(looked < LIMIT, "round {round}, after {done:#?}: {difference:#?}\n{}", node.log_tail(20));
        }
        // It is counted when all of it is mended, a moment after what was seen.
        let mut after = counted(node, REPAIRS).await;
        while done.len() > 1 && after == before {
            assert!(begun.elapsed() < LIMIT, "round {round}: {done:?} raised nothing");
            after = counted(node, REPAIRS).await;
        }
        before = after;
    }
    // Each of them was in time by the daemon's own clock, where nothing else keeps the machine busy.
    let in_time = counted(node, &format!("sluice_ipamd_repair_seconds_bucket{{le=\"{MENDED}\"}}")).await;
    let all = counted(node, "sluice_ipamd_repair_seconds_count").await;
    assert!(all >= rounds, "{all} repairs in {rounds} rounds\n{}", node.log_tail(50));
    assert!(!everything() || in_time == all, "{in_time} of {all} repairs in {MENDED} s\n{}", node.log_tail(50));
    println!(
        "{rounds} rounds, the slowest was whole again after {slowest:?}; {before} repairs, {in_time} of {all} in {MENDED} s"
    );
    // Packets go, and the log says what was done.
    let (_, public) = bed.addresses_of("node-a").unwrap();
    assert_eq!(ask(node, far, INTERNET).await.unwrap(), public);
    assert_eq!(ask(node, far, near.address).await.unwrap(), far.address);
    assert!(node.log_tail(2000).contains("others have changed the node's network"), "{}", node.log_tail(50));
}
