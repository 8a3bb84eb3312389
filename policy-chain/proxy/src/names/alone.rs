//! Names while policyd is away: addresses of which policyd has written the like are written without it.
//!
//! An identity stands for all that rules ask of an address, so no new one can be made up here. But policyd tells which it
//! has given to addresses by what they were before and by the patterns that mean their names; an address that is the same
//! before and gets the same patterns gets the same identity. What is written is noted in a file, which policyd reads when
//! it is back, before it removes from the maps what it does not know.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sluice_contract::names::Resolved;
use sluice_policy_bpf::names::NameMaps;

use super::{Resolution, Wanted};

/// Octets that the file may have. What is learned after that is not written: it could not be told to policyd.
const FILE: u64 = 8 * 1024 * 1024;

/// The kernel's maps, as far as names need them.
pub trait Maps: fmt::Debug + Send + Sync + 'static {
    /// The identity of an address in `ipcache`.
    fn identity(&self, address: IpAddr) -> Option<u32>;

    /// The identity of an address in `names`.
    fn name(&self, address: IpAddr) -> Option<u32>;

    /// Writes the identity of an address to `names`.
    ///
    /// # Errors
    /// The map is full, or not there.
    fn set_name(&self, address: IpAddr, identity: u32) -> io::Result<()>;
}

/// The pinned maps. They are opened when they are first needed: policyd may not have made them yet.
#[derive(Debug)]
pub struct Pinned {
    root: PathBuf,
    maps: Mutex<Option<NameMaps>>,
}

impl Pinned {
    /// The maps that are pinned in `root`.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self { root, maps: Mutex::default() }
    }

    fn with<T>(&self, then: impl FnOnce(&mut NameMaps) -> Option<T>) -> Option<T> {
        let mut maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        if maps.is_none() {
            match NameMaps::open(&self.root) {
                Ok(opened) => *maps = Some(opened),
                Err(error) => tracing::debug!(error = %error, "the maps of names cannot be opened"),
            }
        }
        then(maps.as_mut()?)
    }
}

impl Maps for Pinned {
    fn identity(&self, address: IpAddr) -> Option<u32> {
        self.with(|maps| maps.identity(address).ok().flatten())
    }

    fn name(&self, address: IpAddr) -> Option<u32> {
        self.with(|maps| maps.name(address).ok().flatten())
    }

    fn set_name(&self, address: IpAddr, identity: u32) -> io::Result<()> {
        self.with(|maps| Some(maps.set_name(address, identity))).unwrap_or(Err(io::ErrorKind::NotFound.into()))
    }
}

/// Writes names without policyd.
#[derive(Debug)]
pub struct Alone {
    maps: Box<dyn Maps>,
    path: PathBuf,
    known: Mutex<Known>,
}

/// What policyd has told, in the order in which it is looked for.
#[derive(Debug, Default)]
struct Known {
    of: Option<Arc<Wanted>>,
    identities: HashMap<(u32, BTreeSet<usize>), u32>,
    patterns: HashMap<u32, BTreeSet<usize>>,
    file: Option<(File, u64)>,
}

impl Alone {
    /// Writes to these maps, and notes what it wrote in the file at `path`.
    #[must_use]
    pub fn new(maps: Box<dyn Maps>, path: PathBuf) -> Self {
        Self { maps, path, known: Mutex::default() }
    }

    /// Writes the addresses of a name; whether the gates know all of them now.
    pub(super) fn write(&self, resolution: &Resolution, wanted: &Arc<Wanted>) -> bool {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.take(wanted);
        let meant: BTreeSet<usize> = (0..)
            .zip(&wanted.patterns)
            .filter_map(|(at, pattern)| pattern.matches(&resolution.name).then_some(at))
            .collect();
        let mut written = Vec::new();
        for address in resolution.addresses.iter() {
            let before = self.maps.name(*address);
            let mut patterns = match before {
                // Of an identity that policyd has not told of it is not known what it means.
                Some(identity) => match known.patterns.get(&identity) {
                    Some(patterns) => patterns.clone(),
                    None => continue,
                },
                None => BTreeSet::new(),
            };
            patterns.extend(&meant);
            let Some(base) = self.maps.identity(*address) else { continue };
            let Some(identity) = known.identities.get(&(base, patterns)).copied() else { continue };
            if before == Some(identity) || self.maps.set_name(*address, identity).is_ok() {
                written.push(*address);
            }
        }
        if written.is_empty() {
            return false;
        }
        let lasts = Duration::from_secs(resolution.ttl.into()).max(wanted.least);
        let until = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + lasts;
        let whole = written.len() == resolution.addresses.len();
        let note = Resolved {
            name: resolution.name.to_string(),
            addresses: written,
            until: until.as_secs(),
            pod: Some((resolution.pod.namespace.to_string(), resolution.pod.name.to_string())),
        };
        if let Err(error) = known.note(&self.path, &note) {
            tracing::error!(path = %self.path.display(), error = %error, "a name that was written alone could not be noted");
        }
        whole
    }
}

impl Known {
    fn take(&mut self, wanted: &Arc<Wanted>) {
        if self.of.as_ref().is_some_and(|of| Arc::ptr_eq(of, wanted)) {
            return;
        }
        self.identities.clear();
        self.patterns.clear();
        for class in &wanted.classes {
            let places: Option<BTreeSet<usize>> = class
                .patterns
                .iter()
                .map(|pattern| wanted.patterns.iter().position(|known| known == pattern))
                .collect();
            // A pattern that is no longer in force is still part of what the identity means.
            let Some(places) = places else { continue };
            self.identities.insert((class.base, places.clone()), class.identity);
            self.patterns.insert(class.identity, places);
        }
        self.of = Some(Arc::clone(wanted));
    }

    fn note(&mut self, path: &PathBuf, note: &Resolved) -> io::Result<()> {
        // policyd takes the file away when it has read it.
        if !path.exists() {
            self.file = None;
        }
        let (file, length) = match &mut self.file {
            Some(open) => open,
            none => {
                let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
                let length = file.metadata()?.len();
                none.insert((file, length))
            }
        };
        let mut line = serde_json::to_vec(note)?;
        line.push(b'\n');
        if *length + line.len() as u64 > FILE {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        file.write_all(&line)?;
        *length += line.len() as u64;
        Ok(())
    }
}
