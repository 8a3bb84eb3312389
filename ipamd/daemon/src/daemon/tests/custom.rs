//! Custom networking: ENIs where the node's ENIConfig says, and no pods on the primary one.

use sluice_contract::id::{SecurityGroupId, SubnetId};
use sluice_ipamd_core::cloud::EniConfig;
use sluice_vpcsim::model::Reply as Ec2Reply;
use sluice_vpcsim::model::api::{CreateSecurityGroup, CreateSubnet};

use super::*;
use crate::cluster::Told;
use crate::inbox::Input;

struct Custom {
    world: World,
    subnet: SubnetId,
    group: SecurityGroupId,
}

impl Custom {
    fn new() -> Self {
        let mut world = World::new("m5.large");
        world.set("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", "true");
        world.set("MY_NODE_NAME", "n1");
        let (subnet, group) = {
            let mut model = world.cloud.model();
            let vpc = model.state().vpcs.keys().next().unwrap().clone();
            let create = CreateSubnet {
                vpc: vpc.clone(),
                cidr: "10.0.64.0/20".parse().unwrap(),
                ipv6_cidr: None,
                availability_zone: Some("us-east-1a".into()),
                tags: BTreeMap::new(),
            };
            let subnet = model.add_subnet(&create, false).unwrap();
            let create =
                CreateSecurityGroup { vpc, name: "pods".into(), description: "of pods".into(), tags: BTreeMap::new() };
            let group = match model.call(create, Duration::ZERO).result.unwrap() {
                Ec2Reply::SecurityGroup(group) => group.id,
                other => panic!("{other:?}"),
            };
            (subnet, group)
        };
        Self { world, subnet, group }
    }

    async fn tell(&self, node: &Node, config: Option<EniConfig>) {
        node.handle.send(Input::Told(Told::EniConfig(config))).await;
    }

    fn config(&self) -> EniConfig {
        EniConfig { name: "zone".into(), subnet: self.subnet.clone(), security_groups: vec![self.group.clone()] }
    }
}

#[tokio::test(start_paused = true)]
async fn a_security_group_that_is_not_there_is_looked_for_in_the_eni_config() {
    let mut custom = Custom::new();
    let node = custom.world.start().await;
    let gone = SecurityGroupId::new("sg-0000dead").unwrap();
    custom.tell(&node, Some(EniConfig { security_groups: vec![gone], ..custom.config() })).await;
    let refusal = node.add_within("early", Duration::from_secs(20)).await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::Ec2Unavailable, "{refusal:?}");
    assert!(refusal.message.contains("InvalidGroup.NotFound"), "{refusal:?}");
    let hint = "see spec.securityGroups of ENIConfig zone: one of them is not in the VPC";
    assert_eq!(refusal.hint.as_deref(), Some(hint));
    // Put right, the pod is served, and the primary ENI counts for nothing.
    custom.tell(&node, Some(custom.config())).await;
    node.add_within("late", Duration::from_secs(60)).await.unwrap();
    assert_eq!(node.wait("a settled pool", View::is_settled).await.pool.max_addresses, 18);
}

#[tokio::test(start_paused = true)]
async fn pods_wait_for_the_eni_config_and_get_addresses_of_its_subnet() {
    let mut custom = Custom::new();
    let node = custom.world.start().await;
    let refusal = node.add_within("early", Duration::from_secs(20)).await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::NotReady, "{refusal:?}");
    assert!(refusal.message.contains("no ENIConfig is known"), "{refusal:?}");
    custom.tell(&node, Some(custom.config())).await;
    let mut pods = Vec::new();
    for index in 0..18 {
        let address = node.add(&format!("p{index}")).await.unwrap();
        assert_ne!(address.device, 0, "the primary ENI is the node's own");
        custom.world.pod_runs(&format!("p{index}"), address.ip);
        pods.push(address.ip);
    }
    let hopeless = node.add_within("more", Duration::from_secs(20)).await.unwrap_err();
    assert_eq!(hopeless.code, RefusalCode::EniLimit, "{hopeless:?}");
    let (enis, _) = custom.world.cloud.owned();
    assert_eq!(enis.len(), 3);
    for eni in &enis[1..] {
        assert_eq!((&eni.subnet, &eni.groups), (&custom.subnet, &vec![custom.group.clone()]));
    }
    assert_eq!(enis[0].secondaries.len(), 0);
    node.kill().await;
    // A restart knows it from the checkpoint: the API server may be gone.
    let node = custom.world.start().await;
    custom.world.pod_ends(pods[0]);
    assert_eq!(node.del("p0").await.len(), 1);
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert!(node.add("again").await.is_ok());
    assert_eq!(node.view().await.pool.violations, 0);
}

#[tokio::test(start_paused = true)]
async fn a_changed_eni_config_concerns_new_enis_only() {
    let mut custom = Custom::new();
    custom.world.set("WARM_IP_TARGET", "2");
    let node = custom.world.start().await;
    custom.tell(&node, Some(custom.config())).await;
    let first = node.add("a").await.unwrap();
    node.wait("a settled pool", View::is_settled).await;
    let primary = custom.world.cloud.owned().0[0].clone();
    let other = EniConfig { name: "other".into(), subnet: primary.subnet.clone(), security_groups: Vec::new() };
    custom.tell(&node, Some(other)).await;
    for index in 0..12 {
        node.add(&format!("p{index}")).await.unwrap();
    }
    let (enis, _) = custom.world.cloud.owned();
    let of = |subnet: &SubnetId| enis.iter().skip(1).filter(|eni| eni.subnet == *subnet).collect::<Vec<_>>();
    assert_eq!((of(&custom.subnet).len(), of(&primary.subnet).len()), (1, 1));
    assert_eq!(of(&primary.subnet)[0].groups, primary.groups, "without groups, those of the primary ENI");
    assert_eq!(node.add("a").await.unwrap(), first);
}
