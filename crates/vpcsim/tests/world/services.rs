//! EC2 and the metadata service as nodes reach them, and links that come and go by EC2's own calls. Needs root.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_vpcsim::fabric::{EC2_ENDPOINT, IMDS};
use sluice_vpcsim::model::SceneEni;
use sluice_vpcsim::node::{Node, Program};
use sluice_vpcsim::probe;
use sluice_vpcsim::world::{Service, World};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::privileged;

const SCENE: &str = "
time_scale: 0.02
throttle: false
vpcs:
  main: {cidrs: [10.0.0.0/16], subnets: {only: {cidr: 10.0.1.0/24}}}
instances:
  node-a: {type: m5.large, subnet: main/only, address: 10.0.1.10}
  node-b: {type: m5.large, subnet: main/only, address: 10.0.1.11}
";
const LIMIT: Duration = Duration::from_secs(5);

/// One HTTP request from a node: the body of an answer with status 200.
async fn http(node: &Arc<Node>, to: Ipv4Addr, request: &str, headers: &str, body: &str) -> std::io::Result<String> {
    let length = body.len();
    let text = format!(
        "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    );
    let exchange = async move || {
        let mut stream = TcpStream::connect(SocketAddrV4::new(to, 80)).await?;
        stream.write_all(text.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        if head.starts_with("HTTP/1.1 200") { Ok(body.to_owned()) } else { Err(std::io::Error::other(answer)) }
    };
    let limited = move || async move {
        tokio::time::timeout(LIMIT, exchange()).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
    };
    node.run_async(limited).await.unwrap()
}

async fn metadata(node: &Arc<Node>, key: &str) -> std::io::Result<String> {
    let ttl = "x-aws-ec2-metadata-token-ttl-seconds: 60\r\n";
    let token = http(node, IMDS, "PUT /latest/api/token", ttl, "").await?;
    let token = format!("x-aws-ec2-metadata-token: {token}\r\n");
    http(node, IMDS, &format!("GET /latest/meta-data/{key}"), &token, "").await
}

async fn ec2(node: &Arc<Node>, call: &str) -> String {
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    http(node, EC2_ENDPOINT, "POST /", form, &format!("Version=2016-11-15&Action={call}")).await.unwrap()
}

/// What stands between the first `<name>` and `</name>`.
fn value(xml: &str, name: &str) -> String {
    let (_, rest) = xml.split_once(&format!("<{name}>")).unwrap_or_else(|| panic!("no {name} in {xml}"));
    rest.split_once("</").unwrap().0.to_owned()
}

async fn links(node: &Arc<Node>) -> String {
    let output = node.run(|| std::process::Command::new("ip").args(["-o", "link"]).output().unwrap());
    String::from_utf8(output.await.unwrap().stdout).unwrap()
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn each_node_is_told_about_itself_and_services_can_fail() {
    if !privileged() {
        return;
    }
    let world = World::up(&SCENE.parse().unwrap()).await.unwrap();
    let (a, b) = (world.node("node-a").unwrap(), world.node("node-b").unwrap());
    // The metadata service sees a little late.
    until("the service knows the instance", async || metadata(a, "local-ipv4").await.is_ok()).await;
    assert_eq!(metadata(a, "local-ipv4").await.unwrap(), "10.0.1.10");
    assert_eq!(metadata(b, "local-ipv4").await.unwrap(), "10.0.1.11");
    assert_eq!(metadata(a, "instance-id").await.unwrap(), world.instance("node-a").unwrap().as_str());

    world.stop_service(Service::Imds).await;
    assert_eq!(metadata(a, "local-ipv4").await.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(ec2(a, "DescribeInstances").await.contains("10.0.1.11"), "the other service goes on");
    world.start_service(Service::Imds).await.unwrap();
    assert_eq!(metadata(a, "local-ipv4").await.unwrap(), "10.0.1.10");
}

#[tokio::test]
async fn a_link_comes_and_goes_and_an_address_works_as_soon_as_ec2_has_answered() {
    if !privileged() {
        return;
    }
    let world = World::up(&SCENE.parse().unwrap()).await.unwrap();
    let (a, subnet) = (world.node("node-a").unwrap(), world.subnet("main/only").unwrap());
    let made = ec2(a, &format!("CreateNetworkInterface&SubnetId={subnet}")).await;
    let (eni, mac) = (value(&made, "networkInterfaceId"), value(&made, "macAddress"));
    assert!(!links(a).await.contains(&mac));
    let instance = world.instance("node-a").unwrap();
    let attach = format!("AttachNetworkInterface&NetworkInterfaceId={eni}&InstanceId={instance}&DeviceIndex=1");
    let attachment = value(&ec2(a, &attach).await, "attachmentId");
    until("the link shows", async || links(a).await.contains(&mac)).await;
    let seen = links(a).await;
    let line = seen.lines().find(|line| line.contains(&mac)).unwrap();
    assert!(line.contains("eth1") && line.contains("mtu 1500") && line.contains("state DOWN"), "{line}");

    let primary = metadata(a, "mac").await.unwrap();
    let primary = metadata(a, &format!("network/interfaces/macs/{primary}/interface-id")).await.unwrap();
    let assign = "AssignPrivateIpAddresses&PrivateIpAddress.1=10.0.1.77";
    ec2(a, &format!("{assign}&NetworkInterfaceId={primary}")).await;
    let ping = move || async {
        let add = tokio::process::Command::new("ip").args(["address", "add", "10.0.1.77/32", "dev", "lo"]).status();
        assert!(add.await.unwrap().success());
        probe::ping(Some(Ipv4Addr::new(10, 0, 1, 77)), Ipv4Addr::new(10, 0, 1, 11), 56, LIMIT).await
    };
    a.run_async(ping).await.unwrap().unwrap();
    assert_eq!(world.dropped().await.unwrap(), []);

    ec2(a, &format!("DetachNetworkInterface&AttachmentId={attachment}")).await;
    until("the link is gone", async || !links(a).await.contains(&mac)).await;
    let (calls, who) =
        world.look(|model, _| (model.log().total(), model.log().records().next().map(|record| record.caller.clone())));
    assert_eq!((calls, who.as_deref()), (4, Some("10.0.1.10")));
}

#[tokio::test]
async fn links_of_all_network_cards_have_names_of_their_own() {
    if !privileged() {
        return;
    }
    let world = World::up(&SCENE.replace("m5.large", "p4d.24xlarge").parse().unwrap()).await.unwrap();
    let (a, subnet) = (world.node("node-a").unwrap(), world.subnet("main/only").unwrap());
    let instance = world.instance("node-a").unwrap();
    let mut macs = Vec::new();
    // In an order that is not theirs, and devices of one number.
    for (card, device) in [(3, 0), (0, 1), (1, 1), (1, 0)] {
        let made = ec2(a, &format!("CreateNetworkInterface&SubnetId={subnet}")).await;
        let (eni, mac) = (value(&made, "networkInterfaceId"), value(&made, "macAddress"));
        let place = format!("NetworkCardIndex={card}&DeviceIndex={device}");
        let attach = format!("AttachNetworkInterface&NetworkInterfaceId={eni}&InstanceId={instance}&{place}");
        assert_eq!(value(&ec2(a, &attach).await, "networkCardIndex"), card.to_string());
        let link = world.link_of(&eni.parse().unwrap()).await.unwrap();
        let seen = links(a).await;
        let line = seen.lines().find(|line| line.contains(&mac)).unwrap();
        assert!(line.contains(&format!(" {link}@")), "{line}");
        macs.push((mac, link, card));
    }
    let names: Vec<&str> = macs.iter().map(|(_, link, _)| link.as_str()).collect();
    assert_eq!(names, ["eth1", "eth2", "eth3", "eth4"], "in the order in which they came");
    for (mac, _, card) in &macs {
        let key = format!("network/interfaces/macs/{mac}/network-card");
        until("the service knows the link", async || metadata(a, &key).await.is_ok()).await;
        assert_eq!(metadata(a, &key).await.unwrap(), card.to_string());
    }
}

#[tokio::test]
async fn a_machine_that_restarts_keeps_its_disk_and_its_enis_and_nothing_else() {
    if !privileged() {
        return;
    }
    let mut world = World::up(&SCENE.parse().unwrap()).await.unwrap();
    let place = Some((world.instance("node-a").unwrap().clone(), 0, 1));
    let subnet = world.subnet("main/only").unwrap().clone();
    let eni = SceneEni {
        subnet,
        private_ip: None,
        want: Default::default(),
        want_ipv6: Default::default(),
        place,
        tags: Default::default(),
    };
    world.edit(|model, _| model.add_eni(&eni)).await.unwrap();
    let before = Arc::clone(world.node("node-a").unwrap());
    before.write("/etc/cni/net.d/kept", "x").await.unwrap();
    before.write("/run/sluice/lost", "x").await.unwrap();
    let pod = before.sandbox("default", "pod").await.unwrap();
    let program =
        Program { name: "daemon".into(), path: "/bin/sleep".into(), args: vec!["1000".into()], ..Program::default() };
    let mut daemon = before.start(&program).await.unwrap();
    let rule = || std::process::Command::new("ip").args(["rule", "add", "priority", "9", "lookup", "9"]).status();
    assert!(before.run(rule).await.unwrap().unwrap().success());
    let seen = links(&before).await;
    let (_, eth1) = seen.split_once("eth1").unwrap();
    let mac = eth1.split_once("link/ether ").unwrap().1.split(' ').next().unwrap().to_owned();

    world.reboot("node-a").await.unwrap();
    assert!(!daemon.wait().await.unwrap().success());
    let node = world.node("node-a").unwrap();
    let netns = pod.netns.clone();
    let left = node.run(move || {
        let rules = std::process::Command::new("ip").args(["rule"]).output().unwrap().stdout;
        let paths = ["/etc/cni/net.d/kept".as_ref(), "/run/sluice/lost".as_ref(), netns.as_path()];
        (paths.map(std::path::Path::exists), String::from_utf8(rules).unwrap().lines().count())
    });
    assert_eq!(left.await.unwrap(), ([true, false, false], 3));
    let seen = links(node).await;
    let line = seen.lines().find(|line| line.contains("eth1")).unwrap();
    assert!(line.contains(&mac) && line.contains("state DOWN"), "{line}");
    assert_eq!(metadata(node, "local-ipv4").await.unwrap(), "10.0.1.10");
    drop(before);
    assert!(node.log("daemon").exists(), "its logs are the machine's, not one boot's");
}

#[tokio::test]
async fn a_second_cidr_and_a_peered_vpc_are_reached_once_they_are_there() {
    if !privileged() {
        return;
    }
    let scene = "
time_scale: 0
vpcs:
  main:
    cidrs: [10.0.0.0/16, 100.64.0.0/16]
    subnets:
      one: {cidr: 10.0.1.0/24, routes: {10.9.0.0/16: peering/pair}}
      two: {cidr: 100.64.1.0/24}
  far: {cidrs: [10.9.0.0/16], subnets: {only: {cidr: 10.9.1.0/24, routes: {10.0.0.0/16: peering/pair}}}}
peerings: {pair: [main, far]}
instances:
  one: {type: m5.large, subnet: main/one, address: 10.0.1.10}
  two: {type: m5.large, subnet: main/two, address: 100.64.1.10}
  far: {type: m5.large, subnet: far/only, address: 10.9.1.10}
";
    let world = World::up(&scene.parse().unwrap()).await.unwrap();
    let reaches = async |from: &str, to: [u8; 4], limit| {
        let node = world.node(from).unwrap();
        node.run_async(move || probe::ping(None, to.into(), 56, limit)).await.unwrap().is_ok()
    };
    let short = Duration::from_millis(300);
    assert!(reaches("one", [100, 64, 1, 10], LIMIT).await);
    assert!(reaches("two", [10, 0, 1, 10], LIMIT).await);
    assert!(reaches("far", [10, 0, 1, 10], LIMIT).await);
    assert!(!reaches("two", [10, 9, 1, 10], short).await, "its subnet has no route there");
    for (node, address) in [("one", "10.0.1.10"), ("far", "10.9.1.10")] {
        let node = world.node(node).unwrap();
        until("its VPC's service knows it", async || metadata(node, "local-ipv4").await.is_ok()).await;
        assert_eq!(metadata(node, "local-ipv4").await.unwrap(), address);
    }
}
