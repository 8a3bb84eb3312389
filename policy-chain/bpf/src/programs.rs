//! The programs that are loaded, and where each belongs.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aya::programs::SchedClassifier;
use sluice_hostnet::tc::Hook;

/// A program of the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Program {
    /// Judges what a pod sends: ingress of its host interface.
    FromPod,
    /// Judges what a pod is sent: egress of its host interface.
    ToPod,
    /// Drops everything: both hooks of an interface whose gate is not set up.
    Drop,
    /// Judges what pods sent to a Service whose backend is elsewhere: egress of an uplink.
    Uplink,
}

impl Program {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::FromPod, Self::ToPod, Self::Drop, Self::Uplink];
    /// What belongs on the host's interface of a pod.
    pub const POD: [(Hook, Self); 2] = [(Hook::Ingress, Self::FromPod), (Hook::Egress, Self::ToPod)];
    /// What is on the host's interface of a pod until its gate is set up.
    pub const CLOSED: [(Hook, Self); 2] = [(Hook::Ingress, Self::Drop), (Hook::Egress, Self::Drop)];
    /// What belongs on an uplink.
    pub const UPLINK: [(Hook, Self); 1] = [(Hook::Egress, Self::Uplink)];

    /// Its name, in C, as a pin and in `tc filter show`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::ToPod => "to_pod",
            Self::Drop => "drop",
            Self::Uplink => "uplink",
        }
    }
}

/// A loaded program.
#[derive(Debug)]
struct Loaded {
    descriptor: OwnedFd,
    id: u32,
}

/// All programs, loaded.
#[derive(Debug)]
pub struct Programs {
    from_pod: Loaded,
    to_pod: Loaded,
    drop: Loaded,
    uplink: Loaded,
}

impl Programs {
    /// `find` gives a program that is loaded.
    pub(crate) fn of<'a, E>(find: impl Fn(Program) -> Result<&'a SchedClassifier, E>) -> Result<Self, E>
    where
        E: From<aya::programs::ProgramError> + From<io::Error>,
    {
        let loaded = |program| -> Result<Loaded, E> {
            let classifier = find(program)?;
            let descriptor = classifier.fd()?.as_fd().try_clone_to_owned()?;
            Ok(Loaded { descriptor, id: classifier.info()?.id() })
        };
        Ok(Self {
            from_pod: loaded(Program::FromPod)?,
            to_pod: loaded(Program::ToPod)?,
            drop: loaded(Program::Drop)?,
            uplink: loaded(Program::Uplink)?,
        })
    }

    const fn loaded(&self, program: Program) -> &Loaded {
        match program {
            Program::FromPod => &self.from_pod,
            Program::ToPod => &self.to_pod,
            Program::Drop => &self.drop,
            Program::Uplink => &self.uplink,
        }
    }

    /// A program's descriptor.
    #[must_use]
    pub fn descriptor(&self, program: Program) -> BorrowedFd<'_> {
        self.loaded(program).descriptor.as_fd()
    }

    /// A program's number in the kernel.
    #[must_use]
    pub const fn id(&self, program: Program) -> u32 {
        self.loaded(program).id
    }
}
