//! What is sent for each change, and what is made of the answer.

use std::collections::BTreeSet;

use sluice_ipamd_core::cloud::{AddressCount, Assigned, CloudErrorKind, ConnectionTracking, CreateEni, Unassign};
use sluice_ipamd_core::shared::Group;
use sluice_ipamd_daemon::cloud::Cloud;

use super::answers::{ENI, described, id};
use super::cloud;
use super::server::{Answer, Server};

fn create(addresses: AddressCount) -> CreateEni {
    CreateEni {
        card: 0,
        subnet: "subnet-0123456789abcdef0".parse().unwrap(),
        security_groups: ["sg-0123456789abcdef0", "sg-0123456789abcdef1"].map(|group| group.parse().unwrap()).into(),
        addresses,
        ipv6_prefix: false,
        connection_tracking: None,
        description: "aws-K8S-i-0123456789abcdef0".into(),
        tags: [("a", "1"), ("b", "zwei & mehr")].map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        client_token: "token-1".into(),
    }
}

#[tokio::test]
async fn create_sends_the_whole_request() {
    let created =
        described(ENI, "<macAddress>02:01:02:03:04:05</macAddress><privateIpAddress>10.0.1.10</privateIpAddress>");
    let answer = Answer::ec2("CreateNetworkInterface", &format!("<networkInterface>{created}</networkInterface>"));
    for (addresses, field, other) in [
        (AddressCount::Secondary(9), "SecondaryPrivateIpAddressCount", "Ipv4PrefixCount"),
        (AddressCount::Prefixes(9), "Ipv4PrefixCount", "SecondaryPrivateIpAddressCount"),
    ] {
        let server = Server::answering([answer.clone()]).await;
        let eni = cloud(&server).create_eni(&create(addresses)).await.unwrap();
        assert_eq!((eni.eni, eni.attachment), (id(ENI), None));
        let form = server.only();
        for (name, value) in [
            ("Action", "CreateNetworkInterface"),
            ("SubnetId", "subnet-0123456789abcdef0"),
            ("SecurityGroupId.1", "sg-0123456789abcdef0"),
            ("SecurityGroupId.2", "sg-0123456789abcdef1"),
            ("Description", "aws-K8S-i-0123456789abcdef0"),
            ("ClientToken", "token-1"),
            ("TagSpecification.1.ResourceType", "network-interface"),
            ("TagSpecification.1.Tag.2.Key", "b"),
            ("TagSpecification.1.Tag.2.Value", "zwei & mehr"),
            (field, "9"),
        ] {
            assert_eq!(form.get(name).map(String::as_str), Some(value), "{name} in {form:?}");
        }
        assert_eq!(form.get(other), None);
    }
}

#[tokio::test]
async fn ipv6_is_asked_for_by_the_prefix() {
    let created =
        described(ENI, "<macAddress>02:01:02:03:04:05</macAddress><privateIpAddress>10.0.1.10</privateIpAddress>");
    let answer = Answer::ec2("CreateNetworkInterface", &format!("<networkInterface>{created}</networkInterface>"));
    let server = Server::answering([answer]).await;
    let tracking = ConnectionTracking { tcp_established: Some(350), udp_stream: Some(180), udp: None };
    let request =
        CreateEni { ipv6_prefix: true, connection_tracking: Some(tracking), ..create(AddressCount::Secondary(9)) };
    cloud(&server).create_eni(&request).await.unwrap();
    let form = server.only();
    assert_eq!(form["Ipv6PrefixCount"], "1");
    // As the primary ENI has it.
    assert_eq!(form["ConnectionTrackingSpecification.TcpEstablishedTimeout"], "350");
    assert_eq!(form["ConnectionTrackingSpecification.UdpStreamTimeout"], "180");
    assert_eq!(form.get("ConnectionTrackingSpecification.UdpTimeout"), None);

    let assigned = "<assignedIpv6PrefixSet><item>2001:db8:0:1:7::/80</item></assignedIpv6PrefixSet>";
    let server = Server::answering([Answer::ec2("AssignIpv6Addresses", assigned)]).await;
    let net = cloud(&server).assign_ipv6_prefix(&id(ENI)).await.unwrap();
    assert_eq!(net, "2001:db8:0:1:7::/80".parse().unwrap());
    let form = server.only();
    assert_eq!((form["NetworkInterfaceId"].as_str(), form["Ipv6PrefixCount"].as_str()), (ENI, "1"));
}

#[tokio::test]
async fn create_without_extra_addresses_asks_for_none() {
    let created =
        described(ENI, "<macAddress>02:01:02:03:04:05</macAddress><privateIpAddress>10.0.1.10</privateIpAddress>");
    let answer = Answer::ec2("CreateNetworkInterface", &format!("<networkInterface>{created}</networkInterface>"));
    let server = Server::answering([answer]).await;
    let request = CreateEni { tags: [].into(), ..create(AddressCount::Prefixes(0)) };
    cloud(&server).create_eni(&request).await.unwrap();
    let form = server.only();
    assert!(!form.keys().any(|name| name.contains("Count") || name.contains("TagSpecification")), "{form:?}");
}

#[tokio::test]
async fn the_one_sentence_for_two_shortages_is_told_apart_by_what_was_asked() {
    let words = "There aren't sufficient free Ipv4 addresses or prefixes";
    for (addresses, kind) in [
        (AddressCount::Secondary(9), CloudErrorKind::InsufficientAddresses),
        (AddressCount::Prefixes(1), CloudErrorKind::InsufficientPrefixes),
    ] {
        let server = Server::answering([Answer::error(400, "InvalidParameterValue", words)]).await;
        let error = cloud(&server).create_eni(&create(addresses)).await.unwrap_err();
        assert_eq!((error.kind, error.code.as_str(), error.message.as_str()), (kind, "InvalidParameterValue", words));
    }
}

#[tokio::test]
async fn attach_names_instance_device_and_further_cards() {
    let answer = Answer::ec2("AttachNetworkInterface", "<attachmentId>eni-attach-0123456789abcdef0</attachmentId>");
    let instance = "i-0123456789abcdef0".parse().unwrap();
    for (card, sent) in [(0, None), (2, Some("2"))] {
        let server = Server::answering([answer.clone()]).await;
        let attachment = cloud(&server).attach_eni(&id(ENI), &instance, card, 3).await.unwrap();
        assert_eq!(attachment.as_str(), "eni-attach-0123456789abcdef0");
        let form = server.only();
        assert_eq!((form["InstanceId"].as_str(), form["DeviceIndex"].as_str()), (instance.as_str(), "3"));
        assert_eq!(form["NetworkInterfaceId"], ENI);
        assert_eq!(form.get("NetworkCardIndex").map(String::as_str), sent);
    }
    let server = Server::answering([Answer::ec2("AttachNetworkInterface", "")]).await;
    let error = cloud(&server).attach_eni(&id(ENI), &instance, 0, 1).await.unwrap_err();
    // It may well be attached.
    assert_eq!((error.kind, error.code.as_str()), (CloudErrorKind::Timeout, "MalformedAnswer"));
}

#[tokio::test]
async fn an_eni_is_made_to_go_with_its_instance() {
    let server = Server::answering([Answer::ec2("ModifyNetworkInterfaceAttribute", "<return>true</return>")]).await;
    let attachment = "eni-attach-0123456789abcdef0".parse().unwrap();
    cloud(&server).delete_on_termination(&id(ENI), &attachment).await.unwrap();
    let form = server.only();
    assert_eq!(form["NetworkInterfaceId"], ENI);
    assert_eq!(form["Attachment.AttachmentId"], attachment.as_str());
    assert_eq!(form["Attachment.DeleteOnTermination"], "true");
}

#[tokio::test]
async fn assign_tells_what_was_added() {
    let server = Server::answering([
        Answer::ec2(
            "AssignPrivateIpAddresses",
            &format!(
                "<networkInterfaceId>{ENI}</networkInterfaceId><assignedPrivateIpAddressesSet>\
                 <assignedPrivateIpAddress><privateIpAddress>10.0.1.20</privateIpAddress></assignedPrivateIpAddress>\
                 <item><privateIpAddress>10.0.1.21</privateIpAddress></item>\
                 </assignedPrivateIpAddressesSet><return>true</return>"
            ),
        ),
        Answer::ec2(
            "AssignPrivateIpAddresses",
            &format!(
                "<networkInterfaceId>{ENI}</networkInterfaceId><assignedIpv4PrefixSet>\
                 <item><ipv4Prefix>10.0.2.32/28</ipv4Prefix></item></assignedIpv4PrefixSet><return>true</return>"
            ),
        ),
    ])
    .await;
    let cloud = cloud(&server);
    assert_eq!(cloud.assign(&id(ENI), AddressCount::Secondary(0)).await.unwrap(), Assigned::default());
    let assigned = cloud.assign(&id(ENI), AddressCount::Secondary(2)).await.unwrap();
    assert!(assigned.addresses.contains(&"10.0.1.21".parse().unwrap()), "{assigned:?}");
    assert!(assigned.prefixes.is_empty());
    let assigned = cloud.assign(&id(ENI), AddressCount::Prefixes(1)).await.unwrap();
    assert_eq!(assigned.prefixes, BTreeSet::from(["10.0.2.32/28".parse().unwrap()]));
    let asked = server.asked();
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[0].form["SecondaryPrivateIpAddressCount"], "2");
    assert_eq!(asked[1].form["Ipv4PrefixCount"], "1");
}

#[tokio::test]
async fn addresses_and_prefixes_are_given_back_in_a_call_each() {
    let done = Answer::ec2("UnassignPrivateIpAddresses", "<return>true</return>");
    let server = Server::answering([done.clone(), done]).await;
    let cloud = cloud(&server);
    cloud.unassign(&id(ENI), &Unassign::default()).await.unwrap();
    let what = Unassign {
        addresses: ["10.0.1.20", "10.0.1.21"].map(|ip| ip.parse().unwrap()).into(),
        prefixes: ["10.0.2.32/28".parse().unwrap()].into(),
    };
    cloud.unassign(&id(ENI), &what).await.unwrap();
    let asked = server.asked();
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[0].form["PrivateIpAddress.1"], "10.0.1.20");
    assert_eq!(asked[0].form["PrivateIpAddress.2"], "10.0.1.21");
    assert_eq!(asked[1].form["Ipv4Prefix.1"], "10.0.2.32/28");
    assert_eq!(asked[1].form.get("PrivateIpAddress.1"), None);
}

#[tokio::test]
async fn an_eni_that_is_gone_is_deleted() {
    let server = Server::answering([
        Answer::ec2("DetachNetworkInterface", "<return>true</return>"),
        Answer::ec2("DeleteNetworkInterface", "<return>true</return>"),
        Answer::error(400, "InvalidNetworkInterfaceID.NotFound", "The networkInterface ID does not exist"),
        Answer::error(400, "InvalidNetworkInterface.InUse", "Network interface is currently in use."),
        Answer::error(400, "InvalidAttachmentID.NotFound", "The attachment ID does not exist"),
    ])
    .await;
    let cloud = cloud(&server);
    let attachment = "eni-attach-0123456789abcdef0".parse().unwrap();
    cloud.detach_eni(&attachment).await.unwrap();
    cloud.delete_eni(&id(ENI)).await.unwrap();
    cloud.delete_eni(&id(ENI)).await.unwrap();
    assert_eq!(cloud.delete_eni(&id(ENI)).await.unwrap_err().kind, CloudErrorKind::Conflict);
    assert_eq!(cloud.detach_eni(&attachment).await.unwrap_err().kind, CloudErrorKind::NotFound);
    let asked = server.asked();
    assert_eq!(asked[0].form["AttachmentId"], attachment.as_str());
    assert_eq!(asked[1].form["NetworkInterfaceId"], ENI);
}

#[tokio::test]
async fn tags_go_to_one_eni() {
    let server = Server::answering([Answer::ec2("CreateTags", "<return>true</return>")]).await;
    let cloud = cloud(&server);
    cloud.tag_eni(&id(ENI), &[].into()).await.unwrap();
    let tags = [("node.k8s.amazonaws.com/createdAt".to_owned(), "2026-01-02T03:04:05Z".to_owned())].into();
    cloud.tag_eni(&id(ENI), &tags).await.unwrap();
    let form = server.only();
    assert_eq!((form["Action"].as_str(), form["ResourceId.1"].as_str()), ("CreateTags", ENI));
    assert_eq!(form["Tag.1.Key"], "node.k8s.amazonaws.com/createdAt");
    assert_eq!(form["Tag.1.Value"], "2026-01-02T03:04:05Z");
}

#[tokio::test]
async fn what_is_looked_for_is_that_text_and_no_pattern() {
    let server = Server::start(|request| {
        let set = if request.form["Action"] == "DescribeInstances" { "reservationSet" } else { "networkInterfaceSet" };
        Some(Answer::ec2(&request.form["Action"], &format!("<{set}/>")))
    })
    .await;
    let cloud = cloud(&server);
    assert_eq!(cloud.unattached_enis(r"team*?\prod").await.unwrap(), []);
    let form = server.only();
    assert_eq!(form["Filter.2.Name"], "tag:cluster.k8s.amazonaws.com/name");
    assert_eq!(form["Filter.2.Value.1"], r"team\*\?\\prod");
    server.forget();
    let tags = Group { tags: [("role".to_owned(), "*".to_owned())].into(), ..Group::default() };
    assert_eq!(cloud.members(&tags).await.unwrap(), []);
    let form = server.only();
    assert_eq!((form["Filter.1.Name"].as_str(), form["Filter.1.Value.1"].as_str()), ("tag:role", r"\*"));
    server.forget();
    let names = Group { names: ["web?".to_owned()].into(), ..Group::default() };
    assert_eq!(cloud.members(&names).await.unwrap(), []);
    assert_eq!(server.only()["Filter.1.Value.1"], r"web\?");
}
