//! The maps, with their types, and what their errors mean.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aya::Ebpf;
use aya::Pod as Plain;
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, RingBuf};

use super::ApplyError;
use crate::layout::{
    Address, AddressPrefix, Connection, ConnectionKey, Counter, Decision, Endpoint, Frontend, Peer, RowPort, RowPrefix,
    Settings,
};
use crate::sys::{Cursor, read_batch};

/// Entries that are read in one call.
pub(super) const BATCH: usize = 4096;

pub(super) type Names = LpmTrie<MapData, Address, u32>;

/// All maps but those of fragments and of recent packets, which are the programs' alone.
pub(super) struct Maps {
    pub(super) endpoints: HashMap<MapData, u32, Endpoint>,
    pub(super) owners: HashMap<MapData, Address, u32>,
    pub(super) names: Names,
    pub(super) ipcache: Names,
    pub(super) frontends: HashMap<MapData, Frontend, u32>,
    pub(super) peers: HashMap<MapData, Peer, u32>,
    pub(super) rows: LpmTrie<MapData, RowPort, u32>,
    pub(super) decisions: HashMap<MapData, u32, Decision>,
    pub(super) connections: HashMap<MapData, ConnectionKey, Connection>,
    pub(super) counters: PerCpuHashMap<MapData, u32, Counter>,
    pub(super) drops: PerCpuArray<MapData, Counter>,
    pub(super) settings: Array<MapData, Settings>,
    pub(super) limits: BTreeMap<&'static str, u32>,
    /// For reading in batches: aya gives no descriptor of a typed map.
    descriptors: BTreeMap<&'static str, OwnedFd>,
}

impl fmt::Debug for Maps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Maps").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// A map of the programs is missing, or is not what the layout says.
#[derive(Debug, thiserror::Error)]
#[error("the map {map} of the programs is not what the layout says")]
pub struct Strange {
    map: &'static str,
    #[source]
    source: Option<MapError>,
}

struct Taker<'a> {
    object: &'a mut Ebpf,
    descriptors: BTreeMap<&'static str, OwnedFd>,
}

impl Taker<'_> {
    fn take<T: TryFrom<Map, Error = MapError>>(&mut self, map: &'static str) -> Result<T, Strange> {
        let taken = self.object.take_map(map).ok_or(Strange { map, source: None })?;
        if let Some(descriptor) = descriptor(&taken) {
            let descriptor = descriptor.try_clone_to_owned();
            let descriptor = descriptor.map_err(|error| Strange { map, source: Some(MapError::IoError(error)) })?;
            self.descriptors.insert(map, descriptor);
        }
        T::try_from(taken).map_err(|error| Strange { map, source: Some(error) })
    }
}

fn descriptor(map: &Map) -> Option<BorrowedFd<'_>> {
    match map {
        Map::HashMap(data) | Map::LruHashMap(data) | Map::LpmTrie(data) => Some(data.fd().as_fd()),
        _ => None,
    }
}

impl Maps {
    /// Takes the maps of a loaded object, and the ring buffer of the events.
    pub(super) fn take(
        object: &mut Ebpf,
        limits: BTreeMap<&'static str, u32>,
    ) -> Result<(Self, RingBuf<MapData>), Strange> {
        let mut taker = Taker { object, descriptors: BTreeMap::new() };
        let events = taker.take("events")?;
        let mut maps = Self {
            endpoints: taker.take("endpoints")?,
            owners: taker.take("owners")?,
            names: taker.take("names")?,
            ipcache: taker.take("ipcache")?,
            frontends: taker.take("frontends")?,
            peers: taker.take("peers")?,
            rows: taker.take("rows")?,
            decisions: taker.take("decisions")?,
            connections: taker.take("connections")?,
            counters: taker.take("counters")?,
            drops: taker.take("drops")?,
            settings: taker.take("settings")?,
            limits,
            descriptors: BTreeMap::new(),
        };
        maps.descriptors = taker.descriptors;
        Ok((maps, events))
    }

    /// Reads a hash map or a trie whole, a batch at a time, and says how many entries it had.
    pub(super) fn read<K: Plain, V: Plain>(
        &self,
        map: &'static str,
        mut each: impl FnMut(K, V),
    ) -> Result<usize, ApplyError> {
        let (mut cursor, mut entries, mut count) = (Cursor::new(), Vec::new(), 0_usize);
        loop {
            let end = self.read_some(map, &mut cursor, BATCH, &mut entries)?;
            count = count.saturating_add(entries.len());
            for (key, value) in entries.drain(..) {
                each(key, value);
            }
            if end {
                return Ok(count);
            }
        }
    }

    /// One batch; says whether it was the last.
    pub(super) fn read_some<K: Plain, V: Plain>(
        &self,
        map: &'static str,
        cursor: &mut Cursor,
        limit: usize,
        entries: &mut Vec<(K, V)>,
    ) -> Result<bool, ApplyError> {
        let failed = |source| ApplyError::Kernel { map, action: "read", source };
        let descriptor = self.descriptors.get(map).ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        read_batch(descriptor.as_fd(), cursor, limit, entries).map_err(failed)
    }

    /// What a failed write means.
    pub(super) fn failed(&self, map: &'static str, error: MapError) -> ApplyError {
        match errno(&error) {
            // Hash maps say E2BIG (kernel/bpf/hashtab.c), tries ENOSPC (kernel/bpf/lpm_trie.c).
            Some(libc::E2BIG | libc::ENOSPC) => {
                ApplyError::Full { map, limit: self.limits.get(map).copied().unwrap_or_default() }
            }
            _ => kernel(map, "write to", error),
        }
    }
}

fn errno(error: &MapError) -> Option<i32> {
    match error {
        MapError::SyscallError(error) => error.io_error.raw_os_error(),
        MapError::IoError(error) => error.raw_os_error(),
        _ => None,
    }
}

/// An error of the kernel.
pub(super) fn kernel(map: &'static str, action: &'static str, error: MapError) -> ApplyError {
    let source = match error {
        MapError::SyscallError(error) => error.io_error,
        MapError::IoError(error) => error,
        other => io::Error::other(other),
    };
    ApplyError::Kernel { map, action, source }
}

/// What a lookup found; nothing, where nothing is.
pub(super) fn found<T>(map: &'static str, result: Result<T, MapError>) -> Result<Option<T>, ApplyError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(None),
        Err(error) => Err(kernel(map, "read", error)),
    }
}

/// What was not there need not be removed.
pub(super) fn removed(map: &'static str, result: Result<(), MapError>) -> Result<(), ApplyError> {
    match result {
        Err(MapError::KeyNotFound | MapError::ElementNotFound) | Ok(()) => Ok(()),
        Err(error) if errno(&error) == Some(libc::ENOENT) => Ok(()),
        Err(error) => Err(kernel(map, "remove from", error)),
    }
}

/// A trie's key.
pub(super) const fn trie_key(prefix: AddressPrefix) -> Key<Address> {
    Key::new(prefix.bits, prefix.address)
}

/// A trie's key.
pub(super) const fn row_key(prefix: RowPrefix) -> Key<RowPort> {
    Key::new(prefix.bits, prefix.of)
}
