//! Programs on interfaces, by pinned tcx links (Linux 6.6): what took a pod's gate off by accident, a `tc qdisc del`
//! that is, does not touch these.
//!
//! Attaching one waits for a grace period of RCU, 8 to 20 ms, with the kernel's lock for all network configuration held.
//! So ADD does without, and a link follows when there is time: one interface at a time, with pauses. Where packets go already
//! (a pod of before, an uplink) links are the first that is put there, because they need no clsact
//! ([`Filters::has_hooks`](crate::filters::Filters::has_hooks)).

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::programs::links::{FdLink, LinkError as AyaLinkError, LinkOrder, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType};
use sluice_contract::id::IfName;
use sluice_hostnet::tc::Hook;

use crate::gate::{Ktime, NEW_PIN, replace_pin};
use crate::programs::Program;
use crate::sys::{self, LinkPlace};

/// Between two interfaces: the lock is free for others nine tenths of the time and more.
const PAUSE: Duration = Duration::from_millis(500);
/// After its gate was put there. Then its pod's start, and mostly that of the pods that came with it, is over; a pod that
/// lives no longer needs no link.
const SETTLED: Duration = Duration::from_secs(10);
/// Interfaces that wait for their links, at most: more pods than a node has. Who does not fit stays with filters.
const WAITING: usize = 4096;

/// Name of the pin of a link.
pub(crate) fn name(index: u32, program: Program) -> String {
    format!("{index}_{}", program.name())
}

fn parse(name: &str) -> Option<(u32, &str)> {
    let (index, program) = name.split_once('_')?;
    Some((index.parse().ok()?, program))
}

/// Why an interface could not be given links.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The programs that are pinned could not be opened.
    #[error("cannot open the pinned program {program}")]
    Program {
        /// Which.
        program: &'static str,
        /// Why.
        #[source]
        source: Box<ProgramError>,
    },
    /// There is no such interface: its pod has gone.
    #[error("{interface} (index {index}) is gone")]
    Gone {
        /// Its name.
        interface: IfName,
        /// Its index.
        index: u32,
    },
    /// The kernel refused to attach it.
    #[error("cannot attach {program} to {interface} by a link")]
    Attach {
        /// Which.
        program: &'static str,
        /// Where to.
        interface: IfName,
        /// Why.
        #[source]
        source: Box<ProgramError>,
    },
    /// It could not be pinned; it is not attached then.
    #[error("cannot pin the link {path}")]
    Pin {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Gives interfaces links. Everything here blocks: it is for a thread of its own.
#[derive(Debug)]
pub struct Links {
    directory: PathBuf,
    programs: Vec<(Hook, Program, SchedClassifier)>,
}

impl Links {
    /// Of the programs pinned below `root`, where an open [`Gate`](crate::gate::Gate) has put them.
    ///
    /// # Errors
    /// [`LinkError::Program`].
    pub fn open(root: &Path) -> Result<Self, LinkError> {
        let mut programs = Vec::new();
        for (hook, program) in Program::POD.into_iter().chain(Program::UPLINK) {
            let opened = SchedClassifier::from_pin(root.join("programs").join(program.name()));
            let opened =
                opened.map_err(|source| LinkError::Program { program: program.name(), source: Box::new(source) })?;
            programs.push((hook, program, opened));
        }
        Ok(Self { directory: root.join("links"), programs })
    }

    /// Whether the kernel has links for this, in the caller's namespace.
    #[must_use]
    pub fn supported() -> bool {
        // The loopback interface, which every namespace has, is the first.
        sys::tcx_query(1, Hook::Ingress).is_ok()
    }

    /// Attaches both programs to an interface by links, and pins these. What is attached already stays. Then
    /// [`Filters::leave_to_links`](crate::filters::Filters::leave_to_links) takes the filters away.
    ///
    /// # Errors
    /// [`LinkError`]; what stood there judges on.
    pub fn promote(&mut self, index: u32, interface: &IfName) -> Result<(), LinkError> {
        self.attach(index, interface, &Program::POD)
    }

    /// As [`Self::promote`], with the program that judges Services on an uplink.
    ///
    /// # Errors
    /// [`LinkError`].
    pub fn attach_uplink(&mut self, index: u32, interface: &IfName) -> Result<(), LinkError> {
        self.attach(index, interface, &Program::UPLINK)
    }

    fn attach(&mut self, index: u32, interface: &IfName, wanted: &[(Hook, Program)]) -> Result<(), LinkError> {
        let of_wanted = |(hook, program, _): &&mut (Hook, Program, _)| wanted.contains(&(*hook, *program));
        for (hook, program, classifier) in self.programs.iter_mut().filter(of_wanted) {
            let failed = |source| LinkError::Attach {
                program: program.name(),
                interface: interface.clone(),
                source: Box::new(source),
            };
            let id = classifier.info().map_err(failed)?.id();
            let path = self.directory.join(name(index, *program));
            let look = || match sys::tcx_programs(index, *hook) {
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {
                    Err(LinkError::Gone { interface: interface.clone(), index })
                }
                looked => looked.map_err(|error| failed(ProgramError::IOError(error))),
            };
            if look()?.contains(&id) && path.exists() {
                continue;
            }
            let side = match hook {
                Hook::Ingress => TcAttachType::Ingress,
                Hook::Egress => TcAttachType::Egress,
            };
            let options = TcAttachOptions::TcxOrder(LinkOrder::first());
            let attached = match classifier.attach_with_options(interface.as_str(), side, options) {
                Ok(attached) => attached,
                // That it has gone may be why.
                Err(error) => return Err(look().err().unwrap_or_else(|| failed(error))),
            };
            let link = classifier.take_link(attached).map_err(failed)?;
            // The link is by the name, which may be another interface's by now; it goes with the descriptor then.
            if !look()?.contains(&id) {
                return Err(LinkError::Gone { interface: interface.clone(), index });
            }
            let pin_failed = |source| LinkError::Pin { path: path.clone(), source };
            let link: FdLink = link.try_into().map_err(|error: AyaLinkError| pin_failed(io::Error::other(error)))?;
            // What a process before has linked there goes with its pin, and judges until then. Without a pin this link goes with the
            // descriptor, which is dropped here.
            replace_pin(&path, |new| link.pin(new).map(drop).map_err(io::Error::other)).map_err(pin_failed)?;
        }
        Ok(())
    }
}

/// Puts the pins in their places that a process before had made, and not put there when it ended: what they are to follow goes with its
/// own pin.
pub(crate) fn complete(directory: &Path) {
    let Ok(files) = std::fs::read_dir(directory) else { return };
    for path in files.flatten().map(|file| file.path()) {
        let place = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(NEW_PIN));
        let Some(place) = place.map(|name| path.with_file_name(name)) else { continue };
        if let Err(error) = std::fs::rename(&path, &place) {
            tracing::warn!(path = %path.display(), %error, "cannot put the pin of a link in its place");
        }
    }
}

/// Makes all pinned links of a program run this one, from the next packet on. One that the kernel does not let go over stays, and
/// judges on by the same maps. The pins of links whose interface is gone are removed.
pub(crate) fn refresh(directory: &Path, program: Program, classifier: &mut SchedClassifier) {
    let Ok(files) = std::fs::read_dir(directory) else { return };
    for path in files.flatten().map(|file| file.path()) {
        let parsed = path.file_name().and_then(|name| name.to_str()).and_then(parse);
        if parsed.is_none_or(|(_, name)| name != program.name()) {
            continue;
        }
        let Err(error) = update(&path, classifier) else { continue };
        // As long as it may be a gate, its pin is what it stands by.
        if !matches!(sys::link_interface(&path), Ok(LinkPlace::Gone | LinkPlace::Elsewhere)) {
            tracing::error!(path = %path.display(), %error, "a link goes on with the program of before");
            continue;
        }
        tracing::debug!(path = %path.display(), %error, "the pinned link is of no interface any more");
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "cannot remove the pin of a link");
        }
    }
}

fn update(path: &Path, classifier: &mut SchedClassifier) -> Result<(), ProgramError> {
    let link =
        FdLink::from(PinnedLink::from_pin(path).map_err(|error| ProgramError::IOError(io::Error::other(error)))?);
    let link = SchedClassifierLink::try_from(link).map_err(|error| ProgramError::IOError(io::Error::other(error)))?;
    let attached = classifier.attach_to_link(link)?;
    drop(classifier.take_link(attached)?);
    Ok(())
}

/// Which interface gets its links when.
#[derive(Debug, Default)]
pub struct Promotions {
    /// With the time before which its turn is not, the earliest first.
    waiting: VecDeque<(Ktime, u32, IfName)>,
    not_before: Ktime,
    refused: u64,
}

impl Promotions {
    /// The interface, whose gate was put there now, waits for its turn. One that there is no room for stays with its filters.
    pub fn add(&mut self, index: u32, interface: IfName, now: Ktime) {
        if self.waiting.iter().any(|(_, other, _)| *other == index) {
            return;
        }
        if self.waiting.len() >= WAITING {
            self.refused = self.refused.saturating_add(1);
            return;
        }
        self.waiting.push_back((now.plus(SETTLED), index, interface));
    }

    /// The interface is gone.
    pub fn remove(&mut self, index: u32) {
        self.waiting.retain(|(_, other, _)| *other != index);
    }

    /// Who is to be promoted now; none: nobody's turn has come, or the pause since the last one is not over.
    pub fn next(&mut self, now: Ktime) -> Option<(u32, IfName)> {
        if now < self.not_before {
            return None;
        }
        let (_, index, interface) = self.waiting.pop_front_if(|(turn, ..)| *turn <= now)?;
        self.not_before = now.plus(PAUSE);
        Some((index, interface))
    }

    /// How many there was no room for.
    #[must_use]
    pub const fn refused(&self) -> u64 {
        self.refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_promoted_in_turn_with_pauses() {
        let interface = |name: &str| IfName::new(name).unwrap();
        let mut promotions = Promotions::default();
        let start = Ktime(1_000);
        promotions.add(1, interface("a"), start);
        promotions.add(2, interface("b"), start);
        promotions.add(2, interface("b"), start);
        promotions.add(3, interface("c"), start.plus(PAUSE * 2));
        assert_eq!(promotions.next(start), None, "its pod is starting");
        let settled = start.plus(SETTLED);
        assert_eq!(promotions.next(settled), Some((1, interface("a"))));
        assert_eq!(promotions.next(settled), None, "the pause is not over");
        promotions.remove(2);
        assert_eq!(promotions.next(settled.plus(PAUSE)), None, "the third came later");
        assert_eq!(promotions.next(settled.plus(PAUSE * 2)), Some((3, interface("c"))));
        assert_eq!(promotions.next(settled.plus(PAUSE * 9)), None);
    }

    #[test]
    fn the_name_of_a_pin_tells_the_interface() {
        assert_eq!(parse(&name(17, Program::FromPod)), Some((17, "from_pod")));
        assert_eq!(parse("x_from_pod"), None);
    }
}
