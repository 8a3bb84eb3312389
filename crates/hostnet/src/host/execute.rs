//! Carrying a plan out, with a journal that takes it back when it fails on the way.

use std::collections::HashMap;
use std::fmt;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;
use sluice_contract::id::IfName;

use super::Host;
use crate::netlink::encode::{address, neighbour, route, rule, set_link};
use crate::netlink::{LinkError, MAX_BATCH, NetlinkError, Request};
use crate::netns::NamespaceError;
use crate::nft::{self, NftError};
use crate::plan::{Op, Planned};
use crate::state::{Link, NftTableId, Sysctl};
use crate::sysctl::{self, SysctlError};

/// Why one op could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum OpError {
    /// The kernel refused it.
    #[error("netlink")]
    Netlink(#[source] NetlinkError),
    /// It names a link that is not there.
    #[error("there is no link {0}")]
    NoLink(IfName),
    /// Its link could not be looked up.
    #[error("cannot look up its link")]
    Link(#[source] LinkError),
    /// The sysctl.
    #[error("sysctl")]
    Sysctl(#[source] SysctlError),
    /// nftables.
    #[error("nftables")]
    Nft(#[source] NftError),
    /// The namespace cannot be entered (any more).
    #[error("cannot enter the namespace")]
    Namespace(#[source] NamespaceError),
}

impl OpError {
    /// The kernel's error number, if it is the kernel that refused.
    #[must_use]
    pub const fn errno(&self) -> Option<Errno> {
        match self {
            Self::Netlink(error) => error.errno(),
            Self::Link(error) => error.errno(),
            _ => None,
        }
    }
}

/// A plan failed on the way. What had been changed was taken back, in reverse.
#[derive(Debug, thiserror::Error)]
#[error("cannot do: {op} ({reason}){}", Leftovers(not_undone))]
pub struct ExecuteError {
    /// The op that failed.
    pub op: Box<Op>,
    /// Why it was planned.
    pub reason: String,
    /// What is wrong.
    #[source]
    pub source: OpError,
    /// How many changes were taken back.
    pub undone: usize,
    /// Changes that could not be taken back, and why.
    pub not_undone: Vec<(String, OpError)>,
}

struct Leftovers<'a>(&'a [(String, OpError)]);

impl fmt::Display for Leftovers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (op, error) in self.0 {
            write!(f, "; could not be taken back by: {op}: {error}")?;
        }
        Ok(())
    }
}

/// What carrying a plan out came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Executed {
    /// What was changed.
    pub changed: Vec<Planned>,
    /// How many ops found their work done.
    pub unchanged: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Changed,
    /// It was so already: by whom, we do not know, so we do not take it back.
    AlreadySo,
}

/// How a change is taken back.
enum Undo {
    Op(Box<Op>),
    /// Puts a table back as it was listed; none deletes it.
    Nft(NftTableId, Option<String>),
}

impl fmt::Display for Undo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Op(op) => op.fmt(f),
            Self::Nft(id, _) => write!(f, "nft restore table {id}"),
        }
    }
}

/// Ops that can go in one datagram: each is carried out whether or not one before it failed, so deletes do not go
/// with what must be there before them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Add,
    Delete,
    Sysctl,
    Nft,
}

const fn class(op: &Op) -> Class {
    match op {
        Op::SetSysctl { .. } => Class::Sysctl,
        Op::SetNft { .. } | Op::DeleteNft(_) => Class::Nft,
        op if op.is_delete() => Class::Delete,
        _ => Class::Add,
    }
}

impl Host {
    /// Carries a plan out, in order. Ops that find their work done are passed over. At the first failure, what was
    /// changed is taken back in reverse order.
    ///
    /// # Errors
    /// [`ExecuteError`] names the op that failed, and what could not be taken back.
    pub async fn execute(&self, plan: &[Planned]) -> Result<Executed, ExecuteError> {
        self.execute_with(plan, &[]).await
    }

    /// As [`Host::execute`], with links whose numbers the caller knows, which saves asking for them.
    ///
    /// # Errors
    /// As [`Host::execute`].
    pub async fn execute_with(&self, plan: &[Planned], known: &[Link]) -> Result<Executed, ExecuteError> {
        let mut numbers: HashMap<IfName, u32> = known.iter().map(|link| (link.name.clone(), link.index)).collect();
        let mut journal = Vec::new();
        let mut executed = Executed::default();
        for group in plan.chunk_by(|one, next| class(&one.op) == class(&next.op)) {
            for part in group.chunks(MAX_BATCH) {
                let (outcomes, failure) = self.carry_out(part, &mut numbers, &mut journal).await;
                for (planned, outcome) in part.iter().zip(outcomes) {
                    match outcome {
                        Some(Outcome::Changed) => {
                            tracing::debug!(op = %planned.op, reason = planned.reason, "changed the network");
                            executed.changed.push(planned.clone());
                        }
                        Some(Outcome::AlreadySo) => executed.unchanged += 1,
                        None => {}
                    }
                }
                if let Some((planned, source)) = failure {
                    let (undone, not_undone) = self.undo(journal, &mut numbers).await;
                    tracing::debug!(op = %planned.op, undone, left = not_undone.len(), "took changes back");
                    let (op, reason) = (Box::new(planned.op.clone()), planned.reason.clone());
                    return Err(ExecuteError { op, reason, source, undone, not_undone });
                }
            }
        }
        Ok(executed)
    }

    /// Carries out ops of one class. Gives what became of each (none: not done), and the first that failed.
    async fn carry_out<'a>(
        &self,
        part: &'a [Planned],
        numbers: &mut HashMap<IfName, u32>,
        journal: &mut Vec<Undo>,
    ) -> (Vec<Option<Outcome>>, Option<(&'a Planned, OpError)>) {
        let results = match part.first().map(|planned| class(&planned.op)) {
            None => Vec::new(),
            Some(Class::Sysctl) => self.sysctls(part, journal),
            Some(Class::Nft) => self.tables(part, journal).await,
            Some(Class::Add | Class::Delete) => self.netlink_ops(part, numbers, journal).await,
        };
        let mut failure = None;
        let mut outcomes = Vec::with_capacity(results.len());
        for (planned, result) in part.iter().zip(results) {
            match result {
                Ok(outcome) => outcomes.push(Some(outcome)),
                Err(error) => {
                    outcomes.push(None);
                    failure.get_or_insert((planned, error));
                }
            }
        }
        (outcomes, failure)
    }

    async fn netlink_ops(
        &self,
        part: &[Planned],
        numbers: &mut HashMap<IfName, u32>,
        journal: &mut Vec<Undo>,
    ) -> Vec<Result<Outcome, OpError>> {
        let mut unknown: Vec<IfName> = Vec::new();
        for dev in part.iter().filter_map(|planned| device(&planned.op)) {
            if !numbers.contains_key(dev) && !unknown.contains(dev) {
                unknown.push(dev.clone());
            }
        }
        match self.netlink.links_by_name(&unknown).await {
            Ok(links) => numbers.extend(links.into_iter().map(|link| (link.name, link.index))),
            Err(error) => return vec![Err(OpError::Link(error))],
        }
        let requests: Vec<Option<Request>> = part.iter().map(|planned| request(&planned.op, numbers)).collect();
        let homeless = |(planned, request): (&Planned, &Option<Request>)| {
            (request.is_none() && !planned.op.is_delete()).then(|| device(&planned.op).cloned()).flatten()
        };
        if let Some(dev) = part.iter().zip(&requests).find_map(homeless) {
            // Before anything of this part is sent.
            let no_link = |planned: &Planned| match device(&planned.op) {
                Some(of) if *of == dev => Err(OpError::NoLink(dev.clone())),
                _ => Ok(Outcome::AlreadySo),
            };
            return part.iter().map(no_link).collect();
        }
        // A delete on a link that is gone is done: what stood on the link went with it.
        let sent: Vec<bool> = requests.iter().map(Option::is_some).collect();
        let mut answers = self.netlink.batch(requests.into_iter().flatten().collect()).await.into_iter();
        let mut results = Vec::with_capacity(part.len());
        for (planned, sent) in part.iter().zip(sent) {
            let answer =
                if sent { answers.next().unwrap_or(Err(NetlinkError::Closed)).map(|_| true) } else { Ok(false) };
            results.push(match answer {
                Ok(true) => {
                    journal.extend(planned.op.inverse().map(|inverse| Undo::Op(Box::new(inverse))));
                    Ok(Outcome::Changed)
                }
                Ok(false) => Ok(Outcome::AlreadySo),
                Err(error) if is_so_already(&planned.op, error.errno()) => Ok(Outcome::AlreadySo),
                Err(error) => Err(OpError::Netlink(error)),
            });
        }
        results
    }

    fn sysctls(&self, part: &[Planned], journal: &mut Vec<Undo>) -> Vec<Result<Outcome, OpError>> {
        let write = || {
            let mut results = Vec::with_capacity(part.len());
            for planned in part {
                if let Op::SetSysctl { sysctl, .. } = &planned.op {
                    let result = sysctl::write(sysctl);
                    let failed = result.is_err();
                    results.push((sysctl, result));
                    if failed {
                        break;
                    }
                }
            }
            results
        };
        let results = match self.namespace.run(write) {
            Ok(results) => results,
            Err(error) => return vec![Err(OpError::Namespace(error))],
        };
        let journal_one = |(sysctl, result): (&Sysctl, Result<Option<String>, SysctlError>)| match result {
            Ok(Some(before)) => {
                let back = Sysctl { key: sysctl.key.clone(), value: before };
                journal.push(Undo::Op(Box::new(Op::SetSysctl { sysctl: back, before: Some(sysctl.value.clone()) })));
                Ok(Outcome::Changed)
            }
            Ok(None) => Ok(Outcome::AlreadySo),
            Err(error) => Err(OpError::Sysctl(error)),
        };
        results.into_iter().map(journal_one).collect()
    }

    async fn tables(&self, part: &[Planned], journal: &mut Vec<Undo>) -> Vec<Result<Outcome, OpError>> {
        let mut results = Vec::with_capacity(part.len());
        for planned in part {
            let (id, script) = match &planned.op {
                Op::SetNft { ruleset, .. } => (ruleset.id.clone(), nft::replace_script(&ruleset.id, &ruleset.body)),
                Op::DeleteNft(id) => (id.clone(), nft::delete_script(id)),
                _ => continue,
            };
            let work = move || async move {
                let before = nft::text(&id).await?;
                nft::apply(&id, script).await?;
                Ok((id, before))
            };
            match self.within(work).await {
                Ok((id, before)) => {
                    journal.push(Undo::Nft(id, before));
                    results.push(Ok(Outcome::Changed));
                }
                Err(error) => {
                    results.push(Err(OpError::Nft(error)));
                    break;
                }
            }
        }
        results
    }

    /// Takes changes back, the last first. Goes on when one fails: each may still help.
    async fn undo(&self, journal: Vec<Undo>, numbers: &mut HashMap<IfName, u32>) -> (usize, Vec<(String, OpError)>) {
        let mut undone = 0;
        let mut failures = Vec::new();
        for undo in journal.into_iter().rev() {
            let description = undo.to_string();
            let result = match undo {
                Undo::Op(op) => {
                    let planned = [Planned { op: *op, reason: "undo".into() }];
                    let (_, failure) = self.carry_out(&planned, numbers, &mut Vec::new()).await;
                    failure.map_or(Ok(()), |(_, error)| Err(error))
                }
                Undo::Nft(id, text) => {
                    let script = text.map_or_else(|| nft::delete_script(&id), |text| nft::restore_script(&id, &text));
                    self.within(move || async move { nft::apply(&id, script).await }).await.map_err(OpError::Nft)
                }
            };
            match result {
                Ok(()) => undone += 1,
                Err(error) => failures.push((description, error)),
            }
        }
        (undone, failures)
    }
}

/// The device that an op names by number.
const fn device(op: &Op) -> Option<&IfName> {
    match op {
        Op::SetLink { to, .. } => Some(&to.dev),
        Op::AddAddress(address) | Op::DeleteAddress(address) => Some(&address.dev),
        Op::SetNeighbour { neighbour, .. } | Op::DeleteNeighbour(neighbour) => Some(&neighbour.dev),
        Op::SetRoute { route, .. } | Op::DeleteRoute(route) => route.dev.as_ref(),
        // Rules name theirs by name.
        Op::AddRule(_) | Op::DeleteRule(_) | Op::SetSysctl { .. } | Op::SetNft { .. } | Op::DeleteNft(_) => None,
    }
}

/// None if the op's link is not there, or the op is not netlink's.
pub(crate) fn request(op: &Op, numbers: &HashMap<IfName, u32>) -> Option<Request> {
    let number = |dev: &IfName| numbers.get(dev).copied();
    let optional = |dev: &Option<IfName>| match dev {
        Some(dev) => number(dev).map(Some),
        None => Some(None),
    };
    let create = NLM_F_CREATE | NLM_F_EXCL;
    let replace = NLM_F_CREATE | NLM_F_REPLACE;
    Some(match op {
        Op::SetLink { to, .. } => {
            Request::change(RouteNetlinkMessage::SetLink(set_link(number(&to.dev)?, to.up, to.mtu)), 0)
        }
        Op::AddAddress(new) => {
            Request::change(RouteNetlinkMessage::NewAddress(address(new, number(&new.dev)?)), create)
        }
        Op::DeleteAddress(old) => Request::change(RouteNetlinkMessage::DelAddress(address(old, number(&old.dev)?)), 0),
        Op::SetNeighbour { neighbour: new, .. } => {
            Request::change(RouteNetlinkMessage::NewNeighbour(neighbour(new, number(&new.dev)?)), replace)
        }
        Op::DeleteNeighbour(old) => {
            Request::change(RouteNetlinkMessage::DelNeighbour(neighbour(old, number(&old.dev)?)), 0)
        }
        Op::SetRoute { route: new, .. } => {
            let new = new.clone().canonical();
            Request::change(RouteNetlinkMessage::NewRoute(route(&new, optional(&new.dev)?)), replace)
        }
        Op::DeleteRoute(old) => {
            let old = old.clone().canonical();
            Request::change(RouteNetlinkMessage::DelRoute(route(&old, optional(&old.dev)?)), 0)
        }
        Op::AddRule(new) => Request::change(RouteNetlinkMessage::NewRule(rule(&new.clone().canonical())), create),
        Op::DeleteRule(old) => Request::change(RouteNetlinkMessage::DelRule(rule(&old.clone().canonical())), 0),
        Op::SetSysctl { .. } | Op::SetNft { .. } | Op::DeleteNft(_) => return None,
    })
}

/// Which refusals mean that the work is done.
const fn is_so_already(op: &Op, errno: Option<Errno>) -> bool {
    let Some(errno) = errno else { return false };
    match op {
        // The same address on the same link, the same rule.
        Op::AddAddress(_) | Op::AddRule(_) => matches!(errno, Errno::EEXIST),
        // No such address; no such link.
        Op::DeleteAddress(_) => matches!(errno, Errno::EADDRNOTAVAIL | Errno::ENODEV),
        // No such route; no such table; no such link.
        Op::DeleteRoute(_) => matches!(errno, Errno::ESRCH | Errno::ENOENT | Errno::ENODEV),
        Op::DeleteRule(_) => matches!(errno, Errno::ENOENT),
        Op::DeleteNeighbour(_) => matches!(errno, Errno::ENOENT | Errno::ENODEV),
        _ => false,
    }
}
