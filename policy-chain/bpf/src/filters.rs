//! Programs on interfaces, by clsact: attached, looked after, and put back.
//!
//! A gate is where it should be when its program is in the gate's own slot of a hook, or is attached there by a tcx link
//! ([`links`](crate::links)), which the kernel asks before all filters.

use std::io;
use std::sync::Arc;

use nix::errno::Errno;
use sluice_contract::id::IfName;
use sluice_hostnet::netlink::Netlink;
use sluice_hostnet::tc::{self, Existing, Filter, Hook, Slot, TcError};

use crate::programs::{Program, Programs};
use crate::{cilium, sys};

/// Why programs could not be attached or looked at.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// There is no such interface: its pod has gone.
    #[error("interface {index} is gone")]
    Gone {
        /// Its index.
        index: u32,
    },
    /// The kernel refused, or there is no room.
    #[error("cannot put the gate on interface {index}")]
    Tc {
        /// Its index.
        index: u32,
        /// What the kernel said.
        #[source]
        source: TcError,
    },
    /// The kernel does not say which links an interface has.
    #[error("cannot ask for the links of interface {index}")]
    Links {
        /// Its index.
        index: u32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl FilterError {
    /// Whether another qdisc, such as the `ingress` of the bandwidth plugin, stands where the gate's hooks would be. A
    /// [link](crate::links::Links) needs none.
    #[must_use]
    pub const fn is_no_room(&self) -> bool {
        matches!(self, Self::Tc { source: TcError::OtherQdisc { .. }, .. })
    }
}

/// What is in the place of a program that is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instead {
    /// Nothing: packets pass unjudged.
    Nothing,
    /// The program that drops everything: the gate has not been set up.
    Drop,
    /// The same program, as a process before has loaded it. It judges by the same maps.
    Older,
    /// Another program.
    Other {
        /// Its number in the kernel, where it is a program.
        program: Option<u32>,
        /// What it is called.
        name: Option<String>,
    },
}

/// A program that is not where it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Where.
    pub hook: Hook,
    /// Which.
    pub program: Program,
    /// What is there.
    pub instead: Instead,
}

/// Puts programs on interfaces. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Filters {
    programs: Arc<Programs>,
    netlink: Netlink,
}

impl Filters {
    /// Of [`Gate::programs`](crate::gate::Gate::programs), in the namespace of `netlink`, which must be that of the threads
    /// that call.
    #[must_use]
    pub const fn new(programs: Arc<Programs>, netlink: Netlink) -> Self {
        Self { programs, netlink }
    }

    /// Puts the gate's programs on both hooks of a pod's interface, each in one step in the place of what is there. Where a
    /// link has attached one already, that stays, and what is in the slot goes: it would be asked next, and drop.
    ///
    /// # Errors
    /// [`FilterError`].
    pub async fn attach(&self, index: u32) -> Result<(), FilterError> {
        self.put_or_leave(index, &Program::POD).await
    }

    /// Puts the program that drops everything on the hooks that have nothing yet, neither filter nor link: what to do where
    /// the primary plugin has not done it, before anything else. A link is a gate's, ours or one of another layout, or another
    /// agent's, and its pod has been talking.
    ///
    /// # Errors
    /// [`FilterError`].
    pub async fn attach_drop(&self, index: u32) -> Result<(), FilterError> {
        let mut wanted = Vec::new();
        for (hook, _) in Program::POD {
            if linked(index, hook)?.is_empty() {
                wanted.push((hook, Program::Drop));
            }
        }
        self.put(index, &wanted, Existing::Keep).await
    }

    /// Puts the gate's programs in the place of filters that stand in the gate's slots of both hooks, as the primary plugin
    /// leaves them, on the interface of this index and name. Says whether that was all; if not, [`Self::attach_drop`] and
    /// [`Self::attach`] do what is left. Not for an interface that has links.
    ///
    /// # Errors
    /// [`FilterError`].
    pub async fn swap(&self, index: u32, name: &IfName) -> Result<bool, FilterError> {
        let programs = Program::POD
            .map(|(hook, program)| (hook, tc::Program { fd: self.programs.descriptor(program), name: program.name() }));
        self.netlink.swap(index, name, Slot::GATE, &programs).await.map_err(|source| failed(index, source))
    }

    /// Whether an interface has the hooks that filters stand on. Where it has none they are made with the first filter, and the
    /// kernel loses what the interface sends meanwhile, and what waits in its queues: it stops an interface that is up while
    /// any qdisc is put there or taken away, and waits for a grace period (`qdisc_graft`, `dev_deactivate`). Links need no
    /// hooks.
    ///
    /// # Errors
    /// [`FilterError`].
    pub async fn has_hooks(&self, index: u32) -> Result<bool, FilterError> {
        self.netlink.has_clsact(index).await.map_err(|source| failed(index, source))
    }

    /// Puts the program that judges Services on an uplink.
    ///
    /// # Errors
    /// [`FilterError`].
    pub async fn attach_uplink(&self, index: u32) -> Result<(), FilterError> {
        self.put(index, &Program::UPLINK, Existing::Replace).await
    }

    /// Takes away filters that Cilium has left at both hooks of an interface that is no pod's; says how many.
    ///
    /// # Errors
    /// [`FilterError`].
    pub async fn remove_cilium(&self, index: u32) -> Result<usize, FilterError> {
        let mut removed = 0;
        for hook in Hook::ALL {
            let found = self.netlink.filters(index, hook).await.map_err(|source| failed(index, source))?;
            for filter in found.iter().filter(|filter| filter.name.as_deref().is_some_and(is_ciliums)) {
                let gone = self.netlink.remove_filter(index, hook, filter.slot).await;
                removed += usize::from(gone.map_err(|source| failed(index, source))?);
            }
        }
        Ok(removed)
    }

    /// Which programs a pod's interface lacks; empty: none. An interface that is gone lacks all.
    ///
    /// # Errors
    /// [`FilterError`].
    pub async fn check(&self, index: u32) -> Result<Vec<Missing>, FilterError> {
        self.missing(index, &Program::POD).await
    }

    /// Which programs an uplink lacks.
    ///
    /// # Errors
    /// [`FilterError`].
    pub async fn check_uplink(&self, index: u32) -> Result<Vec<Missing>, FilterError> {
        self.missing(index, &Program::UPLINK).await
    }

    /// Puts back what a pod's interface lacks, and says what that was.
    ///
    /// # Errors
    /// [`FilterError`].
    pub async fn repair(&self, index: u32) -> Result<Vec<Missing>, FilterError> {
        let missing = self.check(index).await?;
        let wanted: Vec<_> = missing.iter().map(|missing| (missing.hook, missing.program)).collect();
        self.put_or_leave(index, &wanted).await?;
        Ok(missing)
    }

    /// Whether links have attached both programs to a pod's interface.
    ///
    /// # Errors
    /// [`FilterError`].
    pub fn are_linked(&self, index: u32) -> Result<bool, FilterError> {
        for (hook, program) in Program::POD {
            if !self.is_linked(index, hook, program)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes the filters away whose program a link has attached to the same hook: a packet needs to be judged once.
    ///
    /// # Errors
    /// [`FilterError`].
    pub async fn leave_to_links(&self, index: u32) -> Result<(), FilterError> {
        for (hook, program) in Program::POD {
            if self.is_linked(index, hook, program)? {
                self.netlink.remove_filter(index, hook, Slot::GATE).await.map_err(|source| failed(index, source))?;
            }
        }
        Ok(())
    }

    /// Puts programs where no link has attached them, and empties the slot where one has.
    async fn put_or_leave(&self, index: u32, wanted: &[(Hook, Program)]) -> Result<(), FilterError> {
        let mut put = Vec::new();
        for (hook, program) in wanted.iter().copied() {
            if self.is_linked(index, hook, program)? {
                self.netlink.remove_filter(index, hook, Slot::GATE).await.map_err(|source| failed(index, source))?;
            } else {
                put.push((hook, program));
            }
        }
        self.put(index, &put, Existing::Replace).await
    }

    async fn put(&self, index: u32, wanted: &[(Hook, Program)], existing: Existing) -> Result<(), FilterError> {
        let programs: Vec<_> = wanted
            .iter()
            .map(|(hook, program)| {
                (*hook, tc::Program { fd: self.programs.descriptor(*program), name: program.name() })
            })
            .collect();
        if programs.is_empty() {
            return Ok(());
        }
        let put = self.netlink.attach(index, Slot::GATE, &programs, existing).await;
        put.map_err(|source| failed(index, source))
    }

    async fn missing(&self, index: u32, wanted: &[(Hook, Program)]) -> Result<Vec<Missing>, FilterError> {
        let mut missing = Vec::new();
        for (hook, program) in wanted.iter().copied() {
            let linked = self.is_linked(index, hook, program)?;
            let filters = self.netlink.filters(index, hook).await.map_err(|source| failed(index, source))?;
            let instead = self.instead(filters.first(), program);
            // What passes a link is asked of the filters next: only one that drops it is in the way.
            let in_the_way = instead.filter(|instead| *instead == Instead::Drop || !linked);
            if let Some(instead) = in_the_way {
                missing.push(Missing { hook, program, instead });
            }
        }
        Ok(missing)
    }

    /// What is first on a hook in the place of a program; none: the program itself.
    fn instead(&self, first: Option<&Filter>, program: Program) -> Option<Instead> {
        let Some(first) = first else { return Some(Instead::Nothing) };
        let ours = first.slot == Slot::GATE && first.direct_action;
        if ours && first.program == Some(self.programs.id(program)) {
            None
        } else if ours && first.program == Some(self.programs.id(Program::Drop)) {
            Some(Instead::Drop)
        } else if ours && first.name.as_deref() == Some(program.name()) {
            Some(Instead::Older)
        } else {
            Some(Instead::Other { program: first.program, name: first.name.clone() })
        }
    }

    fn is_linked(&self, index: u32, hook: Hook, program: Program) -> Result<bool, FilterError> {
        Ok(linked(index, hook)?.contains(&self.programs.id(program)))
    }
}

/// The programs that links have attached to a hook.
fn linked(index: u32, hook: Hook) -> Result<Vec<u32>, FilterError> {
    sys::tcx_programs(index, hook).map_err(|source| match source.raw_os_error() {
        Some(libc::ENODEV) => FilterError::Gone { index },
        _ => FilterError::Links { index, source },
    })
}

fn is_ciliums(name: &str) -> bool {
    name.starts_with(cilium::FILTERS)
}

fn failed(index: u32, source: TcError) -> FilterError {
    match source.errno() {
        Some(Errno::ENODEV) => FilterError::Gone { index },
        _ => FilterError::Tc { index, source },
    }
}
