//! The maps of names: what the proxy writes while policyd is away, and nothing else (DESIGN 8).

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use aya::maps::lpm_trie::Key;
use aya::maps::{LpmTrie, MapData};

use crate::layout::Address;
use crate::reader::{ReadError, address, found, open};

/// Bits of the key of one address.
const ADDRESS_BITS: u32 = 128;

/// The pinned maps from addresses to identities.
pub struct NameMaps {
    names: LpmTrie<MapData, Address, u32>,
    ipcache: LpmTrie<MapData, Address, u32>,
}

impl fmt::Debug for NameMaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NameMaps").finish_non_exhaustive()
    }
}

impl NameMaps {
    /// Opens the maps that are pinned in `root`.
    ///
    /// # Errors
    /// [`ReadError::Open`].
    pub fn open(root: &Path) -> Result<Self, ReadError> {
        Ok(Self { names: open(root, "names")?, ipcache: open(root, "ipcache")? })
    }

    /// The identity that an address has without a name.
    ///
    /// # Errors
    /// [`ReadError::Lookup`].
    pub fn identity(&self, of: IpAddr) -> Result<Option<u32>, ReadError> {
        found("ipcache", self.ipcache.get(&Key::new(ADDRESS_BITS, address(of)), 0))
    }

    /// The identity that an address has by its names.
    ///
    /// # Errors
    /// [`ReadError::Lookup`].
    pub fn name(&self, of: IpAddr) -> Result<Option<u32>, ReadError> {
        found("names", self.names.get(&Key::new(ADDRESS_BITS, address(of)), 0))
    }

    /// Gives an address the identity that it has by its names from now on.
    ///
    /// # Errors
    /// The map is full, or the kernel refuses.
    pub fn set_name(&mut self, of: IpAddr, identity: u32) -> io::Result<()> {
        self.names.insert(&Key::new(ADDRESS_BITS, address(of)), identity, 0).map_err(io::Error::other)
    }
}
