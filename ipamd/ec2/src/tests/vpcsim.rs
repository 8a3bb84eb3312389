//! The whole seam against vpcsim's EC2: another hand wrote that server, so this is where two readings of the API meet.

use std::collections::{BTreeMap, BTreeSet};

use sluice_contract::id::{EniId, InstanceId, SubnetId, VpcId};
use sluice_ipamd_core::cloud::{AddressCount, CloudErrorKind, CreateEni, InstanceLimits, InterfaceType, Unassign};
use sluice_ipamd_daemon::cloud::Cloud;
use sluice_vpcsim::ec2::Ec2;
use sluice_vpcsim::imds::Imds;
use sluice_vpcsim::live::LiveModel;
use sluice_vpcsim::model::api::CreateSubnet;
use sluice_vpcsim::model::{self, Fault, FaultEffect, Model, SceneInstance};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::settings;
use crate::{Ec2Cloud, Settings};

const OWNER: &str = "node.k8s.amazonaws.com/instance_id";

/// An account with one m5.large in a VPC, served on a local address.
struct Account {
    live: LiveModel,
    cloud: Ec2Cloud,
    vpc: VpcId,
    subnet: SubnetId,
    /// A /28: eleven addresses, and no whole /28 because AWS keeps five of them.
    tiny: SubnetId,
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
        let vpc = model.add_vpc(&["10.0.0.0/16".parse().unwrap()], None, BTreeMap::new()).unwrap();
        let mut subnet = |cidr: &str| {
            let tags = [("kubernetes.io/role/cni".to_owned(), "1".to_owned())].into();
            let request = CreateSubnet {
                vpc: vpc.clone(),
                cidr: cidr.parse().unwrap(),
                ipv6_cidr: None,
                availability_zone: None,
                tags,
            };
            model.add_subnet(&request, false).unwrap()
        };
        let (big, tiny) = (subnet("10.0.0.0/20"), subnet("10.0.16.0/28"));
        let scene = SceneInstance {
            instance_type: "m5.large".into(),
            subnet: big.clone(),
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
        Self { live, cloud: Ec2Cloud::new(settings).unwrap(), vpc, subnet: big, tiny, instance, servers }
    }

    fn request(&self, subnet: &SubnetId, addresses: AddressCount, token: &str) -> CreateEni {
        CreateEni {
            subnet: subnet.clone(),
            security_groups: Vec::new(),
            addresses,
            description: format!("aws-K8S-{}", self.instance),
            tags: [(OWNER.to_owned(), self.instance.to_string())].into(),
            client_token: token.into(),
        }
    }

    async fn primary(&self) -> EniId {
        let owned = self.cloud.owned_enis(&self.instance).await.unwrap();
        owned.iter().find(|eni| eni.attachment.as_ref().is_some_and(|at| at.device == 0)).unwrap().eni.clone()
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
    }
}

#[tokio::test]
async fn an_eni_lives_its_whole_life() {
    let account = Account::open().await;
    let cloud = &account.cloud;
    let request = account.request(&account.subnet, AddressCount::Secondary(3), "token-1");
    let made = cloud.create_eni(&request).await.unwrap();
    assert_eq!((made.subnet.clone(), made.secondary_ips.len()), (account.subnet.clone(), 3));
    assert_eq!(made.tags[OWNER], account.instance.as_str());
    assert_eq!((made.attachment.clone(), made.interface_type), (None, InterfaceType::Interface));
    assert!(!made.security_groups.is_empty(), "the VPC's default group");
    // The same token answers with the same ENI.
    assert_eq!(cloud.create_eni(&request).await.unwrap().eni, made.eni);
    let other = CreateEni { description: "other".into(), ..request.clone() };
    assert_eq!(cloud.create_eni(&other).await.unwrap_err().kind, CloudErrorKind::Conflict);

    let attachment = cloud.attach_eni(&made.eni, &account.instance, 0, 1).await.unwrap();
    cloud.delete_on_termination(&made.eni, &attachment).await.unwrap();
    let tags = [("cluster.k8s.amazonaws.com/name".to_owned(), "c".to_owned())].into();
    cloud.tag_eni(&made.eni, &tags).await.unwrap();
    let seen = cloud.describe_enis(std::slice::from_ref(&made.eni)).await.unwrap().remove(0);
    let at = seen.attachment.clone().unwrap();
    assert_eq!(
        (at.attachment, at.instance, at.device, at.card),
        (attachment.clone(), Some(account.instance.clone()), 1, 0)
    );
    assert!(at.delete_on_termination);
    assert_eq!(seen.tags["cluster.k8s.amazonaws.com/name"], "c");
    assert_eq!((seen.mac, seen.primary_ip), (made.mac, made.primary_ip));

    let added = cloud.assign(&made.eni, AddressCount::Secondary(2)).await.unwrap();
    assert_eq!((added.addresses.len(), added.prefixes.len()), (2, 0));
    let prefixes = cloud.assign(&made.eni, AddressCount::Prefixes(2)).await.unwrap();
    assert_eq!((prefixes.addresses.len(), prefixes.prefixes.len()), (0, 2));
    let seen = cloud.describe_enis(std::slice::from_ref(&made.eni)).await.unwrap().remove(0);
    assert_eq!((seen.secondary_ips.len(), &seen.prefixes), (5, &prefixes.prefixes));
    assert!(added.addresses.is_subset(&seen.secondary_ips));
    let back = Unassign { addresses: added.addresses.clone(), prefixes: prefixes.prefixes };
    cloud.unassign(&made.eni, &back).await.unwrap();
    let seen = cloud.describe_enis(std::slice::from_ref(&made.eni)).await.unwrap().remove(0);
    assert_eq!((seen.secondary_ips, seen.prefixes), (made.secondary_ips.clone(), BTreeSet::new()));
    let twice = cloud.unassign(&made.eni, &Unassign { addresses: added.addresses, prefixes: BTreeSet::new() }).await;
    assert_eq!(twice.unwrap_err().kind, CloudErrorKind::Conflict);

    assert_eq!(cloud.delete_eni(&made.eni).await.unwrap_err().kind, CloudErrorKind::Conflict, "it is attached");
    cloud.detach_eni(&attachment).await.unwrap();
    assert_eq!(cloud.owned_enis(&account.instance).await.unwrap().len(), 2, "found by its tag");
    cloud.delete_eni(&made.eni).await.unwrap();
    cloud.delete_eni(&made.eni).await.unwrap();
    assert_eq!(cloud.detach_eni(&attachment).await.unwrap_err().kind, CloudErrorKind::NotFound);
    let both = [account.primary().await, made.eni.clone()];
    let left = cloud.describe_enis(&both).await.unwrap();
    assert_eq!(left.iter().map(|eni| &eni.eni).collect::<Vec<_>>(), [&both[0]]);
    let gone = cloud.assign(&made.eni, AddressCount::Secondary(1)).await.unwrap_err();
    assert_eq!((gone.kind, gone.code.as_str()), (CloudErrorKind::NotFound, "InvalidNetworkInterfaceID.NotFound"));
}

#[tokio::test]
async fn limits_and_shortages_are_told_apart() {
    let account = Account::open().await;
    let cloud = &account.cloud;
    let primary = account.primary().await;
    let error = cloud.assign(&primary, AddressCount::Secondary(10)).await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::AddressLimit, "{error}");
    for (number, kind) in [(1, None), (2, None), (3, Some(CloudErrorKind::AttachmentLimit))] {
        let request = account.request(&account.subnet, AddressCount::Secondary(0), &format!("token-{number}"));
        let made = cloud.create_eni(&request).await.unwrap();
        let busy = cloud.attach_eni(&made.eni, &account.instance, 0, 0).await.unwrap_err();
        assert!(matches!(busy.kind, CloudErrorKind::Conflict | CloudErrorKind::AttachmentLimit), "{busy}");
        let attached = cloud.attach_eni(&made.eni, &account.instance, 0, number).await;
        assert_eq!(attached.err().map(|error| error.kind), kind);
    }
    let request = account.request(&account.tiny, AddressCount::Secondary(9), "tiny-1");
    let small = cloud.create_eni(&request).await.unwrap();
    let error =
        cloud.create_eni(&account.request(&account.tiny, AddressCount::Secondary(3), "tiny-2")).await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::InsufficientAddresses, "{error}");
    let error =
        cloud.create_eni(&account.request(&account.tiny, AddressCount::Prefixes(1), "tiny-3")).await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::InsufficientPrefixes, "{error}");
    let error = cloud.assign(&small.eni, AddressCount::Prefixes(1)).await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::InsufficientPrefixes, "{error}");
    let error = cloud.assign(&small.eni, AddressCount::Secondary(5)).await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::InsufficientAddresses, "{error}");
}

#[tokio::test]
async fn subnets_and_types_are_described() {
    let account = Account::open().await;
    let cloud = &account.cloud;
    let one = cloud.describe_subnet(&account.subnet).await.unwrap();
    assert_eq!((one.cidr.to_string().as_str(), one.tags["kubernetes.io/role/cni"].as_str()), ("10.0.0.0/20", "1"));
    assert_eq!(one.available, 4096 - 5 - 1);
    let all = cloud.subnets(&account.vpc, &one.availability_zone).await.unwrap();
    assert_eq!(
        all.iter().map(|subnet| &subnet.subnet).collect::<BTreeSet<_>>(),
        [&account.subnet, &account.tiny].into()
    );
    assert!(all.contains(&one));
    assert_eq!(cloud.subnets(&account.vpc, "nowhere-1a").await.unwrap(), []);
    let unknown = "subnet-00000000000000000".parse().unwrap();
    assert_eq!(cloud.describe_subnet(&unknown).await.unwrap_err().kind, CloudErrorKind::NotFound);
    let told = cloud.ask_limits("m5.large").await.unwrap();
    assert_eq!(told, InstanceLimits { enis: 3, ipv4_per_eni: 10, prefixes: true });
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
