//! The program at the node's local input: it judges what pods sent to a Service whose backend is on the node itself
//! (DESIGN 7). Nothing else sees such a packet after it was translated.
//!
//! It is a netfilter program, which Linux has since 6.4 and aya does not know; so it is loaded here, call by call.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::maps::{MapData, MapError};
use aya_obj::btf::{Btf, BtfError, BtfRelocationError};
use aya_obj::relocation::EbpfRelocationError;
use aya_obj::{Object, ParseError};

use crate::gate::replace_pin;
use crate::layout;
use crate::object::LOCAL;
use crate::sys::{self, Family};

/// Name of the program, in C and in the kernel.
const NAME: &str = "local_input";
/// After all translation: IPVS does it at this hook (`NF_IP_PRI_NAT_SRC - 2`, 98), the others before. Three, because two programs
/// with one priority may not be at one hook, and the new one comes before the old one goes, and before that of another layout of
/// the maps.
const PRIORITIES: [i32; 3] = [101, 102, 103];

/// Why the program could not be put in place.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The kernel has no netfilter programs. What pods send to Services with a backend on the node itself is judged by the
    /// Service's address alone.
    #[error("the kernel has no netfilter programs (Linux 6.4)")]
    Unsupported,
    /// The object file is none.
    #[error("cannot read the program for local input")]
    Parse(#[source] Box<ParseError>),
    /// The kernel does not tell what its structures look like.
    #[error("the kernel does not describe its structures (CONFIG_DEBUG_INFO_BTF)")]
    Types(#[source] Box<BtfError>),
    /// The program does not fit the kernel's structures.
    #[error("cannot fit the program for local input to the kernel's structures")]
    Fit(#[source] Box<BtfRelocationError>),
    /// The program refers to something that is not there.
    #[error("cannot join the program for local input to its maps")]
    Join(#[source] Box<EbpfRelocationError>),
    /// The maps are not pinned: no gate was opened.
    #[error("cannot open the pinned map {map}")]
    Map {
        /// Its name.
        map: &'static str,
        /// The kernel's word.
        #[source]
        source: MapError,
    },
    /// The kernel does not take the program.
    #[error("the kernel does not take the program for local input: {log}")]
    Load {
        /// What its verifier says.
        log: String,
        /// Its word.
        #[source]
        source: io::Error,
    },
    /// The object file is not that of this crate.
    #[error("the program for local input is missing")]
    Missing,
    /// The kernel does not put it there.
    #[error("cannot attach the program for local input")]
    Attach(#[source] io::Error),
    /// It could not be pinned; it judges no longer than this process has it.
    #[error("cannot pin the link {path}")]
    Pin {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Where the link of a family is pinned.
fn pin(root: &Path, family: Family) -> PathBuf {
    let family = match family {
        Family::V4 => 4,
        Family::V6 => 6,
    };
    root.join("links").join(format!("local{family}"))
}

/// Puts the program at the local input of the caller's namespace, in both families, on the maps that are pinned below
/// `root`; in the place of an older one, without a packet between them that meets none. It stays when this process goes.
///
/// # Errors
/// [`LocalError`].
pub fn attach(root: &Path) -> Result<(), LocalError> {
    let program = load(root)?;
    for family in [Family::V4, Family::V6] {
        let path = pin(root, family);
        let link = link(program.as_fd(), family)?;
        replace_pin(&path, |path| sys::pin(link.as_fd(), path)).map_err(|source| LocalError::Pin { path, source })?;
    }
    Ok(())
}

/// Takes the program away from there.
///
/// # Errors
/// [`LocalError::Pin`].
pub fn detach(root: &Path) -> Result<(), LocalError> {
    for family in [Family::V4, Family::V6] {
        let path = pin(root, family);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(LocalError::Pin { path, source }),
            _ => {}
        }
    }
    Ok(())
}

fn link(program: BorrowedFd<'_>, family: Family) -> Result<OwnedFd, LocalError> {
    let mut taken = None;
    for priority in PRIORITIES {
        match sys::attach_local_input(program, family, priority) {
            // The older one has it.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => taken = Some(error),
            Err(error) => return Err(LocalError::Attach(error)),
            Ok(link) => return Ok(link),
        }
    }
    Err(LocalError::Attach(taken.unwrap_or_else(|| io::ErrorKind::ResourceBusy.into())))
}

fn load(root: &Path) -> Result<OwnedFd, LocalError> {
    if !sys::has_netfilter_programs() {
        return Err(LocalError::Unsupported);
    }
    let mut object = Object::parse(LOCAL).map_err(|error| LocalError::Parse(Box::new(error)))?;
    let types = Btf::from_sys_fs().map_err(|error| LocalError::Types(Box::new(error)))?;
    object.relocate_btf(&types).map_err(|error| LocalError::Fit(Box::new(error)))?;
    let maps = std::mem::take(&mut object.maps);
    let mut opened: Vec<(&'static str, MapData)> = Vec::new();
    for map in layout::MAPS.iter().map(|map| map.name).filter(|map| maps.contains_key(*map)) {
        // By its pin: to open a map by its number takes CAP_SYS_ADMIN.
        opened.push((map, MapData::from_pin(root.join(map)).map_err(|source| LocalError::Map { map, source })?));
    }
    let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    let joined =
        opened.iter().filter_map(|(name, data)| maps.get(*name).map(|map| (*name, data.fd().as_fd().as_raw_fd(), map)));
    object.relocate_maps(joined, &text).map_err(|error| LocalError::Join(Box::new(error)))?;
    object.relocate_calls(&text).map_err(|error| LocalError::Join(Box::new(error)))?;
    let program = object.programs.get(NAME).ok_or(LocalError::Missing)?;
    let function = object.functions.get(&program.function_key()).ok_or(LocalError::Missing)?;
    let mut log = String::new();
    let loaded = sys::load_netfilter(NAME, &program.license, &function.instructions, &mut log);
    loaded.map_err(|source| LocalError::Load { log, source })
}
