//! The daemon's world in virtual time: vpcsim's model of EC2 behind the `Cloud` seam, and a model of a host behind the
//! `Kernel` seam. Both outlive the daemon, so that it can be killed and started again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sluice_contract::id::{Attachment, AttachmentId, EniId, IfName, InstanceId, SecurityGroupId, SubnetId, VpcId};
use sluice_ipamd_core::cloud::{
    AddressCount, Api, Assigned, CloudError, CloudErrorKind, CreateEni, Ec2Eni, Ec2Subnet, ImdsEni, InstanceIdentity,
    InstanceLimits, Unassign,
};
use sluice_ipamd_core::op::{Op, Outcome};
use sluice_ipamd_core::recover::KernelView;
use sluice_ipamd_core::shared::{Group, Member, VpcRoute};
use sluice_ipamd_sim::translate;
use sluice_vpcsim::model::api::{CreateSubnet, Describe, DescribeRouteTables, DetachNetworkInterface, Filter};
use sluice_vpcsim::model::state::{self, Eni};
use sluice_vpcsim::model::{CallFailure, Model, Reply, Request, SceneInstance, Settings};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cloud::Cloud;
use crate::kernel::{
    Cleared, Disturbance, EniNetwork, Kernel, KernelError, NodeNetwork, PodNetwork, Pods, Repair, Repaired,
};

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

    /// The node's instance.
    pub(crate) fn instance(&self) -> InstanceId {
        self.0.instance.clone()
    }

    /// The node's VPC.
    pub(crate) fn vpc(&self) -> VpcId {
        self.0.vpc.clone()
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
            Err(CallFailure::Api(error)) => Err(translate::cloud_error(api, &error)),
            Err(CallFailure::NoAnswer) => std::future::pending().await,
        }
    }

    /// Makes the calls of an operation.
    async fn carry_out(&self, op: Op) -> Result<Outcome, CloudError> {
        let mut replies = Vec::new();
        for request in translate::requests(&op) {
            replies.push(self.call(op.api(), request).await?);
        }
        translate::outcome(&op, replies)
    }

    async fn done(&self, op: Op) -> Result<(), CloudError> {
        self.carry_out(op).await.map(drop)
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

fn filter(name: &str, values: impl IntoIterator<Item = impl ToString>) -> Filter {
    Filter { name: name.into(), values: values.into_iter().map(|value| value.to_string()).collect() }
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
        let omitted = lock(&self.0.switches).omitted;
        let mut shown = translate::imds_enis(&state, &self.0.instance, self.now());
        shown.retain(|eni| omitted != Some(eni.device));
        Ok(shown)
    }

    async fn vpc_cidrs(&self) -> Result<Vec<Ipv4Net>, CloudError> {
        let state = self.imds()?;
        Ok(state.vpcs[&self.0.vpc].cidrs.clone())
    }

    async fn describe_enis(&self, enis: &[EniId]) -> Result<Vec<Ec2Eni>, CloudError> {
        let ids: Vec<String> = enis.iter().map(ToString::to_string).collect();
        match self.call(Api::DescribeNetworkInterfaces, translate::describe_enis("network-interface-id", &ids)).await? {
            Reply::NetworkInterfaces(listed) => Ok(listed.items.iter().map(translate::ec2_eni).collect()),
            other => panic!("DescribeNetworkInterfaces answered {other:?}"),
        }
    }

    async fn owned_enis(&self, instance: &InstanceId) -> Result<Vec<Ec2Eni>, CloudError> {
        match self.carry_out(Op::Survey { instance: instance.clone() }).await? {
            Outcome::Surveyed(enis) => Ok(enis),
            other => panic!("{other:?}"),
        }
    }

    async fn unattached_enis(&self, cluster: &str) -> Result<Vec<Ec2Eni>, CloudError> {
        let filters = vec![filter("status", ["available"]), filter("tag:cluster.k8s.amazonaws.com/name", [cluster])];
        let describe: Describe<EniId> = Describe { filters, ..Describe::default() };
        match self.call(Api::DescribeNetworkInterfaces, describe).await? {
            Reply::NetworkInterfaces(listed) => Ok(listed.items.iter().map(translate::ec2_eni).collect()),
            other => panic!("DescribeNetworkInterfaces answered {other:?}"),
        }
    }

    async fn living(&self, instances: &BTreeSet<InstanceId>) -> Result<BTreeSet<InstanceId>, CloudError> {
        let filters = vec![filter("instance-id", instances)];
        let describe: Describe<InstanceId> = Describe { filters, ..Describe::default() };
        match self.call(Api::DescribeInstances, describe).await? {
            Reply::Instances(listed) => {
                let now = self.now();
                let living =
                    listed.items.iter().filter(|found| found.instance.terminated_at.is_none_or(|end| end > now));
                Ok(living.map(|found| found.instance.id.clone()).collect())
            }
            other => panic!("DescribeInstances answered {other:?}"),
        }
    }

    async fn members(&self, group: &Group) -> Result<Vec<Member>, CloudError> {
        let member = |state: &state::State, eni: &Eni| {
            let name = |id: &SecurityGroupId| (id.to_string(), state.security_groups[id].name.clone());
            let addresses =
                std::iter::once(&eni.primary).chain(&eni.secondaries).map(|ip| IpNet::from(IpAddr::V4(*ip)));
            let prefixes = eni.prefixes.iter().map(|prefix| IpNet::V4(*prefix));
            Member { groups: eni.groups.iter().map(name).collect(), cidrs: addresses.chain(prefixes).collect() }
        };
        let seen = |enis: Vec<Eni>| {
            let model = self.model();
            Ok(enis.iter().map(|eni| member(model.state(), eni)).collect())
        };
        if group.tags.is_empty() {
            let (name, values) =
                if group.ids.is_empty() { ("group-name", &group.names) } else { ("group-id", &group.ids) };
            let describe: Describe<EniId> = Describe { filters: vec![filter(name, values)], ..Describe::default() };
            match self.call(Api::DescribeNetworkInterfaces, describe).await? {
                Reply::NetworkInterfaces(listed) => seen(listed.items),
                other => panic!("DescribeNetworkInterfaces answered {other:?}"),
            }
        } else {
            let filters = group.tags.iter().map(|(key, value)| filter(&format!("tag:{key}"), [value])).collect();
            let describe: Describe<InstanceId> = Describe { filters, ..Describe::default() };
            match self.call(Api::DescribeInstances, describe).await? {
                Reply::Instances(listed) => seen(listed.items.into_iter().flat_map(|found| found.enis).collect()),
                other => panic!("DescribeInstances answered {other:?}"),
            }
        }
    }

    async fn routes(&self, vpc: &VpcId) -> Result<Vec<VpcRoute>, CloudError> {
        let filters = vec![filter("vpc-id", [vpc])];
        let describe: DescribeRouteTables = Describe { filters, ..Describe::default() };
        let tables = match self.call(Api::DescribeRouteTables, describe).await? {
            Reply::RouteTables(listed) => listed.items,
            other => panic!("DescribeRouteTables answered {other:?}"),
        };
        let route = |(destination, target): (&IpNet, &state::RouteTarget)| match (destination, target) {
            (IpNet::V4(destination), state::RouteTarget::Peering(id)) => {
                Some(VpcRoute { destination: *destination, target: id.to_string() })
            }
            _ => None,
        };
        Ok(tables.iter().flat_map(|table| &table.routes).filter_map(route).collect())
    }

    async fn subnets(&self, vpc: &VpcId, availability_zone: &str) -> Result<Vec<Ec2Subnet>, CloudError> {
        let op = Op::Subnets { vpc: vpc.clone(), availability_zone: availability_zone.to_owned() };
        match self.carry_out(op).await? {
            Outcome::Subnets(subnets) => Ok(subnets),
            other => panic!("{other:?}"),
        }
    }

    async fn instance_limits(&self, instance_type: &str) -> Result<InstanceLimits, CloudError> {
        panic!("{instance_type} is in the table");
    }

    async fn create_eni(&self, request: &CreateEni) -> Result<Ec2Eni, CloudError> {
        match self.carry_out(Op::Create(request.clone())).await? {
            Outcome::Created(eni) => Ok(eni),
            other => panic!("{other:?}"),
        }
    }

    async fn attach_eni(
        &self,
        eni: &EniId,
        instance: &InstanceId,
        card: u32,
        device: u32,
    ) -> Result<AttachmentId, CloudError> {
        match self.carry_out(Op::Attach { eni: eni.clone(), instance: instance.clone(), card, device }).await? {
            Outcome::Attached(attachment) => Ok(attachment),
            other => panic!("{other:?}"),
        }
    }

    async fn delete_on_termination(&self, eni: &EniId, attachment: &AttachmentId) -> Result<(), CloudError> {
        self.done(Op::DeleteOnTermination { eni: eni.clone(), attachment: attachment.clone() }).await
    }

    async fn set_groups(&self, eni: &EniId, groups: &[SecurityGroupId]) -> Result<(), CloudError> {
        self.done(Op::SetGroups { eni: eni.clone(), groups: groups.to_vec() }).await
    }

    async fn assign(&self, eni: &EniId, count: AddressCount) -> Result<Assigned, CloudError> {
        match self.carry_out(Op::Assign { eni: eni.clone(), count }).await? {
            Outcome::Assigned(assigned) => Ok(assigned),
            other => panic!("{other:?}"),
        }
    }

    async fn assign_ipv6_prefix(&self, eni: &EniId) -> Result<Ipv6Net, CloudError> {
        match self.carry_out(Op::AssignIpv6 { eni: eni.clone() }).await? {
            Outcome::AssignedIpv6(net) => Ok(net),
            other => panic!("{other:?}"),
        }
    }

    async fn unassign(&self, eni: &EniId, what: &Unassign) -> Result<(), CloudError> {
        self.done(Op::Unassign { eni: eni.clone(), what: what.clone() }).await
    }

    async fn detach_eni(&self, attachment: &AttachmentId) -> Result<(), CloudError> {
        let detach = DetachNetworkInterface { attachment: attachment.clone(), force: false };
        self.call(Api::DetachNetworkInterface, detach).await.map(drop)
    }

    async fn delete_eni(&self, eni: &EniId) -> Result<(), CloudError> {
        match self.done(Op::Delete { eni: eni.clone() }).await {
            Err(error) if error.kind == CloudErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    async fn tag_eni(&self, eni: &EniId, tags: &BTreeMap<String, String>) -> Result<(), CloudError> {
        self.done(Op::Tag { eni: eni.clone(), tags: tags.clone() }).await
    }

    async fn describe_subnet(&self, subnet: &SubnetId) -> Result<Ec2Subnet, CloudError> {
        let describe = Describe { ids: vec![subnet.clone()], ..Describe::default() };
        match self.call(Api::DescribeSubnets, describe).await? {
            Reply::Subnets(listed) => Ok(translate::ec2_subnet(&listed.items[0])),
            other => panic!("DescribeSubnets answered {other:?}"),
        }
    }
}

/// The host: which pods live on it, and what has been set up.
#[derive(Debug, Clone)]
pub(crate) struct SimHost {
    cloud: SimCloud,
    state: Arc<Mutex<HostState>>,
    /// Somebody changes something.
    pub(crate) disturbed: Arc<Notify>,
}

#[derive(Debug, Default)]
pub(crate) struct HostState {
    /// Pods' addresses, as their host routes show them.
    pub(crate) pods: BTreeMap<IpAddr, IfName>,
    /// Whose they are, as the aliases of their links tell.
    pub(crate) attachments: BTreeMap<IpAddr, Attachment>,
    /// The pods' interfaces that say whose they are.
    pub(crate) marked: BTreeMap<IfName, Attachment>,
    /// Addresses that rules of pods name.
    pub(crate) rules: BTreeSet<IpAddr>,
    /// Veths of pods that no route in the main table leads to.
    pub(crate) veths: BTreeSet<IfName>,
    /// Rules go by themselves before they are removed.
    pub(crate) rules_go: bool,
    /// Netlink does not answer.
    pub(crate) broken: bool,
    /// The node's own part.
    pub(crate) node: Option<NodeNetwork>,
    /// ENIs that are set up.
    pub(crate) enis: BTreeMap<EniId, EniNetwork>,
    /// How often something was changed.
    pub(crate) changes: u32,
    /// When flows were to be forgotten, and of which addresses.
    pub(crate) forgotten: Vec<(Instant, BTreeSet<IpAddr>)>,
    /// So many of the next times that fails.
    pub(crate) failing_flows: u32,
    /// There is no connection tracking.
    pub(crate) no_conntrack: bool,
    /// When repairs were asked for, and of which pods.
    pub(crate) repaired: Vec<(Instant, Vec<PodNetwork>)>,
    /// So many of the next repairs fail.
    pub(crate) failing_repairs: u32,
    /// What is heard of next; nothing is a rule that was deleted.
    pub(crate) change: Option<String>,
    /// A repair that fails is taken back, which is heard of, too.
    pub(crate) echoes: bool,
}

impl SimHost {
    pub(crate) fn new(cloud: SimCloud) -> Self {
        Self { cloud, state: Arc::default(), disturbed: Arc::default() }
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
        let (mut pods, attachments, enis, rules, marked, mut veths) = {
            let state = self.state();
            let (pods, attachments, marked) = (state.pods.clone(), state.attachments.clone(), state.marked.clone());
            (pods, attachments, state.enis.clone(), state.rules.clone(), marked, state.veths.clone())
        };
        veths.extend(pods.values().cloned());
        let dead: BTreeSet<IpAddr> = rules.into_iter().filter(|address| !pods.contains_key(address)).collect();
        pods.extend(dead.iter().map(|address| (*address, IfName::new("unknown").unwrap())));
        let leftovers = enis.values().filter(|eni| !self.has_link(&eni.eni)).map(|eni| eni.table).collect();
        Ok(Pods { view: KernelView { pods }, attachments, dead, leftovers, marked, veths })
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

    async fn clear_pod(&self, addresses: &[IpAddr], _veth_prefix: &str) -> Result<Cleared, KernelError> {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let mut state = self.state();
        if state.broken {
            let source = Box::new(std::io::Error::other("no answer"));
            return Err(KernelError::Failed { action: "removing rules".to_owned(), source });
        }
        if addresses.iter().any(|address| state.pods.contains_key(address)) {
            return Ok(Cleared::InUse);
        }
        let before = state.rules.len();
        state.rules.retain(|address| !addresses.contains(address));
        let removed = state.rules.len() < before && !state.rules_go;
        drop(state);
        Ok(if removed { Cleared::Removed } else { Cleared::Nothing })
    }

    async fn clear_route(&self, address: IpAddr, dev: &IfName, _attachment: &Attachment) -> Result<bool, KernelError> {
        let mut state = self.state();
        let before = state.pods.len();
        state.pods.retain(|routed, by| *routed != address || by != dev);
        let removed = state.pods.len() < before;
        drop(state);
        Ok(removed)
    }

    async fn clear_link(&self, dev: &IfName, _attachment: &Attachment) -> Result<bool, KernelError> {
        let mut state = self.state();
        let removed = state.marked.remove(dev).is_some();
        state.pods.retain(|_, by| by != dev);
        drop(state);
        Ok(removed)
    }

    async fn forget_flows(&self, addresses: &BTreeSet<IpAddr>) -> Result<usize, KernelError> {
        let mut state = self.state();
        // The last of them: a hundred thousand pods leave no trace here either.
        let old = state.forgotten.len().saturating_sub(63);
        state.forgotten.drain(..old);
        state.forgotten.push((Instant::now(), addresses.clone()));
        let fails = state.failing_flows > 0;
        state.failing_flows = state.failing_flows.saturating_sub(1);
        let impossible = state.no_conntrack;
        drop(state);
        let source = Box::new(std::io::Error::other("no answer"));
        if impossible {
            return Err(KernelError::NoConntrack(source));
        }
        if fails {
            return Err(KernelError::Failed { action: "forgetting flows".to_owned(), source });
        }
        Ok(addresses.len())
    }

    async fn disturbed(&self, _veth_prefix: &str, not_before: Instant) -> Result<Disturbance, KernelError> {
        self.disturbed.notified().await;
        let since = Instant::now();
        tokio::time::sleep_until(not_before).await;
        let change = self.state().change.take().unwrap_or_else(|| "a rule was deleted".to_owned());
        Ok(Disturbance { changes: vec![change], since })
    }

    async fn repair(&self, pods: &[PodNetwork]) -> Repaired {
        let mut state = self.state();
        state.repaired.push((Instant::now(), pods.to_vec()));
        let fails = state.failing_repairs > 0;
        state.failing_repairs = state.failing_repairs.saturating_sub(1);
        let echoes = state.echoes && fails;
        if echoes {
            state.change.get_or_insert_with(|| "a route was taken back".to_owned());
        }
        drop(state);
        if echoes {
            self.disturbed.notify_one();
        }
        if fails {
            let source = Box::new(std::io::Error::other("no answer"));
            let error = KernelError::Failed { action: "mending".to_owned(), source };
            return Repaired { made: Vec::new(), failed: vec![error] };
        }
        let rule = Repair { kind: "rule", op: "rule add".to_owned(), reason: "missing".to_owned() };
        Repaired { made: vec![rule], failed: Vec::new() }
    }
}
