//! A VPC with one instance, made by EC2's API, and the `Cloud` that looks at it.

use std::fmt;
use std::time::Duration;

use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_ec2::Client;
use aws_sdk_ec2::config::{BehaviorVersion, Region};
use aws_sdk_ec2::error::DisplayErrorContext;
use aws_sdk_ec2::types::{InstanceStateName, InstanceType, ResourceType, Tag, TagSpecification};
use ipnet::Ipv6Net;
use sluice_contract::id::{EniId, InstanceId, SecurityGroupId, SubnetId, VpcId};
use sluice_ipamd_core::cloud::{AddressCount, CloudError, CreateEni, Ec2Eni};
use sluice_ipamd_daemon::cloud::Cloud;
use sluice_ipamd_ec2::{Ec2Cloud, Settings};

/// The tag that names the instance which an ENI was made for.
pub(crate) const OWNER: &str = "node.k8s.amazonaws.com/instance_id";

const REGION: &str = "us-east-1";

/// What is not as it should be.
#[derive(Debug)]
pub(crate) struct Wrong(pub(crate) String);

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<CloudError> for Wrong {
    fn from(error: CloudError) -> Self {
        Self(error.to_string())
    }
}

/// A call that sets the scene has failed, or its answer lacks what every such answer has.
fn scene<E: std::error::Error>(call: &'static str) -> impl FnOnce(E) -> Wrong {
    move |error| Wrong(format!("{call}: {}", DisplayErrorContext(error)))
}

fn id<T: std::str::FromStr>(call: &str, told: Option<&str>) -> Result<T, Wrong> {
    told.and_then(|id| id.parse().ok()).ok_or_else(|| Wrong(format!("{call} tells no id: {told:?}")))
}

/// The place of one check.
pub(crate) struct Account {
    pub(crate) cloud: Ec2Cloud,
    /// For what ipamd does not do.
    pub(crate) client: Client,
    pub(crate) vpc: VpcId,
    /// 10.0.0.0/17, tagged for pods: so large that LocalStack, which draws addresses blindly, draws hardly one twice.
    pub(crate) subnet: SubnetId,
    /// 10.0.128.0/28: eleven addresses, and no whole /28, because AWS keeps five of them.
    pub(crate) tiny: SubnetId,
    pub(crate) zone: String,
    /// An m5.large in `subnet`.
    pub(crate) instance: InstanceId,
}

/// Twelve digits: LocalStack takes such an access key for an account, and keeps accounts apart.
fn account_number() -> String {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("random bytes");
    format!("{:012}", 100_000_000_000 + u64::from_le_bytes(bytes) % 900_000_000_000)
}

impl Account {
    pub(crate) async fn open(url: &str) -> Result<Self, Wrong> {
        let credentials = Credentials::new(account_number(), "secret", None, None, "tests");
        let config = aws_sdk_ec2::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(REGION))
            .endpoint_url(url)
            .credentials_provider(credentials.clone())
            .build();
        let client = Client::from_conf(config);
        let settings = Settings {
            call_timeout: Duration::from_secs(20),
            ec2_endpoint: Some(url.to_owned()),
            imds_endpoint: None,
            region: Some(REGION.to_owned()),
            credentials: Some(SharedCredentialsProvider::new(credentials)),
        };
        let cloud = Ec2Cloud::new(settings).map_err(|error| Wrong(error.to_string()))?;

        let made = client.create_vpc().cidr_block("10.0.0.0/16").send().await.map_err(scene("CreateVpc"))?;
        let vpc: VpcId = id("CreateVpc", made.vpc().and_then(|vpc| vpc.vpc_id()))?;
        let (subnet, zone) = subnet(&client, &vpc, "10.0.0.0/17", None).await?;
        let (tiny, _) = self::subnet(&client, &vpc, "10.0.128.0/28", None).await?;
        let ran = client
            .run_instances()
            .image_id("ami-12c6146b")
            .instance_type(InstanceType::M5Large)
            .min_count(1)
            .max_count(1)
            .subnet_id(subnet.as_str())
            .send()
            .await
            .map_err(scene("RunInstances"))?;
        let instance = id("RunInstances", ran.instances().first().and_then(|instance| instance.instance_id()))?;
        Ok(Self { cloud, client, vpc, subnet, tiny, zone, instance })
    }

    /// An order for an ENI as ipamd makes it.
    pub(crate) fn order(&self, subnet: &SubnetId, addresses: AddressCount, token: &str) -> CreateEni {
        CreateEni {
            card: 0,
            subnet: subnet.clone(),
            security_groups: Vec::new(),
            addresses,
            ipv6_prefix: false,
            connection_tracking: None,
            description: format!("aws-K8S-{}", self.instance),
            tags: [(OWNER.to_owned(), self.instance.to_string())].into(),
            client_token: format!("{token}-{}", self.instance),
        }
    }

    /// A new ENI in the large subnet.
    pub(crate) async fn eni(&self, addresses: AddressCount, token: &str) -> Result<Ec2Eni, Wrong> {
        Ok(self.cloud.create_eni(&self.order(&self.subnet, addresses, token)).await?)
    }

    /// The ENI as EC2 describes it.
    pub(crate) async fn seen(&self, eni: &EniId) -> Result<Ec2Eni, Wrong> {
        let mut seen = self.cloud.describe_enis(std::slice::from_ref(eni)).await?;
        match (seen.pop(), seen.is_empty()) {
            (Some(one), true) => Ok(one),
            (one, _) => Err(Wrong(format!("{eni} is described as {one:?} and {} more", seen.len()))),
        }
    }

    /// A new security group of the VPC.
    pub(crate) async fn group(&self, name: &str) -> Result<SecurityGroupId, Wrong> {
        let call = self.client.create_security_group().group_name(name).description("of pods");
        let made = call.vpc_id(self.vpc.as_str()).send().await.map_err(scene("CreateSecurityGroup"))?;
        id("CreateSecurityGroup", made.group_id())
    }

    /// A subnet with IPv6, 10.1.0.0/17 and a /64, of a VPC of its own.
    pub(crate) async fn subnet_with_ipv6(&self) -> Result<(SubnetId, Ipv6Net), Wrong> {
        let call = self.client.create_vpc().cidr_block("10.1.0.0/16").amazon_provided_ipv6_cidr_block(true);
        let made = call.send().await.map_err(scene("CreateVpc"))?;
        let vpc: VpcId = id("CreateVpc", made.vpc().and_then(|vpc| vpc.vpc_id()))?;
        let blocks = made.vpc().map(|vpc| vpc.ipv6_cidr_block_association_set()).unwrap_or_default();
        let block: Ipv6Net = id("CreateVpc", blocks.first().and_then(|block| block.ipv6_cidr_block()))?;
        let cidr = Ipv6Net::new(block.addr(), 64).map_err(|error| Wrong(error.to_string()))?;
        let (subnet, _) = subnet(&self.client, &vpc, "10.1.0.0/17", Some(cidr)).await?;
        Ok((subnet, cidr))
    }

    /// Tags anything.
    pub(crate) async fn tag(&self, resource: &str, key: &str, value: &str) -> Result<(), Wrong> {
        let tag = Tag::builder().key(key).value(value).build();
        self.client.create_tags().resources(resource).tags(tag).send().await.map_err(scene("CreateTags"))?;
        Ok(())
    }

    /// Ends the instance, and waits until EC2 says that it has ended.
    pub(crate) async fn end_instance(&self) -> Result<(), Wrong> {
        let call = self.client.terminate_instances().instance_ids(self.instance.as_str());
        call.send().await.map_err(scene("TerminateInstances"))?;
        loop {
            let call = self.client.describe_instances().instance_ids(self.instance.as_str());
            let told = call.send().await.map_err(scene("DescribeInstances"))?;
            let mut all = told.reservations().iter().flat_map(|reservation| reservation.instances());
            let ended = Some(&InstanceStateName::Terminated);
            if all.all(|instance| instance.state().and_then(|state| state.name()) == ended) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The instance's first ENI.
    pub(crate) async fn primary(&self) -> Result<EniId, Wrong> {
        let owned = self.cloud.owned_enis(&self.instance).await?;
        let primary = owned.iter().find(|eni| eni.attachment.as_ref().is_some_and(|at| at.device == 0));
        primary.map(|eni| eni.eni.clone()).ok_or_else(|| Wrong(format!("{} has no ENI at index 0", self.instance)))
    }
}

async fn subnet(
    client: &Client,
    vpc: &VpcId,
    cidr: &str,
    ipv6_cidr: Option<Ipv6Net>,
) -> Result<(SubnetId, String), Wrong> {
    let tag = Tag::builder().key("kubernetes.io/role/cni").value("1").build();
    let tags = TagSpecification::builder().resource_type(ResourceType::Subnet).tags(tag).build();
    let made = client
        .create_subnet()
        .vpc_id(vpc.as_str())
        .cidr_block(cidr)
        .set_ipv6_cidr_block(ipv6_cidr.map(|cidr| cidr.to_string()))
        .availability_zone("us-east-1a")
        .tag_specifications(tags)
        .send()
        .await
        .map_err(scene("CreateSubnet"))?;
    let zone = made.subnet().and_then(|subnet| subnet.availability_zone()).unwrap_or_default();
    Ok((id("CreateSubnet", made.subnet().and_then(|subnet| subnet.subnet_id()))?, zone.to_owned()))
}
