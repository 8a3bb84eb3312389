//! [`Ec2Cloud`]: every method of the seam as the call of its name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use aws_config::environment::region::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::region::ProfileFileRegionProvider;
use aws_sdk_ec2::Client;
use aws_sdk_ec2::config::retry::RetryConfig;
use aws_sdk_ec2::config::timeout::TimeoutConfig;
use aws_sdk_ec2::config::{AppName, BehaviorVersion, IdentityCache, Region};
use aws_sdk_ec2::types::{
    ConnectionTrackingSpecificationRequest, Filter, InstanceStateName, InstanceType, NetworkInterfaceAttachmentChanges,
    ResourceType, Tag, TagSpecification,
};
use ipnet::{Ipv4Net, Ipv6Net};
use moka::future::Cache;
use sluice_contract::id::{AttachmentId, EniId, InstanceId, SecurityGroupId, SubnetId, VpcId};
use sluice_ipamd_core::cloud::{
    AddressCount, Api, Assigned, CloudError, CloudErrorKind, CreateEni, Ec2Eni, Ec2Subnet, ImdsEni, InstanceIdentity,
    InstanceLimits, Unassign,
};
use sluice_ipamd_core::limits;
use sluice_ipamd_core::shared::{Group, Member, VpcRoute};
use sluice_ipamd_daemon::cloud::Cloud;
use tokio::sync::OnceCell;

use crate::config::{InvalidSetting, Settings};
use crate::decode::{self, Fields};
use crate::error::{Asked, cloud_error, malformed, of_ec2};
use crate::imds::Imds;

/// The tag that names the instance which an ENI was made for.
const OWNER_TAG: &str = "node.k8s.amazonaws.com/instance_id";
/// The tag that names the cluster.
const CLUSTER_TAG: &str = "cluster.k8s.amazonaws.com/name";
/// What the SDK puts into `User-Agent` behind its own name.
const APP: &str = "sluice-ipamd";
/// How long a connection to EC2 may take.
const CONNECT: Duration = Duration::from_secs(3);
/// How long the credentials may take, from whichever of their sources.
const CREDENTIALS: Duration = Duration::from_secs(5);
/// The most ENIs that are asked for in one call by id.
const MOST_IDS: usize = 100;
/// Ids that EC2 does not know are dropped and the rest asked for again, so many times; then a filter is used.
const ROUNDS: usize = 8;
/// Objects on a page; EC2's own limit.
pub(crate) const PAGE: i32 = 1000;
/// More pages than this are no answer about one node.
pub(crate) const MOST_PAGES: usize = 20;
/// How long a subnet's description is taken for one that is asked for by id: what is wanted of it, the CIDR, stays.
const SUBNET: Duration = Duration::from_secs(600);
/// How long the list of subnets is: short, because the free addresses in it change. It keeps parallel questions together.
const SUBNETS: Duration = Duration::from_secs(10);

/// How long what EC2 says of an instance type is taken for true. AWS has raised limits of types that were sold already.
const LIMITS: Duration = Duration::from_secs(24 * 3600);

/// EC2 and the metadata service by the AWS SDK.
///
/// The SDK's retries are off: each method makes the call once, and its caller decides about the next. The client is made
/// at the first call, because its region may have to come from the metadata service.
#[derive(Debug)]
pub struct Ec2Cloud {
    settings: Settings,
    imds: Imds,
    client: OnceCell<Client>,
    identity: OnceCell<InstanceIdentity>,
    subnet: Cache<SubnetId, Ec2Subnet>,
    subnets: Cache<(VpcId, String), Arc<Vec<Ec2Subnet>>>,
    limits: Cache<String, InstanceLimits>,
}

/// The SDK's defaults of one date, so that a newer SDK behaves as this one.
fn behavior() -> BehaviorVersion {
    BehaviorVersion::v2026_01_12()
}

impl Ec2Cloud {
    /// A cloud that has asked nobody anything yet.
    ///
    /// # Errors
    /// [`InvalidSetting`] when the metadata service's endpoint is no URI.
    pub fn new(settings: Settings) -> Result<Self, InvalidSetting> {
        Ok(Self {
            imds: Imds::new(&settings, behavior())?,
            settings,
            client: OnceCell::new(),
            identity: OnceCell::new(),
            subnet: Cache::builder().max_capacity(256).time_to_live(SUBNET).build(),
            subnets: Cache::builder().max_capacity(16).time_to_live(SUBNETS).build(),
            limits: Cache::builder().max_capacity(16).time_to_live(LIMITS).build(),
        })
    }

    pub(crate) async fn client(&self, api: Api) -> Result<&Client, CloudError> {
        self.client.get_or_try_init(|| Box::pin(self.connect(api))).await
    }

    async fn connect(&self, api: Api) -> Result<Client, CloudError> {
        let region = match &self.settings.region {
            Some(region) => Region::new(region.clone()),
            None => self.region().await.map_err(|error| CloudError { api, ..error })?,
        };
        let app = AppName::new(APP).map_err(|error| {
            cloud_error(
                api,
                CloudErrorKind::Other,
                "BadAppName",
                &format!("{APP} is no name of an application: {error}"),
            )
        })?;
        let identities = IdentityCache::lazy().load_timeout(CREDENTIALS).build();
        let mut loader = aws_config::defaults(behavior()).region(region).app_name(app).identity_cache(identities);
        if let Some(credentials) = &self.settings.credentials {
            loader = loader.credentials_provider(credentials.clone());
        }
        let shared = Box::pin(loader.load()).await;
        let limit = self.settings.call_timeout;
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT.min(limit))
            .read_timeout(limit)
            .operation_attempt_timeout(limit)
            .operation_timeout(limit)
            .build();
        let mut config =
            aws_sdk_ec2::config::Builder::from(&shared).retry_config(RetryConfig::disabled()).timeout_config(timeouts);
        if let Some(endpoint) = &self.settings.ec2_endpoint {
            config = config.endpoint_url(endpoint);
        }
        Ok(Client::from_conf(config.build()))
    }

    async fn region(&self) -> Result<Region, CloudError> {
        let told = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
            .or_else(ProfileFileRegionProvider::new());
        match told.region().await {
            Some(region) => Ok(region),
            None => self.imds.region().await.map(Region::new),
        }
    }

    /// All ENIs that one filter lets through.
    async fn enis_by(&self, name: &str, values: Vec<String>) -> Result<Vec<Ec2Eni>, CloudError> {
        self.enis_that(vec![Filter::builder().name(name).set_values(Some(values)).build()]).await
    }

    /// All ENIs that every filter lets through, page after page.
    async fn enis_that(&self, filters: Vec<Filter>) -> Result<Vec<Ec2Eni>, CloudError> {
        const API: Api = Api::DescribeNetworkInterfaces;
        let client = self.client(API).await?;
        let mut enis = Vec::new();
        let mut next: Option<String> = None;
        for _ in 0..MOST_PAGES {
            let request = client.describe_network_interfaces().set_filters(Some(filters.clone()));
            let request = request.max_results(PAGE).set_next_token(next);
            let page = Box::pin(request.send()).await.map_err(|error| of_ec2(API, Asked::Other, &error))?;
            for eni in page.network_interfaces() {
                enis.push(decode::eni(API, eni)?);
            }
            next = page.next_token().filter(|token| !token.is_empty()).map(str::to_owned);
            if next.is_none() {
                return Ok(enis);
            }
        }
        Err(too_many_pages(API))
    }

    /// ENIs by their ids. One that EC2 does not know makes the whole call fail: it is dropped, and the rest asked for
    /// again. Where the error does not name it, a filter finds those that exist.
    async fn enis_by_id(&self, ids: &[EniId]) -> Result<Vec<Ec2Eni>, CloudError> {
        const API: Api = Api::DescribeNetworkInterfaces;
        let client = self.client(API).await?;
        let mut asked: BTreeSet<&str> = ids.iter().map(EniId::as_str).collect();
        for _ in 0..ROUNDS {
            if asked.is_empty() {
                return Ok(Vec::new());
            }
            let ids = asked.iter().map(|id| (*id).to_owned()).collect();
            let request = client.describe_network_interfaces().set_network_interface_ids(Some(ids));
            let error = match Box::pin(request.send()).await {
                Ok(answer) => {
                    return answer.network_interfaces().iter().map(|eni| decode::eni(API, eni)).collect();
                }
                Err(error) => of_ec2(API, Asked::Other, &error),
            };
            if error.kind != CloudErrorKind::NotFound {
                return Err(error);
            }
            let before = asked.len();
            asked.retain(|id| !names(&error.message, id));
            if asked.len() == before {
                break;
            }
        }
        self.enis_by("network-interface-id", asked.into_iter().map(str::to_owned).collect()).await
    }

    /// All subnets that the filters let through.
    async fn subnets_by(&self, filters: Vec<Filter>) -> Result<Vec<Ec2Subnet>, CloudError> {
        const API: Api = Api::DescribeSubnets;
        let client = self.client(API).await?;
        let mut subnets = Vec::new();
        let mut next: Option<String> = None;
        for _ in 0..MOST_PAGES {
            let request =
                client.describe_subnets().set_filters(Some(filters.clone())).max_results(PAGE).set_next_token(next);
            let page = Box::pin(request.send()).await.map_err(|error| of_ec2(API, Asked::Other, &error))?;
            for subnet in page.subnets() {
                subnets.extend(decode::subnet(API, subnet)?);
            }
            next = page.next_token().filter(|token| !token.is_empty()).map(str::to_owned);
            if next.is_none() {
                return Ok(subnets);
            }
        }
        Err(too_many_pages(API))
    }

    /// DescribeInstanceTypes of one, whatever the built-in table says of it.
    ///
    /// # Errors
    /// As the call fails; `NotFound` too where the answer lacks the type.
    pub async fn described_limits(&self, instance_type: &str) -> Result<InstanceLimits, CloudError> {
        const API: Api = Api::DescribeInstanceTypes;
        let client = self.client(API).await?;
        let request = client.describe_instance_types().instance_types(InstanceType::from(instance_type));
        let answer = Box::pin(request.send()).await.map_err(|error| of_ec2(API, Asked::Other, &error))?;
        let found = answer
            .instance_types()
            .iter()
            .find(|found| found.instance_type().is_some_and(|name| name.as_str() == instance_type));
        match found {
            Some(found) => decode::limits(found),
            None => {
                let message = format!("EC2 says nothing of the instance type {instance_type}");
                Err(cloud_error(API, CloudErrorKind::NotFound, "NotInAnswer", &message))
            }
        }
    }

    async fn ask_subnet(&self, subnet: &SubnetId) -> Result<Ec2Subnet, CloudError> {
        const API: Api = Api::DescribeSubnets;
        let client = self.client(API).await?;
        let request = client.describe_subnets().subnet_ids(subnet.as_str());
        let answer = Box::pin(request.send()).await.map_err(|error| of_ec2(API, Asked::Other, &error))?;
        for found in answer.subnets() {
            if found.subnet_id() == Some(subnet.as_str())
                && let Some(found) = decode::subnet(API, found)?
            {
                return Ok(found);
            }
        }
        let message = format!("EC2's answer has no IPv4 subnet {subnet}");
        Err(cloud_error(API, CloudErrorKind::NotFound, "NotInAnswer", &message))
    }

    async fn unassign_call(
        &self,
        eni: &EniId,
        addresses: Option<Vec<String>>,
        prefixes: Option<Vec<String>>,
    ) -> Result<(), CloudError> {
        const API: Api = Api::UnassignPrivateIpAddresses;
        let request = self
            .client(API)
            .await?
            .unassign_private_ip_addresses()
            .network_interface_id(eni.as_str())
            .set_private_ip_addresses(addresses)
            .set_ipv4_prefixes(prefixes);
        Box::pin(request.send()).await.map_err(|error| of_ec2(API, Asked::Other, &error))?;
        Ok(())
    }
}

pub(crate) fn too_many_pages(api: Api) -> CloudError {
    let message = format!("the answer has more than {MOST_PAGES} pages");
    cloud_error(api, CloudErrorKind::Other, "TooManyPages", &message)
}

/// Whether `message` names the id, and not just a longer one that begins with it.
fn names(message: &str, id: &str) -> bool {
    message.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).any(|word| word == id)
}

/// A filter that lets through what has exactly this value.
pub(crate) fn filter(name: &str, value: &str) -> Filter {
    Filter::builder().name(name).values(literal(value)).build()
}

/// The value of a filter that means this text and no other: in values `*` stands for anything and `?` for one character, and a
/// backslash takes the meaning away from what comes behind it (EC2 User Guide, "Filter your resources").
pub(crate) fn literal(text: &str) -> String {
    let mut literal = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, '*' | '?' | '\\') {
            literal.push('\\');
        }
        literal.push(character);
    }
    literal
}

fn signed(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn sdk_tags(tags: &BTreeMap<String, String>) -> Vec<Tag> {
    tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect()
}

fn texts<T: ToString>(values: &BTreeSet<T>) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

fn asked(count: AddressCount) -> Asked {
    match count {
        AddressCount::Secondary(_) => Asked::Addresses,
        AddressCount::Prefixes(_) => Asked::Prefixes,
    }
}

impl Cloud for Ec2Cloud {
    async fn identity(&self) -> Result<InstanceIdentity, CloudError> {
        self.identity.get_or_try_init(|| self.imds.identity()).await.cloned()
    }

    async fn imds_enis(&self) -> Result<Vec<ImdsEni>, CloudError> {
        self.imds.enis().await
    }

    async fn vpc_cidrs(&self) -> Result<Vec<Ipv4Net>, CloudError> {
        self.imds.vpc_cidrs().await
    }

    async fn describe_enis(&self, enis: &[EniId]) -> Result<Vec<Ec2Eni>, CloudError> {
        let mut described = Vec::new();
        for ids in enis.chunks(MOST_IDS) {
            described.extend(self.enis_by_id(ids).await?);
        }
        Ok(described)
    }

    async fn owned_enis(&self, instance: &InstanceId) -> Result<Vec<Ec2Eni>, CloudError> {
        let attached = self.enis_by("attachment.instance-id", vec![instance.to_string()]).await?;
        let tagged = self.enis_by(&format!("tag:{OWNER_TAG}"), vec![instance.to_string()]).await?;
        // The second answer is the newer one.
        let owned = attached.into_iter().chain(tagged).map(|eni| (eni.eni.clone(), eni));
        Ok(owned.collect::<BTreeMap<_, _>>().into_values().collect())
    }

    async fn unattached_enis(&self, cluster: &str) -> Result<Vec<Ec2Eni>, CloudError> {
        self.enis_that(vec![filter("status", "available"), filter(&format!("tag:{CLUSTER_TAG}"), cluster)]).await
    }

    async fn living(&self, instances: &BTreeSet<InstanceId>) -> Result<BTreeSet<InstanceId>, CloudError> {
        const API: Api = Api::DescribeInstances;
        let client = self.client(API).await?;
        let asked: Vec<String> = instances.iter().map(ToString::to_string).collect();
        let mut living = BTreeSet::new();
        for ids in asked.chunks(MOST_IDS) {
            // By a filter: an id that EC2 has forgotten would make the whole call fail.
            let filter = Filter::builder().name("instance-id").set_values(Some(ids.to_vec())).build();
            let request = client.describe_instances().filters(filter);
            let answer = Box::pin(request.send()).await.map_err(|error| of_ec2(API, Asked::Other, &error))?;
            if answer.next_token().is_some_and(|token| !token.is_empty()) {
                // What a further page holds would be taken for gone.
                return Err(too_many_pages(API));
            }
            for instance in answer.reservations().iter().flat_map(|reservation| reservation.instances()) {
                let state = instance.state().and_then(|state| state.name());
                if state != Some(&InstanceStateName::Terminated) {
                    living.extend(instance.instance_id().and_then(|id| InstanceId::new(id).ok()));
                }
            }
        }
        Ok(living)
    }

    async fn members(&self, group: &Group) -> Result<Vec<Member>, CloudError> {
        self.members_of(group).await
    }

    async fn routes(&self, vpc: &VpcId) -> Result<Vec<VpcRoute>, CloudError> {
        self.routes_of(vpc).await
    }

    async fn subnets(&self, vpc: &VpcId, availability_zone: &str) -> Result<Vec<Ec2Subnet>, CloudError> {
        let key = (vpc.clone(), availability_zone.to_owned());
        let filters = vec![filter("vpc-id", vpc.as_str()), filter("availability-zone", availability_zone)];
        let asked = Box::pin(self.subnets.try_get_with(key, async { self.subnets_by(filters).await.map(Arc::new) }));
        let subnets = asked.await.map_err(Arc::unwrap_or_clone)?;
        Ok(subnets.as_ref().clone())
    }

    /// The built-in table first; EC2 is asked for what it lacks, once.
    async fn instance_limits(&self, instance_type: &str) -> Result<InstanceLimits, CloudError> {
        if let Some(known) = limits::limits(instance_type) {
            return Ok(known);
        }
        let asked = self.limits.try_get_with_by_ref(instance_type, self.described_limits(instance_type));
        Box::pin(asked).await.map_err(Arc::unwrap_or_clone)
    }

    async fn create_eni(&self, request: &CreateEni) -> Result<Ec2Eni, CloudError> {
        const API: Api = Api::CreateNetworkInterface;
        let tags = (!request.tags.is_empty()).then(|| {
            TagSpecification::builder()
                .resource_type(ResourceType::NetworkInterface)
                .set_tags(Some(sdk_tags(&request.tags)))
                .build()
        });
        let mut call = self
            .client(API)
            .await?
            .create_network_interface()
            .subnet_id(request.subnet.as_str())
            .description(&request.description)
            .client_token(&request.client_token)
            .set_groups(Some(request.security_groups.iter().map(ToString::to_string).collect()))
            .set_tag_specifications(tags.map(|tags| vec![tags]));
        call = match request.addresses {
            AddressCount::Secondary(0) | AddressCount::Prefixes(0) => call,
            AddressCount::Secondary(count) => call.secondary_private_ip_address_count(signed(count)),
            AddressCount::Prefixes(count) => call.ipv4_prefix_count(signed(count)),
        };
        if request.ipv6_prefix {
            call = call.ipv6_prefix_count(1);
        }
        if let Some(tracking) = request.connection_tracking {
            let specification = ConnectionTrackingSpecificationRequest::builder()
                .set_tcp_established_timeout(tracking.tcp_established.map(signed))
                .set_udp_stream_timeout(tracking.udp_stream.map(signed))
                .set_udp_timeout(tracking.udp.map(signed));
            call = call.connection_tracking_specification(specification.build());
        }
        let answer = Box::pin(call.send()).await.map_err(|error| of_ec2(API, asked(request.addresses), &error))?;
        match answer.network_interface() {
            Some(eni) => decode::eni(API, eni),
            None => Err(malformed(API, "the answer holds no network interface")),
        }
    }

    async fn attach_eni(
        &self,
        eni: &EniId,
        instance: &InstanceId,
        card: u32,
        device: u32,
    ) -> Result<AttachmentId, CloudError> {
        const API: Api = Api::AttachNetworkInterface;
        let mut call = self
            .client(API)
            .await?
            .attach_network_interface()
            .network_interface_id(eni.as_str())
            .instance_id(instance.as_str())
            .device_index(signed(device));
        if card > 0 {
            call = call.network_card_index(signed(card));
        }
        let answer = Box::pin(call.send()).await.map_err(|error| of_ec2(API, Asked::Other, &error))?;
        Fields { api: API, of: eni.as_str() }.required("AttachmentId", answer.attachment_id())
    }

    async fn delete_on_termination(&self, eni: &EniId, attachment: &AttachmentId) -> Result<(), CloudError> {
        const API: Api = Api::ModifyNetworkInterfaceAttribute;
        let change = NetworkInterfaceAttachmentChanges::builder()
            .attachment_id(attachment.as_str())
            .delete_on_termination(true)
            .build();
        let call = self
            .client(API)
            .await?
            .modify_network_interface_attribute()
            .network_interface_id(eni.as_str())
            .attachment(change);
        Box::pin(call.send()).await.map_err(|error| of_ec2(API, Asked::Other, &error))?;
        Ok(())
    }

    async fn set_groups(&self, eni: &EniId, groups: &[SecurityGroupId]) -> Result<(), CloudError> {
        const API: Api = Api::ModifyNetworkInterfaceAttribute;
        let call = self
            .client(API)
            .await?
            .modify_network_interface_attribute()
            .network_interface_id(eni.as_str())
            .set_groups(Some(groups.iter().map(ToString::to_string).collect()));
        Box::pin(call.send()).await.map_err(|error| of_ec2(API, Asked::Other, &error))?;
        Ok(())
    }

    async fn assign(&self, eni: &EniId, count: AddressCount) -> Result<Assigned, CloudError> {
        const API: Api = Api::AssignPrivateIpAddresses;
        let call = self.client(API).await?.assign_private_ip_addresses().network_interface_id(eni.as_str());
        let call = match count {
            AddressCount::Secondary(0) | AddressCount::Prefixes(0) => return Ok(Assigned::default()),
            AddressCount::Secondary(count) => call.secondary_private_ip_address_count(signed(count)),
            AddressCount::Prefixes(count) => call.ipv4_prefix_count(signed(count)),
        };
        let answer = Box::pin(call.send()).await.map_err(|error| of_ec2(API, asked(count), &error))?;
        let fields = Fields { api: API, of: eni.as_str() };
        let addresses = answer.assigned_private_ip_addresses().iter();
        Ok(Assigned {
            addresses: addresses
                .map(|address| fields.required("AssignedPrivateIpAddresses", address.private_ip_address()))
                .collect::<Result<_, _>>()?,
            prefixes: fields.prefixes(answer.assigned_ipv4_prefixes().iter().map(|prefix| prefix.ipv4_prefix()))?,
        })
    }

    async fn assign_ipv6_prefix(&self, eni: &EniId) -> Result<Ipv6Net, CloudError> {
        const API: Api = Api::AssignIpv6Addresses;
        let call =
            self.client(API).await?.assign_ipv6_addresses().network_interface_id(eni.as_str()).ipv6_prefix_count(1);
        let answer = Box::pin(call.send()).await.map_err(|error| of_ec2(API, Asked::Other, &error))?;
        let fields = Fields { api: API, of: eni.as_str() };
        let assigned = answer.assigned_ipv6_prefixes().iter().map(|prefix| Some(prefix.as_str()));
        fields.ipv6_prefixes(assigned)?.pop_first().ok_or_else(|| malformed(API, "the answer holds no /80"))
    }

    /// Addresses and prefixes go in a call each: EC2 takes one kind a call.
    async fn unassign(&self, eni: &EniId, what: &Unassign) -> Result<(), CloudError> {
        if !what.addresses.is_empty() {
            self.unassign_call(eni, Some(texts(&what.addresses)), None).await?;
        }
        if !what.prefixes.is_empty() {
            self.unassign_call(eni, None, Some(texts(&what.prefixes))).await?;
        }
        Ok(())
    }

    async fn detach_eni(&self, attachment: &AttachmentId) -> Result<(), CloudError> {
        const API: Api = Api::DetachNetworkInterface;
        let call = self.client(API).await?.detach_network_interface().attachment_id(attachment.as_str());
        Box::pin(call.send()).await.map_err(|error| of_ec2(API, Asked::Other, &error))?;
        Ok(())
    }

    async fn delete_eni(&self, eni: &EniId) -> Result<(), CloudError> {
        const API: Api = Api::DeleteNetworkInterface;
        let call = self.client(API).await?.delete_network_interface().network_interface_id(eni.as_str());
        match Box::pin(call.send()).await.map_err(|error| of_ec2(API, Asked::Other, &error)) {
            Err(error) if error.kind != CloudErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    async fn tag_eni(&self, eni: &EniId, tags: &BTreeMap<String, String>) -> Result<(), CloudError> {
        const API: Api = Api::CreateTags;
        if tags.is_empty() {
            return Ok(());
        }
        let call = self.client(API).await?.create_tags().resources(eni.as_str()).set_tags(Some(sdk_tags(tags)));
        Box::pin(call.send()).await.map_err(|error| of_ec2(API, Asked::Other, &error))?;
        Ok(())
    }

    async fn describe_subnet(&self, subnet: &SubnetId) -> Result<Ec2Subnet, CloudError> {
        let asked = self.subnet.try_get_with_by_ref(subnet, self.ask_subnet(subnet));
        Box::pin(asked).await.map_err(Arc::unwrap_or_clone)
    }
}
