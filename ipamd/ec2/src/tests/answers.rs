//! What is made of EC2's answers.

use std::collections::BTreeSet;

use sluice_contract::id::{EniId, InstanceId};
use sluice_ipamd_core::cloud::{
    CloudErrorKind, ConnectionTracking, Ec2Attachment, Ec2Eni, InstanceLimits, InterfaceType,
};
use sluice_ipamd_daemon::cloud::Cloud;

use super::cloud;
use super::server::{Answer, Server};

pub(super) const ENI: &str = "eni-0a1b2c3d4e5f60718";
const OTHER: &str = "eni-0b1b2c3d4e5f60718";

pub(super) fn id(text: &str) -> EniId {
    text.parse().unwrap()
}

/// A description as EC2 writes it, with `extra` before the rest: the first of two equal elements is what counts for none.
pub(super) fn described(eni: &str, extra: &str) -> String {
    format!(
        "<networkInterfaceId>{eni}</networkInterfaceId><subnetId>subnet-0123456789abcdef0</subnetId>\
         <vpcId>vpc-0123456789abcdef0</vpcId><availabilityZone>eu-west-1a</availabilityZone>\
         <description>aws-K8S-i-0123456789abcdef0</description><ownerId>123456789012</ownerId>\
         <requesterManaged>false</requesterManaged><status>in-use</status><sourceDestCheck>true</sourceDestCheck>\
         <interfaceType>interface</interfaceType>{extra}"
    )
}

fn full(eni: &str) -> String {
    described(
        eni,
        "<macAddress>02:01:02:03:04:05</macAddress><privateIpAddress>10.0.1.10</privateIpAddress>\
         <privateDnsName>ip-10-0-1-10.eu-west-1.compute.internal</privateDnsName>\
         <groupSet><item><groupId>sg-0123456789abcdef0</groupId><groupName>nodes</groupName></item></groupSet>\
         <attachment><attachmentId>eni-attach-0123456789abcdef0</attachmentId><instanceId>i-0123456789abcdef0</instanceId>\
         <instanceOwnerId>123456789012</instanceOwnerId><deviceIndex>1</deviceIndex><networkCardIndex>0</networkCardIndex>\
         <status>attached</status><attachTime>2026-01-02T03:04:05.000Z</attachTime>\
         <deleteOnTermination>true</deleteOnTermination></attachment>\
         <tagSet><item><key>node.k8s.amazonaws.com/instance_id</key><value>i-0123456789abcdef0</value></item>\
         <item><key>empty</key><value/></item></tagSet>\
         <privateIpAddressesSet>\
         <item><privateIpAddress>10.0.1.10</privateIpAddress><primary>true</primary></item>\
         <item><privateIpAddress>10.0.1.12</privateIpAddress><primary>false</primary></item>\
         <item><privateIpAddress>10.0.1.11</privateIpAddress><primary>false</primary></item></privateIpAddressesSet>\
         <ipv4PrefixSet><item><ipv4Prefix>10.0.2.16/28</ipv4Prefix></item></ipv4PrefixSet>\
         <ipv6PrefixSet><item><ipv6Prefix>2001:db8:0:1:7::/80</ipv6Prefix></item></ipv6PrefixSet>\
         <connectionTrackingConfiguration><tcpEstablishedTimeout>350</tcpEstablishedTimeout>\
         <udpTimeout>45</udpTimeout></connectionTrackingConfiguration>",
    )
}

fn answer(enis: &[String], next: &str) -> Answer {
    let items: String = enis.iter().map(|eni| format!("<item>{eni}</item>")).collect();
    let next = if next.is_empty() { String::new() } else { format!("<nextToken>{next}</nextToken>") };
    Answer::ec2("DescribeNetworkInterfaces", &format!("<networkInterfaceSet>{items}</networkInterfaceSet>{next}"))
}

#[tokio::test]
async fn an_eni_is_read_whole() {
    let server = Server::answering([answer(&[full(ENI)], "")]).await;
    let found = cloud(&server).describe_enis(&[id(ENI)]).await.unwrap();
    let expected = Ec2Eni {
        eni: id(ENI),
        mac: "02:01:02:03:04:05".parse().unwrap(),
        attachment: Some(Ec2Attachment {
            attachment: "eni-attach-0123456789abcdef0".parse().unwrap(),
            instance: Some("i-0123456789abcdef0".parse().unwrap()),
            device: 1,
            card: 0,
            delete_on_termination: true,
        }),
        subnet: "subnet-0123456789abcdef0".parse().unwrap(),
        primary_ip: "10.0.1.10".parse().unwrap(),
        secondary_ips: ["10.0.1.11", "10.0.1.12"].map(|ip| ip.parse().unwrap()).into(),
        prefixes: BTreeSet::from(["10.0.2.16/28".parse().unwrap()]),
        ipv6_prefixes: BTreeSet::from(["2001:db8:0:1:7::/80".parse().unwrap()]),
        security_groups: vec!["sg-0123456789abcdef0".parse().unwrap()],
        tags: [("node.k8s.amazonaws.com/instance_id", "i-0123456789abcdef0"), ("empty", "")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        interface_type: InterfaceType::Interface,
        description: "aws-K8S-i-0123456789abcdef0".into(),
        connection_tracking: Some(ConnectionTracking { tcp_established: Some(350), udp_stream: None, udp: Some(45) }),
    };
    assert_eq!(found, [expected]);
    let form = server.only();
    assert_eq!(form["Action"], "DescribeNetworkInterfaces");
    assert_eq!(form["Version"], "2016-11-15");
    assert_eq!(form["NetworkInterfaceId.1"], ENI);
    let agent = server.asked()[0].headers["user-agent"].to_str().unwrap().to_owned();
    assert!(agent.contains("app/sluice-ipamd"), "{agent}");
}

#[tokio::test]
async fn nothing_asked_is_nothing_sent() {
    let server = Server::answering([]).await;
    assert_eq!(cloud(&server).describe_enis(&[]).await.unwrap(), []);
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn ids_that_ec2_does_not_know_are_left_out() {
    let gone = Answer::error(
        400,
        "InvalidNetworkInterfaceID.NotFound",
        &format!("The networkInterface ID '{OTHER}' does not exist"),
    );
    let server = Server::answering([gone.clone(), answer(&[full(ENI)], ""), gone.clone()]).await;
    let cloud = cloud(&server);
    let found = cloud.describe_enis(&[id(OTHER), id(ENI)]).await.unwrap();
    assert_eq!(found.iter().map(|eni| eni.eni.as_str()).collect::<Vec<_>>(), [ENI]);
    let asked = server.asked();
    assert_eq!(asked[0].form["NetworkInterfaceId.2"], OTHER);
    assert_eq!(asked[1].form.get("NetworkInterfaceId.2"), None);
    // The last one is gone too: nothing is left to ask for.
    assert_eq!(cloud.describe_enis(&[id(OTHER)]).await.unwrap(), []);
    assert_eq!(server.asked().len(), 3);
}

#[tokio::test]
async fn a_filter_helps_where_ec2_does_not_say_which_id_is_wrong() {
    let vague = Answer::error(400, "InvalidNetworkInterfaceID.NotFound", "One of them does not exist");
    let server = Server::answering([vague, answer(&[full(ENI)], "")]).await;
    let found = cloud(&server).describe_enis(&[id(OTHER), id(ENI)]).await.unwrap();
    assert_eq!(found.len(), 1);
    let form = &server.asked()[1].form;
    assert_eq!(form["Filter.1.Name"], "network-interface-id");
    assert_eq!((form["Filter.1.Value.1"].as_str(), form["Filter.1.Value.2"].as_str()), (ENI, OTHER));
}

#[tokio::test]
async fn owned_enis_are_the_attached_and_the_tagged_of_all_pages() {
    let third = "eni-0c1b2c3d4e5f60718";
    let server = Server::answering([
        answer(&[full(ENI)], "page two"),
        answer(&[full(OTHER)], ""),
        answer(&[full(ENI), full(third)], ""),
    ])
    .await;
    let instance: InstanceId = "i-0123456789abcdef0".parse().unwrap();
    let found = cloud(&server).owned_enis(&instance).await.unwrap();
    assert_eq!(found.iter().map(|eni| eni.eni.as_str()).collect::<Vec<_>>(), [ENI, OTHER, third]);
    let asked = server.asked();
    let filters: Vec<&str> = asked.iter().map(|request| request.form["Filter.1.Name"].as_str()).collect();
    assert_eq!(filters, ["attachment.instance-id", "attachment.instance-id", "tag:node.k8s.amazonaws.com/instance_id"]);
    assert!(asked.iter().all(|request| request.form["Filter.1.Value.1"] == "i-0123456789abcdef0"));
    assert!(asked.iter().all(|request| request.form["MaxResults"] == "1000"));
    assert_eq!(asked[1].form["NextToken"], "page two");
}

#[tokio::test]
async fn pages_without_end_are_refused() {
    let server = Server::start(|_| Some(answer(&[], "again"))).await;
    let instance: InstanceId = "i-0123456789abcdef0".parse().unwrap();
    let error = cloud(&server).owned_enis(&instance).await.unwrap_err();
    assert_eq!(error.code, "TooManyPages");
    assert_eq!(server.asked().len(), 20);
}

#[tokio::test]
async fn an_eni_without_ipv4_counts_and_carries_nothing() {
    let efa = described(ENI, "<macAddress>02:01:02:03:04:05</macAddress>")
        .replace("<interfaceType>interface", "<interfaceType>efa-only");
    let ipv6_only = described(OTHER, "<macAddress>02:01:02:03:04:06</macAddress>");
    let server = Server::answering([answer(&[efa, ipv6_only], "")]).await;
    let found = cloud(&server).describe_enis(&[id(ENI), id(OTHER)]).await.unwrap();
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|eni| eni.interface_type == InterfaceType::EfaOnly && eni.primary_ip.is_unspecified()));
}

#[tokio::test]
async fn values_that_make_no_sense_are_named() {
    let mac = "<macAddress>02:01:02:03:04:05</macAddress>";
    let ip = "<privateIpAddress>10.0.1.10</privateIpAddress>";
    for (broken, words) in [
        (described(ENI, ip), format!("MacAddress of {ENI} is missing")),
        (
            described(ENI, &format!("{ip}<macAddress>1b:2b:3c</macAddress>")),
            format!("MacAddress of {ENI} is \"1b:2b:3c\""),
        ),
        (
            described(ENI, &format!("{mac}<privateIpAddress>10.0.1</privateIpAddress>")),
            format!("PrivateIpAddress of {ENI} is \"10.0.1\""),
        ),
        (described("eth0", &format!("{mac}{ip}")), "NetworkInterfaceId of eth0 is \"eth0\"".to_owned()),
        (
            format!("<macAddress>02:01:02:03:04:05</macAddress>{ip}"),
            "NetworkInterfaceId of a network interface without id is missing".to_owned(),
        ),
        (
            described(
                ENI,
                &format!(
                    "{mac}{ip}<attachment><attachmentId>eni-attach-0123456789abcdef0</attachmentId>\
                     <deviceIndex>-1</deviceIndex></attachment>"
                ),
            ),
            format!("Attachment.DeviceIndex of {ENI} is \"-1\""),
        ),
        (
            described(ENI, &format!("{mac}{ip}<ipv4PrefixSet><item><ipv4Prefix>x</ipv4Prefix></item></ipv4PrefixSet>")),
            format!("Ipv4Prefix of {ENI} is \"x\""),
        ),
    ] {
        let server = Server::answering([answer(&[broken], "")]).await;
        let error = cloud(&server).describe_enis(&[id(ENI)]).await.unwrap_err();
        assert_eq!((error.kind, error.code.as_str()), (CloudErrorKind::Other, "MalformedAnswer"));
        assert!(error.message.starts_with(&words), "{words}: {}", error.message);
    }
}

#[tokio::test]
async fn a_prefix_of_another_size_is_not_used() {
    let eni = full(ENI).replace("10.0.2.16/28", "10.0.2.0/26");
    let server = Server::answering([answer(&[eni], "")]).await;
    let found = cloud(&server).describe_enis(&[id(ENI)]).await.unwrap();
    assert!(found[0].prefixes.is_empty());
}

fn subnet(number: u8, cidr: &str, free: i32) -> String {
    format!(
        "<item><subnetId>subnet-0123456789abcdef{number}</subnetId><state>available</state>\
         <vpcId>vpc-0123456789abcdef0</vpcId><cidrBlock>{cidr}</cidrBlock>\
         <availableIpAddressCount>{free}</availableIpAddressCount><availabilityZone>eu-west-1a</availabilityZone>\
         <tagSet><item><key>kubernetes.io/role/cni</key><value>1</value></item></tagSet></item>"
    )
}

#[tokio::test]
async fn subnets_are_asked_for_once_in_a_while() {
    let both = format!("<subnetSet>{}{}</subnetSet>", subnet(0, "10.0.0.0/19", 8000), subnet(1, "10.0.32.0/19", -3));
    let one = format!("<subnetSet>{}</subnetSet>", subnet(0, "10.0.0.0/19", 8000));
    let server = Server::answering([Answer::ec2("DescribeSubnets", &both), Answer::ec2("DescribeSubnets", &one)]).await;
    let cloud = cloud(&server);
    let vpc = "vpc-0123456789abcdef0".parse().unwrap();
    let (first, second) = tokio::join!(cloud.subnets(&vpc, "eu-west-1a"), cloud.subnets(&vpc, "eu-west-1a"));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first, second);
    assert_eq!(first.iter().map(|subnet| subnet.available).collect::<Vec<_>>(), [8000, 0]);
    assert_eq!(first[0].tags["kubernetes.io/role/cni"], "1");
    let form = server.only();
    assert_eq!((form["Filter.1.Name"].as_str(), form["Filter.1.Value.1"].as_str()), ("vpc-id", vpc.as_str()));
    assert_eq!(
        (form["Filter.2.Name"].as_str(), form["Filter.2.Value.1"].as_str()),
        ("availability-zone", "eu-west-1a")
    );
    let id = "subnet-0123456789abcdef0".parse().unwrap();
    for _ in 0..2 {
        assert_eq!(cloud.describe_subnet(&id).await.unwrap(), first[0]);
    }
    assert_eq!(server.asked().len(), 2);
    assert_eq!(server.asked()[1].form["SubnetId.1"], id.as_str());
}

#[tokio::test]
async fn failures_are_not_kept() {
    let one = format!("<subnetSet>{}</subnetSet>", subnet(0, "10.0.0.0/19", 8000));
    let server = Server::answering([
        Answer::error(503, "RequestLimitExceeded", "Request limit exceeded."),
        Answer::ec2("DescribeSubnets", "<subnetSet/>"),
        Answer::ec2("DescribeSubnets", &one),
    ])
    .await;
    let (cloud, id) = (cloud(&server), "subnet-0123456789abcdef0".parse().unwrap());
    assert_eq!(cloud.describe_subnet(&id).await.unwrap_err().kind, CloudErrorKind::Throttled);
    assert_eq!(cloud.describe_subnet(&id).await.unwrap_err().kind, CloudErrorKind::NotFound);
    assert_eq!(cloud.describe_subnet(&id).await.unwrap().available, 8000);
}

fn instance_type(name: &str, inner: &str) -> Answer {
    let item = format!("<item><instanceType>{name}</instanceType>{inner}</item>");
    Answer::ec2("DescribeInstanceTypes", &format!("<instanceTypeSet>{item}</instanceTypeSet>"))
}

#[tokio::test]
async fn limits_come_from_the_table_and_from_ec2_for_new_types() {
    let server = Server::answering([
        instance_type(
            "m99.large",
            "<bareMetal>false</bareMetal><hypervisor>nitro</hypervisor><networkInfo>\
             <maximumNetworkInterfaces>18</maximumNetworkInterfaces><maximumNetworkCards>3</maximumNetworkCards>\
             <defaultNetworkCardIndex>0</defaultNetworkCardIndex><networkCards>\
             <item><networkCardIndex>2</networkCardIndex><maximumNetworkInterfaces>7</maximumNetworkInterfaces></item>\
             <item><networkCardIndex>1</networkCardIndex><maximumNetworkInterfaces>6</maximumNetworkInterfaces></item>\
             <item><networkCardIndex>0</networkCardIndex><maximumNetworkInterfaces>5</maximumNetworkInterfaces></item>\
             </networkCards><ipv4AddressesPerInterface>20</ipv4AddressesPerInterface></networkInfo>",
        ),
        instance_type(
            "x99.large",
            "<bareMetal>false</bareMetal><hypervisor>xen</hypervisor><networkInfo>\
             <maximumNetworkInterfaces>2</maximumNetworkInterfaces>\
             <ipv4AddressesPerInterface>4</ipv4AddressesPerInterface></networkInfo>",
        ),
        instance_type("y99.large", "<bareMetal>true</bareMetal>"),
        Answer::ec2("DescribeInstanceTypes", "<instanceTypeSet/>"),
    ])
    .await;
    let cloud = cloud(&server);
    let m5 = InstanceLimits { enis: 3, further_cards: Vec::new(), ipv4_per_eni: 10, prefixes: true };
    assert_eq!(cloud.instance_limits("m5.large").await.unwrap(), m5);
    assert!(server.asked().is_empty());
    let m99 = InstanceLimits { enis: 5, further_cards: vec![6, 7], ipv4_per_eni: 20, prefixes: true };
    assert_eq!(cloud.instance_limits("m99.large").await.unwrap(), m99);
    assert_eq!(cloud.instance_limits("m99.large").await.unwrap(), m99);
    assert_eq!(server.only()["InstanceType.1"], "m99.large");
    let x99 = InstanceLimits { enis: 2, further_cards: Vec::new(), ipv4_per_eni: 4, prefixes: false };
    assert_eq!(cloud.instance_limits("x99.large").await.unwrap(), x99);
    let error = cloud.instance_limits("y99.large").await.unwrap_err();
    assert_eq!(error.message, "y99.large has no NetworkInfo");
    assert_eq!(cloud.instance_limits("z99.large").await.unwrap_err().kind, CloudErrorKind::NotFound);
}

#[tokio::test]
async fn a_route_that_leads_nowhere_is_none() {
    let route = |destination: &str, target: &str, state: &str| {
        format!("<item><destinationCidrBlock>{destination}</destinationCidrBlock>{target}<state>{state}</state></item>")
    };
    let peering = "<vpcPeeringConnectionId>pcx-0123456789abcdef0</vpcPeeringConnectionId>";
    let routes = [
        route("10.0.0.0/16", "<gatewayId>local</gatewayId>", "active"),
        route("10.8.0.0/16", peering, "blackhole"),
        route("10.9.0.0/16", peering, "active"),
        // A state that this version does not know.
        route("10.10.0.0/16", peering, "filtered"),
    ];
    let table = format!(
        "<routeTableSet><item><routeTableId>rtb-0123456789abcdef0</routeTableId><routeSet>{}</routeSet></item></routeTableSet>",
        routes.concat()
    );
    let server = Server::answering([Answer::ec2("DescribeRouteTables", &table)]).await;
    let found = cloud(&server).routes(&"vpc-0123456789abcdef0".parse().unwrap()).await.unwrap();
    let found: Vec<String> = found.iter().map(|route| format!("{} {}", route.destination, route.target)).collect();
    let wanted = ["10.0.0.0/16 local", "10.9.0.0/16 pcx-0123456789abcdef0", "10.10.0.0/16 pcx-0123456789abcdef0"];
    assert_eq!(found, wanted);
}
