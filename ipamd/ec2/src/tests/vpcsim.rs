//! Against vpcsim's servers: what its metadata service and its EC2 tell together, and what it is told to do wrong. What EC2
//! does right is checked by `tests/conformance`, of every endpoint alike.

use std::collections::{BTreeMap, BTreeSet};

use sluice_contract::id::{InstanceId, SubnetId, VpcId};
use sluice_ipamd_core::cloud::{AddressCount, CloudErrorKind, CreateEni};
use sluice_ipamd_core::shared::{Group, private_networks};
use sluice_ipamd_daemon::cloud::Cloud;
use sluice_vpcsim::ec2::Ec2;
use sluice_vpcsim::imds::Imds;
use sluice_vpcsim::live::LiveModel;
use sluice_vpcsim::model::api::{CreateSubnet, CreateTags, TerminateInstances};
use sluice_vpcsim::model::id::RouteTableId;
use sluice_vpcsim::model::state::RouteTarget;
use sluice_vpcsim::model::{self, Fault, FaultEffect, Model, SceneInstance};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::settings;
use crate::{Ec2Cloud, Settings};

/// The IPv6 CIDR of the subnet.
const IPV6_SUBNET: &str = "3fff:0:0:101::/64";
const OWNER: &str = "node.k8s.amazonaws.com/instance_id";

/// An account with one m5.large in a VPC, served on a local address.
struct Account {
    live: LiveModel,
    cloud: Ec2Cloud,
    vpc: VpcId,
    subnet: SubnetId,
    instance: InstanceId,
    servers: [JoinHandle<()>; 2],
}

impl Drop for Account {
    fn drop(&mut self) {
        self.servers.iter().for_each(JoinHandle::abort);
    }
}

impl Account {
    async fn open() -> Self {
        let mut model = Model::new(model::Settings::instant());
        let ipv6 = Some("3fff:0:0:100::/56".parse().unwrap());
        let vpc = model.add_vpc(&["10.0.0.0/16".parse().unwrap()], ipv6, BTreeMap::new()).unwrap();
        let request = CreateSubnet {
            vpc: vpc.clone(),
            cidr: "10.0.0.0/20".parse().unwrap(),
            ipv6_cidr: Some(IPV6_SUBNET.parse().unwrap()),
            availability_zone: None,
            tags: BTreeMap::new(),
        };
        let subnet = model.add_subnet(&request, false).unwrap();
        let scene = SceneInstance {
            instance_type: "m5.large".into(),
            subnet: subnet.clone(),
            private_ip: None,
            public_ip: false,
            tags: BTreeMap::new(),
        };
        let instance = model.add_instance(&scene).unwrap();
        let live = LiveModel::new(model);
        let (ec2, ec2_url) = listen().await;
        let (imds, imds_url) = listen().await;
        let servers = [
            tokio::spawn(Ec2::new(live.clone()).serve(ec2)),
            tokio::spawn(Imds::of_instance(live.clone(), instance.clone()).serve(imds)),
        ];
        // The region is for the metadata service to tell.
        let settings = Settings { imds_endpoint: Some(imds_url), region: None, ..settings(&ec2_url) };
        Self { live, cloud: Ec2Cloud::new(settings).unwrap(), vpc, subnet, instance, servers }
    }

    fn request(&self, subnet: &SubnetId, addresses: AddressCount, token: &str) -> CreateEni {
        CreateEni {
            card: 0,
            subnet: subnet.clone(),
            security_groups: Vec::new(),
            addresses,
            ipv6_prefix: false,
            connection_tracking: None,
            description: format!("aws-K8S-{}", self.instance),
            tags: [(OWNER.to_owned(), self.instance.to_string())].into(),
            client_token: token.into(),
        }
    }

    fn strike(&self, action: &str, effect: FaultEffect) {
        let fault = Fault { action: Some(action.into()), effect, count: Some(1), of_million: None };
        self.live.with(|model, _| model.add_fault(fault)).unwrap();
    }
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

#[tokio::test]
async fn the_metadata_service_and_ec2_tell_the_same() {
    let account = Account::open().await;
    let cloud = &account.cloud;
    let identity = cloud.identity().await.unwrap();
    assert_eq!((&identity.instance, &identity.vpc), (&account.instance, &account.vpc));
    assert_eq!(identity.instance_type, "m5.large");
    assert!(identity.availability_zone.starts_with(&identity.region));
    assert_eq!(cloud.vpc_cidrs().await.unwrap(), ["10.0.0.0/16".parse().unwrap()]);
    let request = account.request(&account.subnet, AddressCount::Secondary(2), "token-1");
    let made = cloud.create_eni(&request).await.unwrap();
    cloud.attach_eni(&made.eni, &account.instance, 0, 1).await.unwrap();
    cloud.assign(&made.eni, AddressCount::Prefixes(2)).await.unwrap();
    let delegated = cloud.assign_ipv6_prefix(&made.eni).await.unwrap();
    cloud.set_groups(&made.eni, &made.security_groups).await.unwrap();
    let told = cloud.imds_enis().await.unwrap();
    let owned = cloud.owned_enis(&account.instance).await.unwrap();
    assert_eq!((told.len(), owned.len()), (2, 2));
    for eni in &owned {
        let shown = told.iter().find(|shown| shown.eni == eni.eni).unwrap();
        let at = eni.attachment.as_ref().unwrap();
        assert_eq!((shown.mac, shown.device, shown.card), (eni.mac, at.device, at.card));
        assert_eq!((&shown.subnet, shown.subnet_cidr.to_string().as_str()), (&eni.subnet, "10.0.0.0/20"));
        assert_eq!((shown.primary_ip, &shown.secondary_ips), (eni.primary_ip, &eni.secondary_ips));
        assert_eq!((&shown.prefixes, &shown.security_groups), (&eni.prefixes, &eni.security_groups));
        assert_eq!(at.device == 0, shown.mac == identity.primary_mac);
        let wanted: BTreeSet<_> = (at.device == 1).then_some(delegated).into_iter().collect();
        assert_eq!((&shown.ipv6_prefixes, &eni.ipv6_prefixes), (&wanted, &wanted));
    }
    assert_eq!(cloud.describe_subnet(&account.subnet).await.unwrap().ipv6_cidr, Some(IPV6_SUBNET.parse().unwrap()));
    let request =
        CreateEni { ipv6_prefix: true, ..account.request(&account.subnet, AddressCount::Secondary(0), "token-2") };
    assert_eq!(cloud.create_eni(&request).await.unwrap().ipv6_prefixes.len(), 1);
}

#[tokio::test]
async fn faults_are_what_they_are_on_aws() {
    let account = Account::open().await;
    let cloud = &account.cloud;
    for (code, status, kind) in [
        ("RequestLimitExceeded", 503, CloudErrorKind::Throttled),
        ("UnauthorizedOperation", 403, CloudErrorKind::Denied),
        ("InternalError", 500, CloudErrorKind::Unavailable),
    ] {
        let effect = FaultEffect::Error { code: code.into(), message: "as ordered".into(), status: Some(status) };
        account.strike("DescribeSubnets", effect);
        let error = cloud.describe_subnet(&account.subnet).await.unwrap_err();
        assert_eq!((error.kind, error.code.as_str(), error.message.as_str()), (kind, code, "as ordered"));
    }
    // One call each, whatever the answer: the SDK repeats nothing.
    let calls =
        account.live.with(|model, _| model.log().records().filter(|call| call.action == "DescribeSubnets").count());
    assert_eq!(calls, 3);
}

#[tokio::test]
async fn what_is_left_behind_is_found_by_the_cluster_s_tag_and_its_instance_s_end() {
    const CLUSTER: &str = "cluster.k8s.amazonaws.com/name";
    let account = Account::open().await;
    let cloud = &account.cloud;
    let made = async |token: &str, cluster: &str| {
        let mut request = account.request(&account.subnet, AddressCount::Secondary(0), token);
        request.tags.insert(CLUSTER.to_owned(), cluster.to_owned());
        cloud.create_eni(&request).await.unwrap().eni
    };
    let (loose, used) = (made("token-1", "prod").await, made("token-2", "prod").await);
    made("token-3", "other").await;
    made("token-4", "production").await;
    let starred = made("token-5", r"prod*\").await;
    cloud.attach_eni(&used, &account.instance, 0, 1).await.unwrap();
    let found = cloud.unattached_enis("prod").await.unwrap();
    assert_eq!(found.iter().map(|eni| &eni.eni).collect::<Vec<_>>(), [&loose]);
    assert_eq!(found[0].tags[OWNER], account.instance.to_string());
    // A cluster may be called like a pattern: others that would fit are others all the same.
    let found = cloud.unattached_enis(r"prod*\").await.unwrap();
    assert_eq!(found.iter().map(|eni| &eni.eni).collect::<Vec<_>>(), [&starred]);

    let unknown: InstanceId = "i-0123456789abcdef0".parse().unwrap();
    let asked = BTreeSet::from([account.instance.clone(), unknown]);
    assert_eq!(cloud.living(&asked).await.unwrap(), BTreeSet::from([account.instance.clone()]));
    let end = TerminateInstances { instances: vec![account.instance.clone()] };
    account.live.call("tests", end).await.result.unwrap();
    assert_eq!(cloud.living(&asked).await.unwrap(), BTreeSet::new());
}

#[tokio::test]
async fn members_of_groups_are_found_by_security_groups_and_by_tags() {
    let account = Account::open().await;
    let cloud = &account.cloud;
    let made = cloud.create_eni(&account.request(&account.subnet, AddressCount::Prefixes(1), "token-1")).await.unwrap();
    let delegated = cloud.assign_ipv6_prefix(&made.eni).await.unwrap();
    let group = made.security_groups[0].to_string();
    let by_id = Group { ids: [group.clone()].into(), ..Group::default() };
    let by_name = Group { names: ["default".to_owned()].into(), ..Group::default() };
    let found = by_id.cidrs(&cloud.members(&by_id).await.unwrap()).unwrap();
    assert_eq!(by_name.cidrs(&cloud.members(&by_name).await.unwrap()).unwrap(), found);
    // The node's own ENI and the new one, with everything that they hold.
    let holds = |net: ipnet::IpNet| found.iter().any(|other| other.contains(&net));
    assert!(
        holds(ipnet::IpNet::V4(*made.prefixes.first().unwrap())) && holds(ipnet::IpNet::V6(delegated)),
        "{found:?}"
    );
    assert!(holds(std::net::IpAddr::V4(made.primary_ip).into()));
    let nobody = Group { ids: ["sg-00000000000000000".to_owned()].into(), ..Group::default() };
    assert_eq!(cloud.members(&nobody).await.unwrap(), []);

    // By tags of instances: an ENI that is attached to none does not count.
    let tag = CreateTags {
        resources: vec![account.instance.to_string()],
        tags: [("role".to_owned(), "db".to_owned())].into(),
    };
    account.live.with(|model, now| model.call_from("somebody", tag, now).result).unwrap();
    let by_tag = Group { tags: [("role".to_owned(), "db".to_owned())].into(), ..by_id.clone() };
    let members = cloud.members(&by_tag).await.unwrap();
    assert_eq!(members.len(), 1);
    assert!(members[0].groups.contains(&(group, "default".to_owned())));
    // Another region has another client; here all are served by one endpoint.
    let elsewhere = Group { region: Some("eu-south-1".to_owned()), ..by_id.clone() };
    assert_eq!(cloud.members(&elsewhere).await.unwrap(), cloud.members(&by_id).await.unwrap());
}

#[tokio::test]
async fn routes_of_all_tables_of_the_vpc_are_told_with_what_they_lead_to() {
    let account = Account::open().await;
    let lead = |destination: &str, target: RouteTarget, table: &RouteTableId| {
        let destination: ipnet::IpNet = destination.parse().unwrap();
        account.live.with(|model, _| model.set_route(table, destination, Some(target))).unwrap();
    };
    let (main, other, peering) = account.live.with(|model, _| {
        let far = model.add_vpc(&["10.9.0.0/16".parse().unwrap()], None, BTreeMap::new()).unwrap();
        let peering = model.add_peering(&account.vpc, &far).unwrap();
        let other = model.add_route_table(&account.vpc, std::slice::from_ref(&account.subnet)).unwrap();
        (model.state().vpcs[&account.vpc].main_route_table.clone(), other, peering)
    });
    lead("10.9.0.0/16", RouteTarget::Peering(peering.clone()), &main);
    lead("10.8.0.0/16", RouteTarget::Peering(peering.clone()), &other);
    lead("3fff:0:0:900::/56", RouteTarget::Peering(peering.clone()), &other);
    let routes = account.cloud.routes(&account.vpc).await.unwrap();
    let to = |target: &str| routes.iter().filter(|route| route.target == target).count();
    assert_eq!((to("local"), to(peering.as_str()), routes.len()), (2, 2, 4), "{routes:?}");
    let networks: Vec<String> = private_networks(&routes).unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(networks, ["10.8.0.0/16", "10.9.0.0/16"]);
}
