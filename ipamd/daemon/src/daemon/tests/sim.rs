//! The daemon's world in virtual time: vpcsim's model of EC2 behind the `Cloud` seam, and a model of a host behind the
//! `Kernel` seam. Both outlive the daemon, so that it can be killed and started again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};
use sluice_contract::id::{Attachment, AttachmentId, EniId, IfName, InstanceId, SecurityGroupId, SubnetId, VpcId};
use sluice_ipamd_core::cloud::{
    AddressCount, Api, Assigned, CloudError, CloudErrorKind, CreateEni, Ec2Attachment, Ec2Eni, Ec2Subnet, ImdsEni,
    InstanceIdentity, InstanceLimits, InterfaceType, Unassign,
};
use sluice_ipamd_core::recover::KernelView;
use sluice_vpcsim::model::api::{
    AssignIpv6Addresses, AssignPrivateIpAddresses, AttachNetworkInterface, CreateNetworkInterface, CreateSubnet,
    CreateTags, DeleteNetworkInterface, Describe, DetachNetworkInterface, EniAttribute, Filter,
    ModifyNetworkInterfaceAttribute, UnassignPrivateIpAddresses, WantIpv4, WantIpv6,
};
use sluice_vpcsim::model::state::{self, Eni};
use sluice_vpcsim::model::{ApiError, CallFailure, Model, Reply, Request, SceneInstance, Settings};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cloud::Cloud;
use crate::kernel::{EniNetwork, Kernel, KernelError, NodeNetwork, Pods};

/// When the next daemon dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crash {
    /// At its n-th call of EC2, which has no effect.
    BeforeCall(u64),
    /// At its n-th call of EC2, which has its effect.
    AfterCall(u64),
}

/// EC2 and IMDS.
#[derive(Debug, Clone)]
pub(crate) struct SimCloud(Arc<CloudState>);

#[derive(Debug)]
struct CloudState {
    model: Arc<Mutex<Model>>,
    instance: InstanceId,
    vpc: VpcId,
    start: Instant,
    switches: Mutex<Switches>,
    crashed: Notify,
}

#[derive(Debug, Default)]
struct Switches {
    down: bool,
    calls: u64,
    crash: Option<Crash>,
    /// The crash has happened.
    dead: bool,
    /// So many of the next changing calls arrive twice, as when a proxy tries again; the caller hears of the second.
    repeat: u32,
    /// IMDS leaves out the ENI of this device.
    omitted: Option<u32>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SimCloud {
    /// A VPC with one instance in a subnet of `cidr`.
    pub(crate) fn new(settings: Settings, instance_type: &str, cidr: &str) -> Self {
        Self::fleet(settings, 1, instance_type, cidr).remove(0)
    }

    /// A VPC with so many instances in a subnet of `cidr`, as each of them sees it.
    pub(crate) fn fleet(settings: Settings, count: usize, instance_type: &str, cidr: &str) -> Vec<Self> {
        let mut model = Model::new(settings);
        let vpc = model
            .add_vpc(&["10.0.0.0/16".parse().unwrap()], Some("3fff:0:0:100::/56".parse().unwrap()), BTreeMap::new())
            .unwrap();
        let subnet = CreateSubnet {
            vpc: vpc.clone(),
            cidr: cidr.parse().unwrap(),
            ipv6_cidr: Some("3fff:0:0:101::/64".parse().unwrap()),
            availability_zone: Some("us-east-1a".into()),
            tags: BTreeMap::new(),
        };
        let subnet = model.add_subnet(&subnet, false).unwrap();
        let scene = SceneInstance {
            instance_type: instance_type.into(),
            subnet,
            private_ip: None,
            public_ip: false,
            tags: BTreeMap::new(),
        };
        let instances: Vec<InstanceId> = (0..count).map(|_| model.add_instance(&scene).unwrap()).collect();
        let model = Arc::new(Mutex::new(model));
        let seen_by = |instance| {
            Self(Arc::new(CloudState {
                model: Arc::clone(&model),
                instance,
                vpc: vpc.clone(),
                start: Instant::now(),
                switches: Mutex::default(),
                crashed: Notify::new(),
            }))
        };
        instances.into_iter().map(seen_by).collect()
    }

    pub(crate) fn model(&self) -> MutexGuard<'_, Model> {
        lock(&self.0.model)
    }

    pub(crate) fn now(&self) -> Duration {
        self.0.start.elapsed()
    }

    /// Neither EC2 nor IMDS answers.
    pub(crate) fn set_down(&self, down: bool) {
        lock(&self.0.switches).down = down;
    }

    pub(crate) fn crash_at(&self, crash: Option<Crash>) {
        let mut switches = lock(&self.0.switches);
        (switches.crash, switches.calls, switches.dead) = (crash, 0, false);
    }

    /// EC2's descriptions and IMDS tell what was so long ago.
    pub(crate) fn lag(&self, describe: Duration, imds: Duration) {
        let mut model = self.model();
        let settings = model.settings_mut();
        (settings.describe_lag, settings.imds_lag) = (describe, imds);
    }

    /// Of the next changing calls so many arrive twice.
    pub(crate) fn repeat(&self, calls: u32) {
        lock(&self.0.switches).repeat = calls;
    }

    /// IMDS leaves out the ENI of a device, or none.
    pub(crate) fn omit(&self, device: Option<u32>) {
        lock(&self.0.switches).omitted = device;
    }

    /// Resolves when the crash that was set happens.
    pub(crate) async fn crashed(&self) {
        while !lock(&self.0.switches).dead {
            self.0.crashed.notified().await;
        }
    }

    /// Calls of each action since the start.
    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        self.model().log().counts().clone()
    }

    /// The ENIs of the instance, and those that were made for it and are attached to nothing.
    pub(crate) fn owned(&self) -> (Vec<Eni>, Vec<Eni>) {
        let model = self.model();
        let attached = model.state().attached(&self.0.instance).into_iter().cloned().collect();
        let loose = model.state().enis.values().filter(|eni| eni.attachment.is_none()).cloned().collect();
        (attached, loose)
    }

    fn unreachable(api: Api) -> CloudError {
        CloudError {
            api,
            kind: CloudErrorKind::Unavailable,
            code: "ConnectionRefused".into(),
            message: "nobody listens".into(),
            retry_after: None,
        }
    }

    fn die(&self) {
        lock(&self.0.switches).dead = true;
        self.0.crashed.notify_one();
    }

    async fn call(&self, api: Api, request: impl Into<Request>) -> Result<Reply, CloudError> {
        let request = request.into();
        let (crash, twice) = {
            let mut switches = lock(&self.0.switches);
            if switches.down {
                return Err(Self::unreachable(api));
            }
            switches.calls += 1;
            let calls = switches.calls;
            let twice = switches.repeat > 0 && !request.action().is_describe();
            switches.repeat -= u32::from(twice);
            let crash = switches
                .crash
                .filter(|crash| matches!(crash, Crash::BeforeCall(n) | Crash::AfterCall(n) if *n == calls));
            (crash, twice)
        };
        if matches!(crash, Some(Crash::BeforeCall(_))) {
            self.die();
            std::future::pending::<()>().await;
        }
        let now = self.now();
        if twice {
            let _unheard = self.model().call_from("node", request.clone(), now);
        }
        let outcome = self.model().call_from("node", request, now);
        if crash.is_some() {
            self.die();
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(outcome.answer_after).await;
        match outcome.result {
            Ok(reply) => Ok(reply),
            Err(CallFailure::Api(error)) => Err(cloud_error(api, &error)),
            Err(CallFailure::NoAnswer) => std::future::pending().await,
        }
    }

    async fn describe(&self, describe: Describe<EniId>) -> Result<Vec<Ec2Eni>, CloudError> {
        match self.call(Api::DescribeNetworkInterfaces, describe).await? {
            Reply::NetworkInterfaces(listed) => Ok(listed.items.iter().map(ec2_eni).collect()),
            other => panic!("DescribeNetworkInterfaces answered {other:?}"),
        }
    }

    async fn done(&self, api: Api, request: impl Into<Request>) -> Result<(), CloudError> {
        self.call(api, request).await.map(drop)
    }

    fn imds(&self) -> Result<Arc<state::State>, CloudError> {
        if lock(&self.0.switches).down {
            return Err(Self::unreachable(Api::Imds));
        }
        let now = self.now();
        let mut model = self.model();
        model.settle(now);
        let lag = model.imds_lag();
        Ok(model.seen(now, lag).0)
    }
}

fn cloud_error(api: Api, error: &ApiError) -> CloudError {
    let kind = match error.code.as_ref() {
        "RequestLimitExceeded" => CloudErrorKind::Throttled,
        "UnauthorizedOperation" => CloudErrorKind::Denied,
        "InsufficientFreeAddressesInSubnet" => CloudErrorKind::InsufficientAddresses,
        "InsufficientCidrBlocks" => CloudErrorKind::InsufficientPrefixes,
        "PrivateIpAddressLimitExceeded" => CloudErrorKind::AddressLimit,
        "AttachmentLimitExceeded" => CloudErrorKind::AttachmentLimit,
        "InternalError" => CloudErrorKind::Unavailable,
        code if code.ends_with("NotFound") => CloudErrorKind::NotFound,
        _ if error.message.contains("sufficient free Ipv4 addresses or prefixes") => {
            CloudErrorKind::InsufficientPrefixes
        }
        "InvalidParameterValue"
        | "InvalidNetworkInterface.InUse"
        | "IncorrectState"
        | "IdempotentParameterMismatch" => CloudErrorKind::Conflict,
        _ => CloudErrorKind::Other,
    };
    CloudError { api, kind, code: error.code.to_string(), message: error.message.clone(), retry_after: None }
}

fn ec2_eni(eni: &Eni) -> Ec2Eni {
    Ec2Eni {
        eni: eni.id.clone(),
        mac: eni.mac,
        attachment: eni.attachment.as_ref().map(|attachment| Ec2Attachment {
            attachment: attachment.id.clone(),
            instance: attachment.instance.clone(),
            device: attachment.device,
            card: attachment.card,
            delete_on_termination: attachment.delete_on_termination,
        }),
        subnet: eni.subnet.clone(),
        primary_ip: eni.primary,
        secondary_ips: eni.secondaries.clone(),
        prefixes: eni.prefixes.clone(),
        ipv6_prefixes: eni.ipv6_prefixes.clone(),
        security_groups: eni.groups.clone(),
        tags: eni.tags.clone(),
        interface_type: match eni.interface_type {
            state::InterfaceType::Efa => InterfaceType::Efa,
            state::InterfaceType::EfaOnly => InterfaceType::EfaOnly,
            state::InterfaceType::Trunk => InterfaceType::Trunk,
            state::InterfaceType::Interface | state::InterfaceType::NatGateway => InterfaceType::Interface,
        },
        description: eni.description.clone(),
    }
}

fn ec2_subnet(subnet: &state::Subnet) -> Ec2Subnet {
    Ec2Subnet {
        subnet: subnet.id.clone(),
        cidr: subnet.cidr,
        ipv6_cidr: subnet.ipv6_cidr,
        availability_zone: subnet.availability_zone.clone(),
        available: subnet.available(),
        tags: subnet.tags.clone(),
    }
}

fn want(count: AddressCount) -> WantIpv4 {
    match count {
        AddressCount::Secondary(count) => WantIpv4 { count, ..WantIpv4::default() },
        AddressCount::Prefixes(prefix_count) => WantIpv4 { prefix_count, ..WantIpv4::default() },
    }
}

fn filter(name: &str, value: &impl ToString) -> Filter {
    Filter { name: name.into(), values: vec![value.to_string()] }
}

impl Cloud for SimCloud {
    async fn identity(&self) -> Result<InstanceIdentity, CloudError> {
        let state = self.imds()?;
        let instance = &state.instances[&self.0.instance];
        let primary = state.attached(&self.0.instance)[0].mac;
        Ok(InstanceIdentity {
            instance: self.0.instance.clone(),
            instance_type: instance.instance_type.clone(),
            availability_zone: "us-east-1a".into(),
            region: "us-east-1".into(),
            primary_mac: primary,
            vpc: self.0.vpc.clone(),
        })
    }

    async fn imds_enis(&self) -> Result<Vec<ImdsEni>, CloudError> {
        let state = self.imds()?;
        let now = self.now();
        let omitted = lock(&self.0.switches).omitted;
        let shown = state.attached(&self.0.instance).into_iter().filter_map(|eni| {
            let attachment = eni.attachment.as_ref().filter(|attachment| attachment.has_link(now))?;
            if omitted == Some(attachment.device) {
                return None;
            }
            Some(ImdsEni {
                eni: eni.id.clone(),
                mac: eni.mac,
                device: attachment.device,
                card: attachment.card,
                subnet: eni.subnet.clone(),
                subnet_cidr: state.subnets[&eni.subnet].cidr,
                primary_ip: eni.primary,
                secondary_ips: eni.secondaries.clone(),
                prefixes: eni.prefixes.clone(),
                ipv6_prefixes: eni.ipv6_prefixes.clone(),
                security_groups: eni.groups.clone(),
            })
        });
        Ok(shown.collect())
    }

    async fn vpc_cidrs(&self) -> Result<Vec<Ipv4Net>, CloudError> {
        self.imds()?;
        Ok(vec!["10.0.0.0/16".parse().unwrap()])
    }

    async fn describe_enis(&self, enis: &[EniId]) -> Result<Vec<Ec2Eni>, CloudError> {
        // By filter, because an id that is unknown is left out of the answer then.
        let values = enis.iter().map(ToString::to_string).collect();
        let filters = vec![Filter { name: "network-interface-id".into(), values }];
        self.describe(Describe { filters, ..Describe::default() }).await
    }

    async fn owned_enis(&self, instance: &InstanceId) -> Result<Vec<Ec2Eni>, CloudError> {
        let mut owned = Vec::new();
        for name in ["attachment.instance-id", "tag:node.k8s.amazonaws.com/instance_id"] {
            owned.extend(
                self.describe(Describe { filters: vec![filter(name, instance)], ..Describe::default() }).await?,
            );
        }
        let mut seen = BTreeSet::new();
        owned.retain(|eni: &Ec2Eni| seen.insert(eni.eni.clone()));
        Ok(owned)
    }

    async fn subnets(&self, vpc: &VpcId, availability_zone: &str) -> Result<Vec<Ec2Subnet>, CloudError> {
        let filters = vec![filter("vpc-id", vpc), filter("availability-zone", &availability_zone)];
        let describe: Describe<SubnetId> = Describe { filters, ..Describe::default() };
        match self.call(Api::DescribeSubnets, describe).await? {
            Reply::Subnets(listed) => Ok(listed.items.iter().map(ec2_subnet).collect()),
            other => panic!("DescribeSubnets answered {other:?}"),
        }
    }

    async fn instance_limits(&self, instance_type: &str) -> Result<InstanceLimits, CloudError> {
        panic!("{instance_type} is in the table");
    }

    async fn create_eni(&self, request: &CreateEni) -> Result<Ec2Eni, CloudError> {
        let create = CreateNetworkInterface {
            description: request.description.clone(),
            groups: request.security_groups.clone(),
            want: want(request.addresses),
            want_ipv6: WantIpv6 { prefix_count: u32::from(request.ipv6_prefix), ..WantIpv6::default() },
            tags: request.tags.clone(),
            client_token: Some(request.client_token.clone()),
            ..CreateNetworkInterface::new(request.subnet.clone())
        };
        match self.call(Api::CreateNetworkInterface, create).await? {
            Reply::NetworkInterface(eni) => Ok(ec2_eni(&eni)),
            other => panic!("CreateNetworkInterface answered {other:?}"),
        }
    }

    async fn attach_eni(
        &self,
        eni: &EniId,
        instance: &InstanceId,
        card: u32,
        device: u32,
    ) -> Result<AttachmentId, CloudError> {
        let attach = AttachNetworkInterface { eni: eni.clone(), instance: instance.clone(), card, device };
        match self.call(Api::AttachNetworkInterface, attach).await? {
            Reply::Attached { attachment, .. } => Ok(attachment),
            other => panic!("AttachNetworkInterface answered {other:?}"),
        }
    }

    async fn delete_on_termination(&self, eni: &EniId, attachment: &AttachmentId) -> Result<(), CloudError> {
        let attribute = EniAttribute::DeleteOnTermination(attachment.clone(), true);
        let modify = ModifyNetworkInterfaceAttribute { eni: eni.clone(), attribute };
        self.done(Api::ModifyNetworkInterfaceAttribute, modify).await
    }

    async fn set_groups(&self, eni: &EniId, groups: &[SecurityGroupId]) -> Result<(), CloudError> {
        let attribute = EniAttribute::Groups(groups.to_vec());
        let modify = ModifyNetworkInterfaceAttribute { eni: eni.clone(), attribute };
        self.done(Api::ModifyNetworkInterfaceAttribute, modify).await
    }

    async fn assign(&self, eni: &EniId, count: AddressCount) -> Result<Assigned, CloudError> {
        let assign = AssignPrivateIpAddresses { eni: eni.clone(), want: want(count), allow_reassignment: false };
        match self.call(Api::AssignPrivateIpAddresses, assign).await? {
            Reply::AssignedIpv4 { addresses, prefixes, .. } => {
                Ok(Assigned { addresses: addresses.into_iter().collect(), prefixes: prefixes.into_iter().collect() })
            }
            other => panic!("AssignPrivateIpAddresses answered {other:?}"),
        }
    }

    async fn assign_ipv6_prefix(&self, eni: &EniId) -> Result<Ipv6Net, CloudError> {
        let want = WantIpv6 { prefix_count: 1, ..WantIpv6::default() };
        match self.call(Api::AssignIpv6Addresses, AssignIpv6Addresses { eni: eni.clone(), want }).await? {
            Reply::Ipv6 { prefixes, .. } => Ok(prefixes[0]),
            other => panic!("AssignIpv6Addresses answered {other:?}"),
        }
    }

    async fn unassign(&self, eni: &EniId, what: &Unassign) -> Result<(), CloudError> {
        let unassign = UnassignPrivateIpAddresses {
            eni: eni.clone(),
            addresses: what.addresses.iter().copied().collect(),
            prefixes: what.prefixes.iter().copied().collect(),
        };
        self.done(Api::UnassignPrivateIpAddresses, unassign).await
    }

    async fn detach_eni(&self, attachment: &AttachmentId) -> Result<(), CloudError> {
        let detach = DetachNetworkInterface { attachment: attachment.clone(), force: false };
        self.done(Api::DetachNetworkInterface, detach).await
    }

    async fn delete_eni(&self, eni: &EniId) -> Result<(), CloudError> {
        match self.done(Api::DeleteNetworkInterface, DeleteNetworkInterface { eni: eni.clone() }).await {
            Err(error) if error.kind == CloudErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    async fn tag_eni(&self, eni: &EniId, tags: &BTreeMap<String, String>) -> Result<(), CloudError> {
        let create = CreateTags { resources: vec![eni.to_string()], tags: tags.clone() };
        self.done(Api::CreateTags, create).await
    }

    async fn describe_subnet(&self, subnet: &SubnetId) -> Result<Ec2Subnet, CloudError> {
        let describe = Describe { ids: vec![subnet.clone()], ..Describe::default() };
        match self.call(Api::DescribeSubnets, describe).await? {
            Reply::Subnets(listed) => Ok(ec2_subnet(&listed.items[0])),
            other => panic!("DescribeSubnets answered {other:?}"),
        }
    }
}

/// The host: which pods live on it, and what has been set up.
#[derive(Debug, Clone)]
pub(crate) struct SimHost {
    cloud: SimCloud,
    state: Arc<Mutex<HostState>>,
}

#[derive(Debug, Default)]
pub(crate) struct HostState {
    /// Pods' addresses, as their host routes show them.
    pub(crate) pods: BTreeMap<IpAddr, IfName>,
    /// Whose they are, as the aliases of their links tell.
    pub(crate) attachments: BTreeMap<IpAddr, Attachment>,
    /// Addresses that rules of pods name.
    pub(crate) rules: BTreeSet<IpAddr>,
    /// Netlink does not answer.
    pub(crate) broken: bool,
    /// The node's own part.
    pub(crate) node: Option<NodeNetwork>,
    /// ENIs that are set up.
    pub(crate) enis: BTreeMap<EniId, EniNetwork>,
    /// How often something was changed.
    pub(crate) changes: u32,
}

impl SimHost {
    pub(crate) fn new(cloud: SimCloud) -> Self {
        Self { cloud, state: Arc::default() }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, HostState> {
        lock(&self.state)
    }

    fn has_link(&self, eni: &EniId) -> bool {
        let now = self.cloud.now();
        let mut model = self.cloud.model();
        model.settle(now);
        model.state().links(now).any(|link| link.eni.id == *eni)
    }
}

impl Kernel for SimHost {
    async fn pods(&self, _veth_prefix: &str) -> Result<Pods, KernelError> {
        let (mut pods, attachments, enis, rules) = {
            let state = self.state();
            (state.pods.clone(), state.attachments.clone(), state.enis.clone(), state.rules.clone())
        };
        let dead: BTreeSet<IpAddr> = rules.into_iter().filter(|address| !pods.contains_key(address)).collect();
        pods.extend(dead.iter().map(|address| (*address, IfName::new("unknown").unwrap())));
        let leftovers = enis.values().filter(|eni| !self.has_link(&eni.eni)).map(|eni| eni.table).collect();
        Ok(Pods { view: KernelView { pods }, attachments, dead, leftovers })
    }

    async fn set_up_node(&self, node: &NodeNetwork) -> Result<(), KernelError> {
        let mut state = self.state();
        if state.node.as_ref() != Some(node) {
            state.node = Some(node.clone());
            state.changes += 1;
        }
        drop(state);
        Ok(())
    }

    async fn set_up_eni(&self, eni: &EniNetwork) -> Result<(), KernelError> {
        for _ in 0..300 {
            if self.has_link(&eni.eni) {
                let mut state = self.state();
                state.enis.retain(|id, other| *id == eni.eni || other.table != eni.table);
                if state.enis.get(&eni.eni) != Some(eni) {
                    state.enis.insert(eni.eni.clone(), eni.clone());
                    state.changes += 1;
                }
                drop(state);
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err(KernelError::NoLink(eni.mac))
    }

    async fn clear_table(&self, table: u32) -> Result<(), KernelError> {
        self.state().enis.retain(|_, eni| eni.table != table);
        Ok(())
    }

    async fn clear_pod(&self, addresses: &[IpAddr], _veth_prefix: &str) -> Result<bool, KernelError> {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let mut state = self.state();
        if state.broken {
            let source = Box::new(std::io::Error::other("no answer"));
            return Err(KernelError::Failed { action: "removing rules".to_owned(), source });
        }
        let is_clear = !addresses.iter().any(|address| state.pods.contains_key(address));
        if is_clear {
            state.rules.retain(|address| !addresses.contains(address));
        }
        drop(state);
        Ok(is_clear)
    }
}
