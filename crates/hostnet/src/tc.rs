//! Programs on a link's two hooks: the clsact qdisc, and BPF filters that decide themselves (direct action).
//!
//! A filter is known by its link, hook, priority and handle. Replacing the program of a filter that is there is one
//! step of the kernel (`cls_bpf_change` swaps it in under RCU): each packet meets the old program or the new one.
//! Attaching this way costs 0.1 ms; a tcx link waits for a grace period (reference/platform.md 7).

use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption,
};
use nix::errno::Errno;
use sluice_contract::id::IfName;
use sluice_contract::node::{GATE_FILTER_HANDLE, GATE_FILTER_PRIORITY};

use crate::netlink::encode::link_numbered;
use crate::netlink::{Netlink, NetlinkError, Request, decode_link};

/// The qdisc that has nothing but the two hooks.
const CLSACT: &str = "clsact";
/// `ETH_P_ALL` in the byte order of the wire, as `tcm_info` has it.
const ALL_PROTOCOLS: u16 = 3_u16.to_be();

/// Why something could not be done with a link's hooks.
#[derive(Debug, thiserror::Error)]
pub enum TcError {
    /// The kernel refused.
    #[error("cannot {action} of link #{index}")]
    Kernel {
        /// What was to be done.
        action: &'static str,
        /// The link's number.
        index: u32,
        /// The kernel's answer.
        #[source]
        source: NetlinkError,
    },
    /// Another qdisc is where ours must be, such as the `ingress` of the bandwidth plugin, which lacks one of the hooks.
    #[error("link #{index} has the qdisc {kind:?} already, which leaves no room for {CLSACT}")]
    OtherQdisc {
        /// The link's number.
        index: u32,
        /// The other qdisc.
        kind: String,
    },
}

impl TcError {
    /// The kernel's error number, if it is the kernel that refused: `ENODEV` for a link that is gone.
    #[must_use]
    pub const fn errno(&self) -> Option<Errno> {
        match self {
            Self::Kernel { source, .. } => source.errno(),
            Self::OtherQdisc { .. } => None,
        }
    }
}

/// Where a program stands on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// What comes in by the link: at a pod's host interface, what the pod sends.
    Ingress,
    /// What goes out by it: at a pod's host interface, what the pod is sent.
    Egress,
}

impl Hook {
    /// Both hooks.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    fn parent(self) -> TcHandle {
        let minor = match self {
            Self::Ingress => TcHandle::MIN_INGRESS,
            Self::Egress => TcHandle::MIN_EGRESS,
        };
        TcHandle { major: TcHandle::CLSACT.major, minor }
    }
}

/// Which filter of a hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// Its priority; the lowest number is asked first. Not 0.
    pub priority: u16,
    /// Its handle among the filters of the priority. Not 0.
    pub handle: u32,
}

impl Slot {
    /// The gate's own.
    pub const GATE: Self = Self { priority: GATE_FILTER_PRIORITY, handle: GATE_FILTER_HANDLE };

    fn info(self) -> u32 {
        u32::from(self.priority) << 16 | u32::from(ALL_PROTOCOLS)
    }
}

/// A program to be attached.
#[derive(Debug, Clone, Copy)]
pub struct Program<'a> {
    /// A loaded program of type `BPF_PROG_TYPE_SCHED_CLS`.
    pub fd: BorrowedFd<'a>,
    /// What `tc filter show` calls it; at most 255 bytes.
    pub name: &'a str,
}

/// What happens to a filter that stands in the slot already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Its program is replaced.
    Replace,
    /// It stays as it is, whatever its program.
    Keep,
}

/// A filter as it is found on a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Which one.
    pub slot: Slot,
    /// Its kind; `bpf` for a program.
    pub kind: String,
    /// The kernel's number of its program.
    pub program: Option<u32>,
    /// What it is called.
    pub name: Option<String>,
    /// Whether the program's word is the verdict.
    pub direct_action: bool,
}

impl Netlink {
    /// Gives a link the hooks, if it has none yet.
    ///
    /// # Errors
    /// [`TcError`]; [`TcError::OtherQdisc`] where an `ingress` qdisc stands in their place.
    pub async fn ensure_clsact(&self, index: u32) -> Result<(), TcError> {
        let failed = |source| TcError::Kernel { action: "make the hooks", index, source };
        match self.change(clsact(index)).await {
            // An `ingress` has the same place, and takes a filter for egress without a word, for what comes in.
            Err(error) if error.errno() == Some(Errno::EEXIST) => match self.qdisc(index).await.map_err(failed)? {
                Some(kind) if kind == CLSACT => Ok(()),
                Some(kind) => Err(TcError::OtherQdisc { index, kind }),
                None => Err(failed(error)),
            },
            made => made.map_err(failed),
        }
    }

    /// Whether a link has the hooks.
    ///
    /// # Errors
    /// [`TcError`].
    pub async fn has_clsact(&self, index: u32) -> Result<bool, TcError> {
        let failed = |source| TcError::Kernel { action: "look for the hooks", index, source };
        Ok(self.qdisc(index).await.map_err(failed)?.is_some_and(|kind| kind == CLSACT))
    }

    /// Puts programs into one slot of each of their hooks, on a link that is given the hooks first if need be.
    ///
    /// # Errors
    /// [`TcError`]. Then none, or only the first, may have been attached.
    pub async fn attach(
        &self,
        index: u32,
        slot: Slot,
        programs: &[(Hook, Program<'_>)],
        existing: Existing,
    ) -> Result<(), TcError> {
        self.ensure_clsact(index).await?;
        let requests = programs.iter().map(|(hook, program)| filter(index, *hook, slot, program, existing));
        for answer in self.batch(requests.collect()).await {
            match answer {
                Err(error) if existing == Existing::Keep && error.errno() == Some(Errno::EEXIST) => {}
                answer => answer.map(drop).map_err(|source| not_attached(index, source))?,
            }
        }
        Ok(())
    }

    /// As [`Self::attach`], on a link that the caller has just made: all in one datagram. Not for others: where a qdisc
    /// stands, it is not known which.
    ///
    /// # Errors
    /// [`TcError`]. Then some of it may have been done.
    pub async fn attach_to_new(&self, index: u32, slot: Slot, programs: &[(Hook, Program<'_>)]) -> Result<(), TcError> {
        let filters = programs.iter().map(|(hook, program)| filter(index, *hook, slot, program, Existing::Keep));
        let requests = std::iter::once(clsact(index)).chain(filters).collect();
        for answer in self.batch(requests).await {
            answer.map_err(|source| not_attached(index, source))?;
        }
        Ok(())
    }

    /// Replaces the programs of filters that stand in a slot of each of their hooks already, at the link of this number, and
    /// asks whether that has this name: all in one datagram, because each change waits for the kernel's lock. Says whether
    /// all of it was so; if not, some may have been replaced, and [`Self::attach`] is the longer way.
    ///
    /// # Errors
    /// [`TcError`].
    pub async fn swap(
        &self,
        index: u32,
        name: &IfName,
        slot: Slot,
        programs: &[(Hook, Program<'_>)],
    ) -> Result<bool, TcError> {
        let look = Request::get(RouteNetlinkMessage::GetLink(link_numbered(index)));
        let swaps = programs.iter().map(|(hook, program)| {
            Request::change(RouteNetlinkMessage::NewTrafficFilter(bpf(index, *hook, slot, program)), NLM_F_REPLACE)
        });
        let mut as_thought = true;
        for answer in self.batch(std::iter::once(look).chain(swaps).collect()).await {
            match answer {
                Ok(Some(RouteNetlinkMessage::NewLink(message))) => {
                    as_thought &= decode_link(&message).is_some_and(|link| link.name == *name);
                }
                Ok(_) => {}
                // No filter there, no hooks, no link.
                Err(error) if matches!(error.errno(), Some(Errno::ENOENT | Errno::EINVAL | Errno::ENODEV)) => {
                    as_thought = false;
                }
                Err(source) => return Err(not_attached(index, source)),
            }
        }
        Ok(as_thought)
    }

    /// Puts a program into a slot, in place of the one that stands there: no packet in between meets none. The link
    /// must have the hooks ([`Self::ensure_clsact`]).
    ///
    /// # Errors
    /// [`TcError`]; `ENODEV` when the link is gone, `EINVAL` when it has no hooks or the slot is a filter of another
    /// kind.
    pub async fn replace_filter(
        &self,
        index: u32,
        hook: Hook,
        slot: Slot,
        program: Program<'_>,
    ) -> Result<(), TcError> {
        let request = filter(index, hook, slot, &program, Existing::Replace);
        self.change(request).await.map_err(|source| not_attached(index, source))
    }

    /// The filters of a hook, in the order in which they are asked. A link that has no hooks, or is gone, has none.
    ///
    /// # Errors
    /// [`TcError`].
    pub async fn filters(&self, index: u32, hook: Hook) -> Result<Vec<Filter>, TcError> {
        let question = RouteNetlinkMessage::GetTrafficFilter(message(index, hook.parent()));
        let answers = self.dump(question).await.map_err(|source| TcError::Kernel {
            action: "list the filters of a hook",
            index,
            source,
        })?;
        let filter = |answer: &RouteNetlinkMessage| match answer {
            RouteNetlinkMessage::NewTrafficFilter(message) => decode_filter(message),
            _ => None,
        };
        let mut filters: Vec<_> = answers.iter().filter_map(filter).collect();
        // Those of one priority come in the order in which they are asked.
        filters.sort_by_key(|filter| filter.slot.priority);
        Ok(filters)
    }

    /// Takes a program out of a slot; says whether there was one.
    ///
    /// # Errors
    /// [`TcError`].
    pub async fn remove_filter(&self, index: u32, hook: Hook, slot: Slot) -> Result<bool, TcError> {
        let failed = |source| TcError::Kernel { action: "take a program off a hook", index, source };
        let mut message = message(index, hook.parent());
        message.header.handle = slot.handle.into();
        message.header.info = slot.info();
        message.attributes.push(TcAttribute::Kind(TcFilterBpf::KIND.to_owned()));
        let request = Request::change(RouteNetlinkMessage::DelTrafficFilter(message), 0);
        let Err(error) = self.change(request).await else { return Ok(true) };
        match error.errno() {
            Some(Errno::ENOENT | Errno::ENODEV) => Ok(false),
            // What the kernel says of a link without hooks, and of other things.
            Some(Errno::EINVAL) if self.qdisc(index).await.map_err(failed)?.is_none() => Ok(false),
            _ => Err(failed(error)),
        }
    }

    /// The kind of the qdisc where the hooks are; none if there is none, or no such link.
    async fn qdisc(&self, index: u32) -> Result<Option<String>, NetlinkError> {
        let question = RouteNetlinkMessage::GetQueueDiscipline(message(index, TcHandle::CLSACT));
        let answer = self.batch(vec![Request::echo(question)]).await.pop().unwrap_or(Err(NetlinkError::Closed));
        match answer {
            Ok(Some(RouteNetlinkMessage::NewQueueDiscipline(message))) => Ok(kind(&message)),
            // One was there and was removed: the kernel has a built-in one in its place, of which it does not tell.
            Ok(None) => Ok(None),
            Ok(_) => Err(NetlinkError::Unexpected),
            Err(error) if matches!(error.errno(), Some(Errno::ENOENT | Errno::ENODEV)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn message(index: u32, parent: TcHandle) -> TcMessage {
    TcMessage::from_parts(TcHeader { index: index.cast_signed(), parent, ..TcHeader::default() }, Vec::new())
}

const fn not_attached(index: u32, source: NetlinkError) -> TcError {
    TcError::Kernel { action: "attach a program to a hook", index, source }
}

/// The request that makes the hooks, and fails with `EEXIST` where something stands in their place.
fn clsact(index: u32) -> Request {
    let mut message = message(index, TcHandle::CLSACT);
    message.header.handle = TcHandle { major: TcHandle::CLSACT.major, minor: 0 };
    message.attributes.push(TcAttribute::Kind(CLSACT.to_owned()));
    Request::change(RouteNetlinkMessage::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_EXCL)
}

fn filter(index: u32, hook: Hook, slot: Slot, program: &Program<'_>, existing: Existing) -> Request {
    let flags = match existing {
        Existing::Replace => NLM_F_CREATE | NLM_F_REPLACE,
        Existing::Keep => NLM_F_CREATE | NLM_F_EXCL,
    };
    Request::change(RouteNetlinkMessage::NewTrafficFilter(bpf(index, hook, slot, program)), flags)
}

/// A filter that runs a program.
fn bpf(index: u32, hook: Hook, slot: Slot, program: &Program<'_>) -> TcMessage {
    let mut message = message(index, hook.parent());
    message.header.handle = slot.handle.into();
    message.header.info = slot.info();
    message.attributes = vec![
        TcAttribute::Kind(TcFilterBpf::KIND.to_owned()),
        TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::ProgFd(program.fd.as_raw_fd().cast_unsigned())),
            TcOption::Bpf(TcFilterBpfOption::ProgName(program.name.to_owned())),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ]),
    ];
    message
}

fn kind(message: &TcMessage) -> Option<String> {
    message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.clone()),
        _ => None,
    })
}

/// None for what the kernel lists before the filters of a priority: the priority itself, without a handle.
fn decode_filter(message: &TcMessage) -> Option<Filter> {
    let handle: u32 = message.header.handle.into();
    if handle == 0 {
        return None;
    }
    let [high, low, ..] = message.header.info.to_be_bytes();
    let slot = Slot { priority: u16::from_be_bytes([high, low]), handle };
    let mut filter = Filter { slot, kind: kind(message)?, program: None, name: None, direct_action: false };
    for attribute in &message.attributes {
        let TcAttribute::Options(options) = attribute else { continue };
        for option in options {
            match option {
                TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => filter.program = Some(*id),
                TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => filter.name = Some(name.clone()),
                TcOption::Bpf(TcFilterBpfOption::Flags(flags)) => {
                    filter.direct_action = flags.contains(TcBpfFlags::DirectAction);
                }
                _ => {}
            }
        }
    }
    Some(filter)
}

#[cfg(test)]
mod tests;
