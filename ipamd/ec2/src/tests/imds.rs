//! The metadata service: what is read of it, what may be missing, and what is said of what makes no sense.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use sluice_ipamd_core::cloud::{Api, CloudErrorKind, ImdsEni};
use sluice_ipamd_daemon::cloud::Cloud;

use super::cloud;
use super::server::{Answer, Request, Server};

const PRIMARY: &str = "02:01:02:03:04:05";
const SECOND: &str = "02:01:02:03:04:06";

/// A node with its primary ENI and another one, as the service shows them.
fn node() -> BTreeMap<String, String> {
    let mut keys = BTreeMap::new();
    for (key, value) in [
        ("mac", PRIMARY),
        ("instance-id", "i-0123456789abcdef0"),
        ("instance-type", "m5.large"),
        ("placement/availability-zone", "eu-west-1a"),
        ("placement/region", "eu-west-1"),
        ("network/interfaces/macs/", "02:01:02:03:04:05/\n02:01:02:03:04:06/"),
    ] {
        keys.insert(key.to_owned(), value.to_owned());
    }
    for (mac, key, value) in [
        (PRIMARY, "vpc-id", "vpc-0123456789abcdef0"),
        (PRIMARY, "vpc-ipv4-cidr-blocks", "10.0.0.0/16\n100.64.0.0/16"),
        (PRIMARY, "interface-id", "eni-0a1b2c3d4e5f60718"),
        // Wrong on purpose: the primary ENI's number is 0 whatever is shown.
        (PRIMARY, "device-number", "4"),
        (PRIMARY, "subnet-id", "subnet-0123456789abcdef0"),
        (PRIMARY, "subnet-ipv4-cidr-block", "10.0.0.0/19"),
        (PRIMARY, "local-ipv4s", "10.0.1.10\n10.0.1.11\n10.0.1.12"),
        (PRIMARY, "security-group-ids", "sg-0123456789abcdef0\nsg-0123456789abcdef1"),
        (SECOND, "interface-id", "eni-0b1b2c3d4e5f60718"),
        (SECOND, "device-number", "2"),
        (SECOND, "network-card", "1"),
        (SECOND, "subnet-id", "subnet-0123456789abcdef1"),
        (SECOND, "subnet-ipv4-cidr-block", "10.0.32.0/19"),
        (SECOND, "local-ipv4s", "10.0.33.10"),
        (SECOND, "ipv4-prefix", "10.0.34.16/28\n10.0.34.32/28"),
        (SECOND, "ipv6-prefix", "2001:db8:0:1:7::/80"),
        (SECOND, "security-group-ids", "sg-0123456789abcdef0"),
    ] {
        keys.insert(format!("network/interfaces/macs/{mac}/{key}"), value.to_owned());
    }
    keys
}

fn serve(keys: &BTreeMap<String, String>, request: &Request) -> Answer {
    const TOKEN: &str = "AQAEAFTNrA4eEGx0";
    if request.path == "/latest/api/token" && request.method == "PUT" {
        return Answer::new(200, TOKEN).with("x-aws-ec2-metadata-token-ttl-seconds", "21600");
    }
    if request.headers.get("x-aws-ec2-metadata-token").is_none_or(|token| token != TOKEN) {
        return Answer::new(401, "");
    }
    match request.path.strip_prefix("/latest/meta-data/").and_then(|key| keys.get(key)) {
        Some(value) => Answer::new(200, value.clone()),
        None => Answer::new(404, "<html>not found</html>"),
    }
}

async fn service(keys: BTreeMap<String, String>) -> Server {
    Server::start(move |request| Some(serve(&keys, request))).await
}

#[tokio::test]
async fn a_node_learns_who_it_is_once() {
    let server = service(node()).await;
    let cloud = cloud(&server);
    let identity = cloud.identity().await.unwrap();
    assert_eq!(identity.instance.as_str(), "i-0123456789abcdef0");
    assert_eq!(identity.instance_type, "m5.large");
    assert_eq!(identity.availability_zone, "eu-west-1a");
    assert_eq!(identity.region, "eu-west-1");
    assert_eq!(identity.primary_mac.to_string(), PRIMARY);
    assert_eq!(identity.vpc.as_str(), "vpc-0123456789abcdef0");
    let before = server.asked().len();
    assert_eq!(before, 7, "a token and six keys");
    assert_eq!(cloud.identity().await.unwrap(), identity);
    assert_eq!(server.asked().len(), before);
    let cidrs: Vec<String> = cloud.vpc_cidrs().await.unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(cidrs, ["10.0.0.0/16", "100.64.0.0/16"]);
}

/// Of the tokens that it gave out before, a service that has been started anew knows none.
#[tokio::test]
async fn a_token_that_the_service_does_not_know_any_more_is_replaced() {
    let tokens: Arc<Mutex<(u32, String)>> = Arc::default();
    let (keys, given) = (node(), Arc::clone(&tokens));
    let server = Server::start(move |request| {
        let mut given = given.lock().unwrap();
        if request.path == "/latest/api/token" {
            *given = (given.0 + 1, format!("token-{}", given.0));
            return Some(Answer::new(200, given.1.clone()).with("x-aws-ec2-metadata-token-ttl-seconds", "21600"));
        }
        let known = request.headers.get("x-aws-ec2-metadata-token").is_some_and(|token| *token == *given.1);
        let key = request.path.strip_prefix("/latest/meta-data/").and_then(|key| keys.get(key));
        Some(if known { Answer::new(200, key.unwrap().clone()) } else { Answer::new(401, "") })
    })
    .await;
    let cloud = cloud(&server);
    let cidrs = cloud.vpc_cidrs().await.unwrap();
    tokens.lock().unwrap().1.clear();
    assert_eq!(cloud.vpc_cidrs().await.unwrap(), cidrs);
    assert_eq!(cloud.vpc_cidrs().await.unwrap(), cidrs);
    assert_eq!(tokens.lock().unwrap().0, 2, "one each time that the service was new");
}

#[tokio::test]
async fn enis_are_read_with_what_may_be_missing() {
    let server = service(node()).await;
    let primary = ImdsEni {
        eni: "eni-0a1b2c3d4e5f60718".parse().unwrap(),
        mac: PRIMARY.parse().unwrap(),
        device: 0,
        card: 0,
        subnet: "subnet-0123456789abcdef0".parse().unwrap(),
        subnet_cidr: "10.0.0.0/19".parse().unwrap(),
        primary_ip: "10.0.1.10".parse().unwrap(),
        secondary_ips: ["10.0.1.11", "10.0.1.12"].map(|ip| ip.parse().unwrap()).into(),
        prefixes: [].into(),
        ipv6_prefixes: [].into(),
        security_groups: ["sg-0123456789abcdef0", "sg-0123456789abcdef1"].map(|group| group.parse().unwrap()).into(),
    };
    let second = ImdsEni {
        eni: "eni-0b1b2c3d4e5f60718".parse().unwrap(),
        mac: SECOND.parse().unwrap(),
        device: 2,
        card: 1,
        subnet: "subnet-0123456789abcdef1".parse().unwrap(),
        subnet_cidr: "10.0.32.0/19".parse().unwrap(),
        primary_ip: "10.0.33.10".parse().unwrap(),
        secondary_ips: [].into(),
        prefixes: ["10.0.34.16/28", "10.0.34.32/28"].map(|prefix| prefix.parse().unwrap()).into(),
        ipv6_prefixes: ["2001:db8:0:1:7::/80"].map(|prefix| prefix.parse().unwrap()).into(),
        security_groups: vec!["sg-0123456789abcdef0".parse().unwrap()],
    };
    assert_eq!(cloud(&server).imds_enis().await.unwrap(), [primary, second]);
}

#[tokio::test]
async fn an_eni_without_addresses_still_takes_its_place() {
    let mut keys = node();
    keys.remove(&format!("network/interfaces/macs/{SECOND}/local-ipv4s"));
    keys.remove(&format!("network/interfaces/macs/{SECOND}/subnet-ipv4-cidr-block"));
    let enis = cloud(&service(keys).await).imds_enis().await.unwrap();
    assert_eq!((enis.len(), enis[1].device, enis[1].card), (2, 2, 1));
    assert!(enis[1].primary_ip.is_unspecified());
}

#[tokio::test]
async fn an_eni_that_is_shown_in_part_is_left_out_unless_it_is_the_first() {
    for key in ["interface-id", "device-number", "subnet-id", "subnet-ipv4-cidr-block"] {
        let mut keys = node();
        keys.remove(&format!("network/interfaces/macs/{SECOND}/{key}"));
        let enis = cloud(&service(keys).await).imds_enis().await.unwrap();
        assert_eq!(enis.len(), 1, "without {key}");
        let mut keys = node();
        let key = format!("network/interfaces/macs/{PRIMARY}/{key}");
        keys.remove(&key);
        let error = cloud(&service(keys).await).imds_enis().await.unwrap_err();
        assert_eq!((error.api, error.kind, error.code.as_str()), (Api::Imds, CloudErrorKind::NotFound, "Http404"));
        assert_eq!(error.message, format!("reading {key}: the metadata service refuses"));
    }
}

#[tokio::test]
async fn values_that_make_no_sense_are_named_with_their_key() {
    for (key, value) in [
        ("mac", "1b:2b"),
        ("network/interfaces/macs/", "eth0/"),
        (&format!("network/interfaces/macs/{SECOND}/interface-id"), "eni-XYZ"),
        (&format!("network/interfaces/macs/{SECOND}/device-number"), "two"),
        (&format!("network/interfaces/macs/{SECOND}/local-ipv4s"), "10.0.33.10\n10.0.33"),
        (&format!("network/interfaces/macs/{SECOND}/ipv4-prefix"), "10.0.34.16/33"),
    ] {
        let mut keys = node();
        keys.insert(key.to_owned(), value.to_owned());
        let error = cloud(&service(keys).await).imds_enis().await.unwrap_err();
        assert_eq!((error.kind, error.code.as_str()), (CloudErrorKind::Other, "MalformedAnswer"), "{key}");
        assert!(error.message.starts_with(&format!("{key} is \"")), "{key}: {}", error.message);
    }
    let mut keys = node();
    keys.insert("instance-type".into(), "<html> oops".into());
    let error = cloud(&service(keys).await).identity().await.unwrap_err();
    assert_eq!(error.message, "instance-type is \"<html> oops\": it must be one word");
}

#[tokio::test]
async fn a_service_that_is_out_of_order_is_unavailable() {
    let server = Server::start(|request| {
        Some(if request.path == "/latest/api/token" { serve(&BTreeMap::new(), request) } else { Answer::new(500, "") })
    })
    .await;
    let error = cloud(&server).identity().await.unwrap_err();
    assert_eq!((error.kind, error.code.as_str()), (CloudErrorKind::Unavailable, "Http500"));
    let server = Server::start(|_| Some(Answer::new(403, ""))).await;
    let error = cloud(&server).identity().await.unwrap_err();
    // Switched off for this instance.
    assert_eq!(error.kind, CloudErrorKind::Denied, "{error}");
}
