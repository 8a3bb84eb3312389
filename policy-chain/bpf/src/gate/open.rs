//! Loads the programs, on maps that are pinned already where there are any.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use aya::maps::MapError;
use aya::programs::{ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfError, EbpfLoader};
use sluice_contract::node::GATE_DIR;
use sluice_contract::node::egress::is_egress;
use sluice_policy_core::compile::image::PolicyId;

use super::maps::{Maps, Strange};
use super::pins::{Pins, replace_pin};
use super::{ApplyError, Found, FoundEndpoint, Gate, Highest, connections};
use crate::events::Events;
use crate::layout::{
    self, AddressPrefix, Decision, ENDPOINT_AUDIT, ENDPOINT_BRIDGE, ENDPOINT_LOCKDOWN, Frontend, Peer, RowPrefix,
};
use crate::links;
use crate::object::OBJECT;
use crate::programs::{Program, Programs};

/// Where the gates are, and how large.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateConfig {
    /// The directory of pins, in a file system of BPF objects.
    pub root: PathBuf,
    /// How many entries a map can hold, by its name; the others hold what [`layout::MAPS`] says. For maps that are made:
    /// those that are pinned stay as large as they are.
    pub limits: BTreeMap<&'static str, u32>,
}

impl Default for GateConfig {
    fn default() -> Self {
        Self { root: GATE_DIR.into(), limits: BTreeMap::new() }
    }
}

/// Why the gates could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no file system for pins.
    #[error("{path} is not in a file system of BPF objects: mount -t bpf bpf /sys/fs/bpf")]
    NotBpffs {
        /// The nearest directory that exists.
        path: PathBuf,
    },
    /// Another process has them.
    #[error("another process holds the gates in {path}: only one agent may run on a node")]
    Held {
        /// The directory.
        path: PathBuf,
    },
    /// A directory or a pin could not be made or read.
    #[error("cannot use {path}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// What is pinned is not of this layout.
    #[error(
        "{path} is pinned and is not of this layout ({what}: {pinned}, not {expected}): \
         it was made by another program, and has to be removed by hand when no pod is left on the node"
    )]
    Mismatch {
        /// The pin.
        path: PathBuf,
        /// In what it differs.
        what: &'static str,
        /// What it has.
        pinned: String,
        /// What it should have.
        expected: String,
    },
    /// A pinned map could not be opened.
    #[error("cannot open the pinned map {map}")]
    Map {
        /// Its name.
        map: &'static str,
        /// The kernel's word.
        #[source]
        source: MapError,
    },
    /// The maps could not be made, or the programs not be fitted to this kernel.
    #[error("cannot load the gate's programs and maps")]
    Object(#[source] Box<EbpfError>),
    /// The kernel does not take a program.
    #[error("the kernel does not take the program {program}")]
    Program {
        /// Its name.
        program: &'static str,
        /// Its word.
        #[source]
        source: Box<ProgramError>,
    },
    /// The programs are not those of this crate.
    #[error("the gate's programs lack {program}")]
    Missing {
        /// Name of the program.
        program: &'static str,
    },
    /// The maps are not those of this crate.
    #[error("the gate's maps are not as they should be")]
    Strange(#[from] Strange),
    /// What is pinned could not be read.
    #[error("cannot read what is pinned")]
    Read(#[source] ApplyError),
}

/// An error of a program, before it is known which.
#[derive(Debug)]
enum Problem {
    Open(OpenError),
    Program(ProgramError),
}

impl From<ProgramError> for Problem {
    fn from(error: ProgramError) -> Self {
        Self::Program(error)
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::Program(ProgramError::IOError(error))
    }
}

impl Problem {
    fn of(self, program: Program) -> OpenError {
        match self {
            Self::Open(error) => error,
            Self::Program(source) => OpenError::Program { program: program.name(), source: Box::new(source) },
        }
    }
}

impl Gate {
    /// Takes the gates of this node: maps that are pinned are gone on with, others are made, and programs are loaded and
    /// pinned in place of those that are. Pinned links run the new programs when this returns; filters, when
    /// [`Filters::attach`](crate::filters::Filters::attach) has been called for their interface, and the old ones until
    /// then, on the same maps.
    ///
    /// # Errors
    /// [`OpenError`]. Nothing that judges packets has changed then.
    pub fn open(config: &GateConfig) -> Result<(Self, Found), OpenError> {
        let pins = Pins::take(&config.root)?;
        let (mut limits, mut made) = (BTreeMap::new(), Vec::new());
        for map in layout::MAPS {
            let wanted = config.limits.get(map.name).copied().unwrap_or(map.entries);
            let pinned = pins.inspect(map)?;
            if pinned.is_none() {
                made.push(map.name);
            }
            limits.insert(map.name, pinned.unwrap_or(wanted));
        }
        let mut object = load(&pins, &limits)?;
        let programs = load_programs(&mut object, &pins)?;
        let (maps, ring) = Maps::take(&mut object, limits)?;
        let found = look(&maps, made).map_err(OpenError::Read)?;
        let mut kept = BTreeMap::new();
        maps.read("endpoints", |index: u32, entry: layout::Endpoint| {
            if entry.flags & ENDPOINT_BRIDGE == 0 {
                kept.insert(index, entry);
            }
        })
        .map_err(OpenError::Read)?;
        let settings = maps
            .settings
            .get(&0, 0)
            .map_err(|error| OpenError::Read(super::maps::kernel("settings", "read", error)))?;
        let mut gate = Self {
            maps,
            programs: Arc::new(programs),
            events: Some(Events::new(ring)),
            pods: BTreeMap::new(),
            bound: BTreeMap::new(),
            last_id: kept.values().map(|entry| entry.id).max().unwrap_or_default(),
            kept,
            closed: std::collections::BTreeSet::new(),
            rows: BTreeMap::new(),
            settings,
            expiry: connections::Walk::new(),
            pins,
        };
        // Whoever was here before may have ended in the middle of a change.
        gate.end_change().map_err(OpenError::Read)?;
        // Nobody may forget it; what it says is said again to who asks.
        drop(gate.find_conntrack());
        Ok((gate, found))
    }
}

fn load(pins: &Pins, limits: &BTreeMap<&'static str, u32>) -> Result<Ebpf, OpenError> {
    let mut loader = EbpfLoader::new();
    for map in layout::MAPS {
        loader.map_pin_path(map.name, pins.map(map.name));
        if let Some(limit) = limits.get(map.name) {
            loader.map_max_entries(map.name, *limit);
        }
    }
    loader.load(OBJECT).map_err(|error| OpenError::Object(Box::new(error)))
}

/// Loads all programs before the first pin is replaced: those that do not fit this kernel change nothing.
fn load_programs(object: &mut Ebpf, pins: &Pins) -> Result<Programs, OpenError> {
    for program in Program::ALL {
        let classifier = classifier(object, program)?;
        classifier.load().map_err(|error| Problem::from(error).of(program))?;
    }
    links::complete(&pins.links());
    for program in Program::ALL {
        let classifier = classifier(object, program)?;
        let path = pins.program(program.name());
        let pinned = replace_pin(&path, |path| classifier.pin(path).map_err(io::Error::other));
        pinned.map_err(|source| OpenError::Directory { path, source })?;
        links::refresh(&pins.links(), program, classifier);
    }
    let find = |program: Program| -> Result<&SchedClassifier, Problem> {
        let found = object.program(program.name()).and_then(|found| found.try_into().ok());
        found.ok_or(Problem::Open(OpenError::Missing { program: program.name() }))
    };
    Programs::of(find).map_err(|problem| problem.of(Program::FromPod))
}

fn classifier(object: &mut Ebpf, program: Program) -> Result<&mut SchedClassifier, OpenError> {
    let name = program.name();
    let found = object.program_mut(name).ok_or(OpenError::Missing { program: name })?;
    found.try_into().map_err(|error: ProgramError| Problem::from(error).of(program))
}

/// What is in the maps.
fn look(maps: &Maps, made: Vec<&'static str>) -> Result<Found, ApplyError> {
    let mut found = Found { made, ..Found::default() };
    let mut highest = Highest::default();
    let mut entries = BTreeMap::new();
    let mut endpoints = BTreeMap::new();
    let count = maps.read("endpoints", |index: u32, entry: layout::Endpoint| {
        highest.policy(entry.ingress.max(entry.egress));
        highest.revision = highest.revision.max(entry.revision);
        for own in &entry.addresses {
            highest.row(own.ingress.max(own.egress));
        }
        if entry.flags & ENDPOINT_BRIDGE == 0 {
            endpoints.insert(index, endpoint(&entry));
        }
    })?;
    entries.insert("endpoints", count);
    for map in ["names", "ipcache"] {
        entries.insert(map, maps.read(map, |_: AddressPrefix, identity: u32| highest.identity(identity))?);
    }
    entries.insert("frontends", maps.read("frontends", |_: Frontend, identity: u32| highest.identity(identity))?);
    let count = maps.read("peers", |peer: Peer, row: u32| {
        highest.policy(peer.policy);
        highest.identity(peer.identity);
        highest.row(row);
    })?;
    entries.insert("peers", count);
    let count = maps.read("rows", |key: RowPrefix, decision: u32| {
        highest.row(key.of.row);
        highest.decision(decision);
    })?;
    entries.insert("rows", count);
    entries.insert("decisions", maps.read("decisions", |id: u32, _: Decision| highest.decision(id))?);
    found.highest = highest;
    found.entries = entries;
    found.endpoints = endpoints;
    Ok(found)
}

fn endpoint(entry: &layout::Endpoint) -> FoundEndpoint {
    FoundEndpoint {
        id: entry.id,
        ingress: PolicyId(entry.ingress),
        egress: PolicyId(entry.egress),
        locked: entry.flags & ENDPOINT_LOCKDOWN != 0,
        audit: entry.flags & ENDPOINT_AUDIT != 0,
        revision: entry.revision,
        addresses: own_addresses(entry).filter(|address| !is_egress(*address)).collect(),
    }
}

/// The addresses of an entry.
pub(super) fn own_addresses(entry: &layout::Endpoint) -> impl Iterator<Item = IpAddr> {
    entry.addresses.iter().filter(|own| !own.address.is_none()).map(|own| own.address.into())
}
