//! SPECIFICATION P-60: faults of EC2, of a map and of a name, each made on a node as it comes about in practice, and named with
//! what to do. (A wrong policy, a missing route, a stale conflist, a foreign rule and a dead proxy: the other test of P-60.)

use std::net::IpAddr;

use sluice_vpcsim::probe::dns::{self, DNS_PORT, REFUSED, Zone};

use super::*;

/// web may ask db, a DNS server, for one name.
const NAMES: &str = r#"
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: names, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  egress:
  - toEndpoints: [{matchLabels: {app: db}}]
    toPorts: [{ports: [{port: "53", protocol: ANY}], rules: {dns: [{matchName: good.example}]}}]
"#;

/// Addresses that a map of the gates holds here.
const IPCACHE: u32 = 64;

/// Longer than ipamd's longest pause after refusals, which is a minute.
const PAUSES: Duration = Duration::from_secs(120);

/// The EC2 of the node's world.
const EC2: &str = "http://169.254.169.252";

impl Ground {
    /// Calls the simulated EC2, from the node.
    async fn ec2(&self, arguments: &[&str]) -> String {
        let output = self.run("/usr/bin/curl", &[&["-gs", "--max-time", "10"], arguments].concat()).await;
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// EC2 answers calls of an API so.
    async fn answers(&self, action: &str, code: &str, status: u16) {
        let message = format!("{code} of a test");
        let fault =
            json!({"action": action, "effect": {"error": {"code": code, "message": message, "status": status}}});
        let url = format!("{EC2}/_vpcsim/faults");
        let header = "content-type: application/json";
        self.ec2(&["-f", "-X", "POST", "-H", header, "-d", &fault.to_string(), &url]).await;
    }

    /// EC2 answers as it should.
    async fn heals(&self) {
        self.ec2(&["-f", "-X", "DELETE", &format!("{EC2}/_vpcsim/faults")]).await;
    }

    /// The last findings of a check, as a person reads them.
    async fn told(&self, words: &[&str]) {
        let text = self.sluice(&["doctor"]).await;
        assert!(words.iter().all(|words| text.contains(words)), "{words:?} are not all in\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p60_what_ec2_refuses_a_full_map_and_a_name_that_is_not_allowed_are_named() {
    if !privileged() {
        return;
    }
    let ground = Ground::up_with(NAMES, BTreeMap::from([("ipcache", IPCACHE)]), true).await;

    flows_by_tls(&ground).await;

    // A DNS name that no rule has.
    let server = SocketAddrV4::new(ground.address("db"), DNS_PORT);
    let address: IpAddr = [198, 51, 100, 10].into();
    let zone = Zone::from(["good.example", "bad.example"].map(|name| (name.to_owned(), vec![address])));
    ground.at("db", move || dns::serve_in_background(server, zone)).await.unwrap();
    for (name, code) in [("good.example", 0), ("bad.example", REFUSED)] {
        let answer = ground.at("web", move || async move { dns::resolve(server, name, SHOWN).await }).await.unwrap();
        assert_eq!(answer.rcode, code, "{name}");
    }
    let asks_for_bad = |flow: &Value| flow["l7"]["dns"]["query"].to_string().contains("bad.example");
    let refused = ground.flow(&["--type", "l7"], asks_for_bad).await;
    assert_eq!(
        (&refused["verdict"], &refused["source"]["pod_name"]),
        (&json!("DROPPED"), &json!("web")),
        "{refused:#}"
    );
    assert!(refused["Summary"].to_string().contains("CiliumNetworkPolicy shop/names"), "{refused:#}");

    // A full map: more addresses in rules than it holds. The pod that they are for is closed, and no other.
    ground.well("maps").await;
    let blocks = |count: u32| -> String {
        let block = |number: u32| format!("{{ipBlock: {{cidr: 172.16.{number}.0/24}}}}");
        let blocks = (0..count).map(block).collect::<Vec<_>>().join(", ");
        let spec = format!(
            "{{podSelector: {{matchLabels: {{app: api}}}}, egress: [{{to: [{blocks}]}}], policyTypes: [Egress]}}"
        );
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: wide, namespace: shop}}\nspec: {spec}\n"
        )
    };
    let policies = |text: &str| fs::write(ground.directory.path().join("policies.yaml"), text).unwrap();
    policies(&format!("{NAMES}---\n{}", blocks(IPCACHE * 2)));
    ground.finds("maps", "shop/api").await;
    ground.told(&["a map of the gates is full", "sluice_policy_apply_failures", "→ fewer or larger blocks"]).await;
    policies(&format!("{NAMES}---\n{}", blocks(4)));
    ground.well("maps").await;

    // EC2 throttles: the pool's next call, which a pod makes necessary.
    ground.well("ec2").await;
    ground.answers("AssignPrivateIpAddresses", "RequestLimitExceeded", 503).await;
    let pod = ground.deployment.add("shop", LATE[0]).await.unwrap();
    ground.finds("throttling", "RequestLimitExceeded").await;
    ground.told(&["EC2 throttles calls", "→ nothing here: calls are slowed down by themselves"]).await;
    // A role that lacks the action.
    ground.heals().await;
    ground.answers("AssignPrivateIpAddresses", "UnauthorizedOperation", 403).await;
    ground.finds("iam", "AssignPrivateIpAddresses").await;
    ground.told(&["EC2 denies calls", "→ give the node's role"]).await;
    ground.heals().await;
    ground.well("ec2").await;
    // Somebody else takes what the subnet has left; the next pod needs more than the pool has.
    let warm = |view: &Value| view["pool"]["free"].as_u64() >= Some(2) && view["pool"]["flights"] == 0;
    ground.deployment.pool_until("the pool was not warm", PAUSES, warm).await.unwrap();
    let subnet = ground.ec2(&["-f", "-d", "Action=DescribeSubnets&Version=2016-11-15", EC2]).await;
    let subnet = subnet.split_once("<subnetId>").and_then(|(_, rest)| rest.split_once('<')).unwrap().0.to_owned();
    for count in [40, 40, 40, 40, 40, 20, 10, 5, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0] {
        let call = format!(
            "Action=CreateNetworkInterface&Version=2016-11-15&SubnetId={subnet}&SecondaryPrivateIpAddressCount={count}"
        );
        ground.ec2(&["-d", &call, EC2]).await;
    }
    ground.deployment.delete(&pod.sandbox).await.unwrap();
    for name in LATE {
        ground.deployment.add("shop", name).await.unwrap();
    }
    ground.finds("subnet", "no free address left").await;
    ground.told(&["a subnet has no room", "→ add a subnet with the tag kubernetes.io/role/cni=1"]).await;
}

/// A certificate of an authority, by OpenSSL.
async fn certify(ground: &Ground, directory: &str, authority: &str, name: &str, host: &str) {
    let script = format!(
        "cd {directory} && openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr \
         && printf 'subjectAltName=DNS:{host}' > {name}.ext \
         && openssl x509 -req -in {name}.csr -CA {authority}.crt -CAkey {authority}.key -CAcreateserial -days 2 -extfile {name}.ext -out {name}.crt"
    );
    let output = ground.run("/bin/sh", &["-ec", &script]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The port has TLS, and takes only clients of the authority that it was told; what its files say counts for the next client.
async fn flows_by_tls(ground: &Ground) {
    let directory = ground.directory.path().join("tls");
    fs::create_dir_all(&directory).unwrap();
    let directory = directory.to_str().unwrap();
    for authority in ["ca", "other"] {
        let script = format!(
            "cd {directory} && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={authority} \
             -keyout {authority}.key -out {authority}.crt"
        );
        assert!(ground.run("/bin/sh", &["-ec", &script]).await.status.success());
    }
    certify(ground, directory, "ca", "server", "*.default.hubble-grpc.cilium.io").await;
    certify(ground, directory, "ca", "client", "relay").await;
    certify(ground, directory, "other", "stranger", "relay").await;
    // policyd was told of them when it was started, and there was nothing there.
    let talk = async |who: &str, authority: &str| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/node/see/tls.py");
        let file = |name: &str| format!("{directory}/{name}");
        let arguments = [
            script.to_owned(),
            file(&format!("{authority}.crt")),
            file(&format!("{who}.crt")),
            file(&format!("{who}.key")),
        ];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let output = ground.run("/usr/bin/python3", &arguments).await;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), said + &String::from_utf8_lossy(&output.stderr))
    };
    let (served, said) = talk("client", "ca").await;
    assert!(served && said.contains("node-a.default.hubble-grpc.cilium.io"), "{said}");
    // Our own command, which looks at the name.
    let sluice = Binaries::find("sluice").unwrap();
    let observe = async |name: &str| {
        let mut arguments: Vec<String> =
            ["observe", "--all", "--tls", "--server=127.0.0.1:4244"].map(str::to_owned).into();
        for (option, file) in
            [("ca-cert-files", "ca.crt"), ("client-cert-file", "client.crt"), ("client-key-file", "client.key")]
        {
            arguments.push(format!("--tls-{option}={directory}/{file}"));
        }
        arguments.push(format!("--tls-server-name={name}"));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let output = ground.run(sluice.to_str().unwrap(), &arguments).await;
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (served, said) = observe("node-a.default.hubble-grpc.cilium.io").await;
    assert!(served, "{said}");
    let (served, said) = observe("node-a").await;
    assert!(!served && said.contains("--tls-server-name"), "{said}");
    let (served, said) = talk("stranger", "ca").await;
    assert!(!served, "who has a certificate of somebody else is served: {said}");
    // Another authority, for both sides, without a restart.
    certify(ground, directory, "other", "server", "*.default.hubble-grpc.cilium.io").await;
    fs::copy(format!("{directory}/other.crt"), format!("{directory}/ca.crt")).unwrap();
    let (served, said) = talk("stranger", "other").await;
    assert!(served, "{said}");
    let (served, _) = talk("client", "other").await;
    assert!(!served, "who was let in before is served still");
}
