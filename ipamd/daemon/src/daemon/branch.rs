//! Pods with security groups of their own: their ADDs wait until the cluster has told of their branch ENI, and have nothing of
//! the pool. That a pod has none is known only when its object is, so that none goes past its security groups.

use std::net::IpAddr;

use sluice_contract::id::{Attachment, PodRef};
use sluice_contract::node::branch::{Mode, host_name};
use sluice_contract::rpc::{AddReply, AddRequest, Outcome, PodAddress, Refusal, RefusalCode, Reply as WireReply};
use sluice_ipamd_core::branch::{Held, POD_ENI, PodEni};
use sluice_ipamd_core::ledger::Owner;
use sluice_ipamd_core::limits::takes_trunk;
use sluice_ipamd_core::queue::Token;
use sluice_ipamd_core::state::Event;
use tokio::time::Instant;

use super::requests::Asking;
use super::{Daemon, Reply, ReplyKind};
use crate::cloud::Cloud;
use crate::cluster::{Claim, Claims, Feature, Report};
use crate::inbox::Answer;
use crate::kernel::Kernel;
use crate::log::ErrorChain;

/// What is known of pods with branch ENIs beside the state.
#[derive(Debug, Default)]
pub(super) struct Branching {
    /// The pods that are bound to this node, once they are known.
    claims: Option<Claims>,
    /// ADDs that wait for their pod's branch ENI.
    pending: Vec<Asking>,
    /// What was last asked of the cluster for this node.
    asked: Vec<Feature>,
}

impl Branching {
    /// When the first of those that wait has waited long enough.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.pending.iter().map(|asking| asking.deadline).min()
    }

    /// A request whose asker has gone. Answers whether it waited here.
    pub(super) fn withdraw(&mut self, token: Token) -> bool {
        let before = self.pending.len();
        self.pending.retain(|asking| asking.token != token);
        before != self.pending.len()
    }
}

impl<C: Cloud, K: Kernel> Daemon<C, K> {
    /// The pods of this node, as the cluster has them now.
    pub(super) fn claimed(&mut self, claims: Claims) {
        self.branching.claims = Some(claims);
    }

    /// Takes an ADD in if it is a branch ENI's matter. Gives it back if the pool has to serve it.
    pub(super) fn by_branch(&mut self, asking: Asking) -> Option<Asking> {
        let AddRequest { attachment, pod, .. } = &asking.request;
        if let Some(held) = self.state.branch_of(attachment) {
            let addresses = held.pod_addresses();
            if asking.request.branches {
                self.grant_branch(asking, addresses, true);
            } else {
                self.refuse_asking(asking, plugin_too_old());
            }
            return None;
        }
        let mode = self.parts.config.network.pod_eni.filter(|_| !pod.name.is_empty() && !self.stopping);
        let Some(mode) = mode.filter(|_| self.state.ledger().address_of(attachment).is_none()) else {
            return Some(asking);
        };
        match self.held_of(&asking.request, mode) {
            Ok(None) => Some(asking),
            Ok(Some(_)) if !asking.request.branches => {
                self.refuse_asking(asking, plugin_too_old());
                None
            }
            Ok(Some(held)) => {
                let addresses = held.pod_addresses();
                if self.apply(Event::BranchHeld(Box::new(held))) {
                    self.grant_branch(asking, addresses, false);
                } else {
                    let text =
                        format!("annotation {POD_ENI} of pod {} contradicts what this node has", asking.request.pod);
                    let hint = "ipamd's log says what; the addresses of a branch ENI are nobody else's";
                    self.refuse_asking(asking, Refusal::new(RefusalCode::BadRequest, text).hint(hint));
                }
                None
            }
            Err(refusal) if refusal.code == RefusalCode::PodEniPending && asking.deadline > Instant::now() => {
                if self.branching.pending.len() < usize::try_from(self.parts.config.max_waiting).unwrap_or(usize::MAX) {
                    self.branching.pending.push(asking);
                } else {
                    self.refuse_asking(asking, refusal);
                }
                None
            }
            Err(refusal) => {
                self.refuse_asking(asking, refusal);
                None
            }
        }
    }

    /// Looks anew at those that wait: what they wait for may be there, or their time may have passed.
    pub(super) fn serve_pending(&mut self) {
        for asking in std::mem::take(&mut self.branching.pending) {
            if let Some(asking) = self.by_branch(asking) {
                self.add(asking);
            }
        }
    }

    /// Refuses those that wait: all of them, or those of an attachment.
    pub(super) fn refuse_pending(&mut self, of: Option<&Attachment>, refusal: &Refusal) {
        let is_meant = |asking: &Asking| of.is_none_or(|of| asking.request.attachment == *of);
        let pending = std::mem::take(&mut self.branching.pending);
        let (meant, others): (Vec<Asking>, Vec<Asking>) = pending.into_iter().partition(is_meant);
        self.branching.pending = others;
        for asking in meant {
            self.refuse_asking(asking, refusal.clone());
        }
    }

    /// What an ADD's pod is to have of a branch ENI; nothing where it has no security groups of its own.
    fn held_of(&self, request: &AddRequest, mode: Mode) -> Result<Option<Held>, Refusal> {
        let AddRequest { attachment, pod, netns, host_ifname, .. } = request;
        let annotation = match self.claim_of(pod)? {
            Claim { wants: false, .. } => return Ok(None),
            Claim { annotation: Some(annotation), .. } => annotation,
            Claim { annotation: None, .. } => {
                let text = format!("pod {pod} waits for its branch ENI: it has no annotation {POD_ENI} yet");
                let hint = "AWS's VPC resource controller makes the ENI and writes the annotation; its Events on the pod say \
                            what it waits for, and how many a node can have depends on the instance type";
                return Err(pending(text).hint(hint));
            }
        };
        let read = PodEni::read(annotation, self.parts.config.network.families).map_err(|error| {
            let text = format!("annotation {POD_ENI} of pod {pod} cannot be used: {}", ErrorChain(&error));
            let hint =
                "AWS's VPC resource controller writes it, and nobody else may: delete the pod, so that it is made anew";
            Refusal::new(RefusalCode::BadRequest, text).hint(hint)
        })?;
        let trunk = self.state.trunk().and_then(|trunk| Some((trunk.mac, trunk.device?)));
        let Some((trunk_mac, trunk_device)) = trunk else {
            let text = format!("pod {pod} waits for the node's trunk ENI, which its branch ENI is on");
            let hint = "AWS's VPC resource controller attaches it where the node's CNINode has the feature \
                        SecurityGroupsForPods, the instance type can have one, and a place for an ENI is free";
            return Err(pending(text).hint(hint));
        };
        // Whose branch ENI it is says EC2; two pods of which both are there say that one of them is wrong about it. The one that
        // has it keeps it, whatever somebody has written beside the other.
        let shared = |other: &Held| {
            let has = |ip: &IpAddr| other.addresses.iter().any(|(its, _)| its == ip);
            let address = read.addresses.iter().map(|(ip, _)| *ip).find(has);
            match address {
                _ if other.vlan == read.vlan => Some(format!("VLAN {}", read.vlan)),
                _ if other.eni == read.eni => Some(format!("branch ENI {}", read.eni)),
                address => address.map(|ip| format!("address {ip}")),
            }
        };
        let rival = self.state.branches().find_map(|other| {
            let of = &other.owner.pod;
            let is_other = (&of.namespace, &of.name) != (&pod.namespace, &pod.name);
            shared(other).filter(|_| is_other && self.claim_of(of).is_ok()).map(|what| (what, of))
        });
        if let Some((what, rival)) = rival {
            let text = format!("{what} of pod {pod} is that of pod {rival}, which is still there");
            return Err(pending(text).hint("see which of the two pods' annotations is right, and delete the other pod"));
        }
        Ok(Some(Held {
            owner: Owner {
                attachment: attachment.clone(),
                pod: pod.clone(),
                host_ifname: host_name(host_ifname, mode),
                netns: netns.clone(),
            },
            eni: read.eni,
            mac: read.mac,
            vlan: read.vlan,
            trunk_mac,
            trunk_device,
            addresses: read.addresses,
            mode,
            since: self.parts.clock.now(),
        }))
    }

    /// What the cluster says of a pod.
    fn claim_of(&self, pod: &PodRef) -> Result<&Claim, Refusal> {
        let Some(claims) = &self.branching.claims else {
            let text =
                format!("whether pod {pod} has security groups of its own is not known: no pods of this node are");
            let hint = "with ENABLE_POD_ENI pods wait for the API server; ipamd's log says why it does not tell";
            return Err(pending(text).hint(hint));
        };
        let claim = claims.get(&(pod.namespace.clone(), pod.name.clone()));
        let same = |claim: &&Claim| match (&claim.uid, &pod.uid) {
            (Some(known), Some(asked)) => known == asked,
            _ => true,
        };
        claim.filter(same).ok_or_else(|| {
            pending(format!(
                "whether pod {pod} has security groups of its own is not known: the API server has not told of it"
            ))
        })
    }

    fn grant_branch(&mut self, asking: Asking, addresses: Vec<PodAddress>, held: bool) {
        let Asking { token, request: AddRequest { attachment, .. }, since, answer, .. } = asking;
        if held {
            self.granted_by.remove(&attachment);
        } else {
            self.granted_by.insert(attachment.clone(), token);
        }
        let network = &self.parts.config.network;
        let mode = addresses.first().and_then(|address| address.branch).map(|branch| branch.mode);
        // In strict mode nothing leaves by the node's own address.
        let of = addresses.first().filter(|_| mode == Some(Mode::Standard));
        let egress = of.and_then(|address| network.egress_of(address.ip));
        let outcome =
            Outcome::Add(AddReply { addresses, mtu: network.pod_mtu, egress, disable_ipv6: network.disable_pod_v6 });
        let granted = (!held).then(|| attachment.clone());
        let answered = Answer { reply: WireReply::Done(outcome), granted };
        self.outbox.push(Reply { to: answer, answer: answered, token, kind: ReplyKind::Add, since });
        tracing::info!(attachment = %attachment, held, "a branch ENI was given");
    }

    /// Forgets what an attachment had of a branch ENI. Answers what that was.
    pub(super) fn let_go(&mut self, attachment: &Attachment) -> Vec<PodAddress> {
        let described = self.state.branch_of(attachment).map(Held::pod_addresses).unwrap_or_default();
        if !described.is_empty() && self.apply(Event::BranchReleased(attachment.clone())) {
            tracing::info!(attachment = %attachment, "a branch ENI was taken back");
        }
        described
    }

    /// What a plugin is told of an attachment that has a branch ENI.
    pub(super) fn check_branch(&self, attachment: &Attachment) -> Option<Outcome> {
        let held = self.state.branch_of(attachment)?;
        let network = &self.parts.config.network;
        let first = held.addresses.first().filter(|_| held.mode == Mode::Standard);
        let egress = first.and_then(|(ip, _)| network.egress_of(*ip));
        Some(Outcome::Add(AddReply {
            addresses: held.pod_addresses(),
            mtu: network.pod_mtu,
            egress,
            disable_ipv6: network.disable_pod_v6,
        }))
    }

    /// Asks the cluster for a trunk ENI, once there is a place for it, by what the AWS VPC CNI writes into the node's CNINode.
    pub(super) fn ask_for_trunk(&mut self) {
        let Some(wanted) = self.features().filter(|wanted| *wanted != self.branching.asked) else { return };
        if self.report(Report::Features(wanted.clone())) {
            self.branching.asked = wanted;
        }
    }

    fn features(&self) -> Option<Vec<Feature>> {
        self.parts.config.network.pod_eni?;
        let node = self.state.node()?;
        let places = self.targets.max_enis.map_or(node.limits.enis, |most| most.min(node.limits.enis));
        let there = self.state.ledger().enis().filter(|eni| eni.card == 0 && eni.device.is_some()).count();
        let has_place = usize::try_from(places).unwrap_or(usize::MAX) > there;
        let may_have = has_place && takes_trunk(&node.identity.instance_type, &node.limits);
        // What has been asked for once is not taken back.
        (may_have || self.state.trunk().is_some() || !self.branching.asked.is_empty()).then_some(())?;
        let mut features = vec![Feature { name: "SecurityGroupsForPods".to_owned(), value: String::new() }];
        if node.custom_networking {
            // Branch ENIs are made where the ENIConfig says.
            features
                .push(Feature { name: "CustomNetworking".to_owned(), value: self.state.eni_config()?.name.clone() });
        }
        Some(features)
    }

    /// Forgets what pods had whose veth the kernel shows no more: their DEL was lost.
    pub(super) fn forget_branches(&mut self, gone: impl Fn(&Held) -> bool) {
        let gone: Vec<Attachment> =
            self.state.branches().filter(|held| gone(held)).map(|held| held.owner.attachment.clone()).collect();
        for attachment in gone {
            tracing::warn!(attachment = %attachment, "the pod of a branch ENI is gone");
            self.let_go(&attachment);
        }
    }
}

/// To a plugin that does not say that it leads pods out by branch ENIs.
fn plugin_too_old() -> Refusal {
    let text =
        "the pod has security groups of its own, and this plugin would lead it past them: it knows no branch ENIs";
    Refusal::new(RefusalCode::VersionSkew, text).hint("install the plugin of the daemon's version: `sluice install`")
}

fn pending(text: String) -> Refusal {
    Refusal::new(RefusalCode::PodEniPending, text).retry_after(std::time::Duration::from_secs(2))
}
