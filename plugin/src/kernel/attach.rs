//! Makes an attachment, or brings a half-made one to its end.

use std::error::Error;
use std::fmt;
use std::net::IpAddr;

use nix::errno::Errno;
use sluice_contract::cni::{ErrorCode, chain};
use sluice_contract::id::IfName;
use sluice_contract::node::{RULE_POD_INTERFACE, TABLE_MAIN, pod_table, veth};
use sluice_hostnet::desired::{Desired, Devices, RouteScope, RuleScope};
use sluice_hostnet::host::{ExecuteError, Host, ObserveError};
use sluice_hostnet::netlink::{LinkError, NetlinkError, OpenError, VethSpec};
use sluice_hostnet::netns::Namespace;
use sluice_hostnet::plan::{Op, Planned, plan};
use sluice_hostnet::state::{Family, Link, LinkKind, Observed, Protocol, Rule};
use sluice_hostnet::tc::TcError;

use super::detach::{routed, rules_of};
use super::uplink::{self, UplinkError};
use super::{are_ends_of_one_veth, is_earlier, is_host_end_of, is_pods, mac_text};
use crate::gate::Gate;
use crate::layout::Layout;

/// Why an attachment could not be made.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error("cannot speak to the kernel")]
    Open(#[source] OpenError),
    #[error("cannot look for links")]
    Look(#[source] LinkError),
    #[error("the sandbox has an interface {name} already (MAC address {mac}), which is not of this attachment")]
    PodNameTaken { name: IfName, mac: String },
    #[error("the host has an interface {name} already (MAC address {mac}), which is not a pod's")]
    HostNameTaken { name: IfName, mac: String },
    #[error("the host has an interface {name} already, {whose}: another pod's name leads to it too")]
    HostNameOfAnother { name: IfName, whose: String },
    #[error("cannot remove the stale {name}")]
    Replace {
        name: IfName,
        #[source]
        source: LinkError,
    },
    #[error("cannot make the way out by the pod's branch ENI")]
    Uplink(#[source] UplinkError),
    #[error("cannot make the veth pair")]
    Create(#[source] LinkError),
    #[error("the kernel did not tell the number of {name}")]
    NoPeer { name: IfName },
    #[error("cannot close {name} until there is a policy")]
    Gate {
        name: IfName,
        #[source]
        source: TcError,
    },
    #[error("cannot limit the traffic of {name} as the pod's bandwidth annotations want it")]
    Limit {
        name: IfName,
        #[source]
        source: NetlinkError,
    },
    #[error("cannot mark {name}")]
    Mark {
        name: IfName,
        #[source]
        source: LinkError,
    },
    #[error("cannot look at the {side}")]
    Observe {
        side: &'static str,
        #[source]
        source: ObserveError,
    },
    #[error("cannot set up the {side}")]
    Execute {
        side: &'static str,
        #[source]
        source: ExecuteError,
    },
}

impl StepError {
    /// Whether something else has one of the names.
    const fn is_conflict(&self) -> bool {
        matches!(self, Self::PodNameTaken { .. } | Self::HostNameTaken { .. } | Self::HostNameOfAnother { .. })
    }
}

/// A failed ADD.
#[derive(Debug)]
pub(crate) struct AttachError {
    step: StepError,
    undone: bool,
    leftovers: Vec<String>,
}

impl AttachError {
    /// Nothing of the attachment is there.
    const fn absent(step: StepError) -> Self {
        Self { step, undone: true, leftovers: Vec::new() }
    }

    /// Whether nothing of the attachment is there, so that its address can be given back. Where that is not known, or
    /// where it was there before this ADD, its pod may be running: its DEL will tell.
    pub(crate) const fn is_undone(&self) -> bool {
        self.undone
    }

    /// What could not be taken back, a line each.
    pub(crate) fn leftovers(&self) -> &[String] {
        &self.leftovers
    }

    /// The code on the wire.
    pub(crate) const fn code(&self) -> ErrorCode {
        match &self.step {
            step if step.is_conflict() => ErrorCode::Conflict,
            StepError::Uplink(error) => error.code(),
            _ => ErrorCode::Kernel,
        }
    }
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.step.fmt(f)
    }
}

impl Error for AttachError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.step.source()
    }
}

impl From<StepError> for AttachError {
    fn from(step: StepError) -> Self {
        Self { step, undone: false, leftovers: Vec::new() }
    }
}

/// Makes the attachment of `layouts`, an interface each, in `netns`: all of them or none. The same attachment again is
/// brought to the same state; what another sandbox of the same pod has left under the host's names is replaced. Where a
/// policy is to come, `gate` keeps the pod closed until then.
pub(crate) async fn attach(layouts: &[Layout], netns: &Namespace, gate: Option<&Gate>) -> Result<(), AttachError> {
    let host = Host::current().map_err(StepError::Open)?;
    let pod = Host::of(netns.clone()).map_err(StepError::Open)?;
    let mut done = Vec::with_capacity(layouts.len());
    for layout in layouts {
        match attach_interface(layout, &host, &pod, gate).await {
            Ok(made) => done.push(made),
            Err(mut error) => {
                undo_others(&mut error, layouts, &done, &host, &pod).await;
                return Err(error);
            }
        }
    }
    Ok(())
}

/// Makes one interface. Answers the pod's end where this ADD has made it, none where it was there.
async fn attach_interface(
    layout: &Layout,
    host: &Host,
    pod: &Host,
    gate: Option<&Gate>,
) -> Result<Option<Link>, AttachError> {
    let Some(branch) = &layout.branch else { return attach_veth(layout, host, pod, gate).await };
    // Before the veth, so that nothing that the pod sends goes another way.
    let uplink = uplink::raise(layout, branch, host).await.map_err(StepError::Uplink)?;
    match attach_veth(layout, host, pod, gate).await {
        Err(mut error) => {
            error.leftovers.extend(uplink::lower(layout, branch, host, &uplink).await);
            error.undone &= error.leftovers.is_empty();
            Err(error)
        }
        made => made,
    }
}

/// Takes back what this ADD has made before one of the interfaces failed, the last first: a pod has all its interfaces
/// or none. What was there before stays, because its pod may be running.
async fn undo_others(error: &mut AttachError, layouts: &[Layout], done: &[Option<Link>], host: &Host, pod: &Host) {
    for (layout, made) in layouts.iter().zip(done).rev() {
        match made {
            Some(made) => error.leftovers.extend(remove(layout, host, pod, made).await),
            None => error.undone = false,
        }
    }
    // An earlier ADD may have come further than this one.
    for later in layouts.iter().skip(done.len().saturating_add(1)) {
        let there = host.netlink().link_by_name(&later.host).await;
        let is_absent = |link: Option<Link>| link.is_none_or(|link| !is_host_end_of(&link, &later.attachment));
        error.undone &= there.is_ok_and(is_absent);
    }
    error.undone &= error.leftovers.is_empty();
}

async fn attach_veth(
    layout: &Layout,
    host: &Host,
    pod: &Host,
    gate: Option<&Gate>,
) -> Result<Option<Link>, AttachError> {
    // Nearly always both names are free, so that nobody has to look first: the kernel says when one is taken.
    let made = match create(layout, host, pod).await {
        Err(error) if error.errno() == Some(Errno::EEXIST) => {
            let in_pod = pod.netlink().link_by_name(&layout.attachment.ifname).await.map_err(StepError::Look)?;
            let on_host = host.netlink().link_by_name(&layout.host).await.map_err(StepError::Look)?;
            if let (Some(pod_end), Some(host_end)) = (&in_pod, &on_host)
                && is_host_end_of(host_end, &layout.attachment)
                && are_ends_of_one_veth(pod_end, host_end)
            {
                converge(layout, host, pod, host_end, gate).await?;
                return Ok(None);
            }
            let lost = on_host.as_ref().is_some_and(|link| is_host_end_of(link, &layout.attachment));
            clear_the_way(layout, host, pod, in_pod, on_host).await.map_err(|step| match step {
                step if step.is_conflict() && !lost => AttachError::absent(step),
                step => step.into(),
            })?;
            create(layout, host, pod).await.map_err(|error| AttachError::absent(StepError::Create(error)))?
        }
        made => made.map_err(StepError::Create)?,
    };
    match furnish(layout, host, pod, &made, gate).await {
        Ok(()) => Ok(Some(made)),
        Err(step) => Err(undo(layout, pod, &made, step).await),
    }
}

/// The veth pair, marked by its MAC addresses.
async fn create(layout: &Layout, host: &Host, pod: &Host) -> Result<Link, LinkError> {
    let spec = VethSpec {
        name: &layout.attachment.ifname,
        mac: Some(layout.pod_mac),
        // IPv6 may have to be switched on first.
        up: !layout.has_v6(),
        peer_name: &layout.host,
        peer_mac: Some(layout.host_mac),
        peer_namespace: Some(host.namespace()),
        mtu: layout.mtu,
    };
    pod.netlink().create_veth(&spec).await
}

/// Takes the veth back, and with it the other end and all that stands on either. The host's rules were taken back where
/// they were made; the pod's may have been made before something else failed.
async fn undo(layout: &Layout, pod: &Host, made: &Link, step: StepError) -> AttachError {
    let mut error = AttachError::absent(step);
    if let StepError::Execute { source, .. } = &error.step {
        let failures = source.not_undone.iter();
        error.leftovers = failures.map(|(op, cause)| format!("left behind: {op}: {}", chain(cause))).collect();
    }
    error.leftovers.extend(delete_veth(layout, pod, made).await);
    error.leftovers.extend(delete_rules(layout, pod, layout.pod_rules()).await);
    error.undone = error.leftovers.is_empty();
    error
}

/// Takes a whole interface back. Answers what is left. As long as the link is there, ipamd takes the rules' going for
/// somebody's mistake and puts them back.
async fn remove(layout: &Layout, host: &Host, pod: &Host, made: &Link) -> Vec<String> {
    let mut left: Vec<String> = delete_veth(layout, pod, made).await.into_iter().collect();
    left.extend(delete_rules(layout, pod, layout.pod_rules()).await);
    left.extend(delete_rules(layout, host, layout.host().rules).await);
    left
}

async fn delete_veth(layout: &Layout, pod: &Host, made: &Link) -> Option<String> {
    let failed = pod.netlink().delete_link(made.index).await.err();
    failed.map(|cause| format!("left behind: {}: {}", layout.host, chain(&cause)))
}

async fn delete_rules(layout: &Layout, side: &Host, rules: Vec<Rule>) -> Option<String> {
    let ops: Vec<_> = rules.into_iter().map(|rule| Planned::new(Op::DeleteRule(rule), "the ADD has failed")).collect();
    let failed = side.execute(&ops).await.err();
    failed.map(|cause| format!("left behind: rules of {}: {}", layout.host, chain(&cause)))
}

/// Removes what stands under one of the names and may be removed.
async fn clear_the_way(
    layout: &Layout,
    host: &Host,
    pod: &Host,
    in_pod: Option<Link>,
    on_host: Option<Link>,
) -> Result<(), StepError> {
    if let Some(link) = in_pod {
        if link.mac != Some(layout.pod_mac) {
            return Err(StepError::PodNameTaken { name: link.name, mac: mac_text(link.mac) });
        }
        // Ours, but its other end is not where it belongs.
        let name = link.name;
        pod.netlink().delete_link(link.index).await.map_err(|source| StepError::Replace { name, source })?;
    }
    let Some(link) = on_host else { return Ok(()) };
    if !is_host_end_of(&link, &layout.attachment) {
        if !is_pods(&link) {
            return Err(StepError::HostNameTaken { name: link.name, mac: mac_text(link.mac) });
        }
        if !is_earlier(&link, layout.index) {
            let marked = link.alias.as_deref().and_then(veth::attachment);
            let whose = marked.map_or_else(|| "a pod's without mark".to_owned(), |marked| format!("that of {marked}"));
            return Err(StepError::HostNameOfAnother { name: link.name, whose });
        }
    }
    // A pod's name is unique while it lives: this is an earlier sandbox of the same pod, on its way out. Between
    // looking and deleting it may have gone and its name may be another's; its number is not.
    match host.netlink().delete_link(link.index).await {
        Err(error) if error.errno() != Some(Errno::ENODEV) => {
            Err(StepError::Replace { name: link.name, source: error })
        }
        _ => Ok(()),
    }
}

/// Everything but the veth itself. The gate comes first, while the host's end is down, and the host's route last:
/// nothing reaches the pod before.
async fn furnish(layout: &Layout, host: &Host, pod: &Host, made: &Link, gate: Option<&Gate>) -> Result<(), StepError> {
    let index = made.peer.ok_or_else(|| StepError::NoPeer { name: layout.host.clone() })?;
    if let Some(gate) = gate {
        gate.close_new(host.netlink(), index)
            .await
            .map_err(|source| StepError::Gate { name: layout.host.clone(), source })?;
    }
    let alias = veth::alias(&layout.attachment);
    host.netlink()
        .set_alias(index, &alias)
        .await
        .map_err(|source| StepError::Mark { name: layout.host.clone(), source })?;
    let host_end = Link {
        index,
        name: layout.host.clone(),
        mac: Some(layout.host_mac),
        mtu: layout.mtu,
        up: false,
        kind: LinkKind::Veth,
        peer: Some(made.index),
        peer_netns: None,
        alias: Some(alias),
        master: None,
    };
    limit(layout, host, pod, (index, made.index)).await?;
    // A new link has nothing yet, so that nothing has to be read.
    let fresh = |link: &Link| Observed { links: vec![link.clone()], ..Observed::default() };
    execute("pod's side", pod, &plan(&fresh(made), &layout.pod()), made).await?;
    let mut ops = plan(&fresh(&host_end), &layout.host());
    ops.extend(plan(&fresh(&host_end), &layout.host_routes()));
    execute("host's side", host, &ops, &host_end).await
}

/// Limits both ends as the runtime wants it.
async fn limit(layout: &Layout, host: &Host, pod: &Host, (host_end, pod_end): (u32, u32)) -> Result<(), StepError> {
    let (to_pod, from_pod) = layout.limits();
    for (side, index, limit) in [(host, host_end, to_pod), (pod, pod_end, from_pod)] {
        if let Some(limit) = limit {
            let failed = |source| StepError::Limit { name: layout.host.clone(), source };
            side.netlink().limit(index, limit).await.map_err(failed)?;
        }
    }
    Ok(())
}

/// Brings an attachment that is there to what it should be. What is right is not touched: its pod may be running.
async fn converge(
    layout: &Layout,
    host: &Host,
    pod: &Host,
    host_end: &Link,
    gate: Option<&Gate>,
) -> Result<(), StepError> {
    // One that is up has been closed before, and policyd sees to it that it is gated, in whichever way it is by now.
    if let Some(gate) = gate.filter(|_| !host_end.up) {
        gate.close(host.netlink(), host_end.index)
            .await
            .map_err(|source| StepError::Gate { name: layout.host.clone(), source })?;
    }
    let alias = veth::alias(&layout.attachment);
    if host_end.alias.as_ref() != Some(&alias) {
        host.netlink()
            .set_alias(host_end.index, &alias)
            .await
            .map_err(|source| StepError::Mark { name: layout.host.clone(), source })?;
    }
    let mut in_pod = layout.pod();
    in_pod.scope.addresses.insert(layout.attachment.ifname.clone());
    if layout.index > 0 {
        // Whatever else leads to its table is of an address that it had before.
        let scope = |family| RuleScope {
            table: Some(pod_table(layout.index)),
            ..RuleScope::priority(family, RULE_POD_INTERFACE)
        };
        in_pod.scope.rules.extend(Family::ALL.map(scope));
    }
    let observed = observe("pod's side", pod, &in_pod).await?;
    execute_unknown("pod's side", pod, &plan(&observed, &in_pod)).await?;

    let before = layout.host_again();
    let mut last = layout.host_routes();
    for family in Family::ALL {
        let devices = Devices::Named(layout.host.clone());
        let ours =
            RouteScope { protocols: Some([Protocol::BOOT].into()), ..RouteScope::devices(TABLE_MAIN, family, devices) };
        last.scope.routes.insert(ours);
    }
    let all = Desired { routes: last.routes.clone(), scope: last.scope.clone(), ..before.clone() };
    let observed = observe("host's side", host, &all).await?;
    let mut ops = plan(&observed, &before);
    ops.extend(plan(&observed, &last));
    // Whatever else is routed here was the attachment's before ipamd gave it other addresses.
    let wanted = |ip: &IpAddr| layout.all().any(|own| own == *ip);
    let old = routed(&observed).filter(|(ip, dev)| **dev == layout.host && !wanted(ip)).map(|(ip, _)| ip).collect();
    let gone = rules_of(&observed, &old).into_iter().map(Op::DeleteRule);
    ops.extend(gone.map(|op| Planned::new(op, "the attachment has other addresses now")));
    execute_unknown("host's side", host, &ops).await
}

async fn observe(side: &'static str, host: &Host, desired: &Desired) -> Result<Observed, StepError> {
    host.observe(&desired.view()).await.map_err(|source| StepError::Observe { side, source })
}

async fn execute(side: &'static str, host: &Host, ops: &[Planned], link: &Link) -> Result<(), StepError> {
    let done = host.execute_with(ops, std::slice::from_ref(link)).await;
    done.map(drop).map_err(|source| StepError::Execute { side, source })
}

async fn execute_unknown(side: &'static str, host: &Host, ops: &[Planned]) -> Result<(), StepError> {
    host.execute(ops).await.map(drop).map_err(|source| StepError::Execute { side, source })
}
