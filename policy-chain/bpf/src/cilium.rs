//! What Cilium, chained behind the VPC CNI, leaves at interfaces when its agent has gone. Its programs go on judging, by maps that
//! nobody writes any more, and those that are attached by tcx links (Cilium 1.16 and Linux 6.6) end the walk before any filter is
//! asked: the gate would stand there unheard.
//!
//! It pins its links below `cilium/endpoints/ID/links` and `cilium/devices/NAME/links` (its `pkg/datapath/loader/paths.go`), and
//! its filters are called `cil_...` (`cil_from_container`, `cil_to_netdev`, ...), at the priority and handle that the gate's have.
//! The one at a pod's hook is thus replaced when the gate is put there.
//!
//! Where Cilium makes pods' interfaces itself these may be netkit devices (Linux 6.7), with links of their own kind.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::net::if_::if_indextoname;

use crate::sys::{self, LinkPlace};

/// How the names of Cilium's filters begin.
pub(crate) const FILTERS: &str = "cil_";

/// Removes the pins of Cilium's links, and with them its programs, at all interfaces for which `is_gated` says that they have a
/// gate. Links of devices go with the last of the pods'. Where Cilium has pods that have no gate, or whose network it has made
/// itself, nothing of these and of devices is touched. Answers what was removed.
///
/// # Errors
/// Those of the file system of BPF objects; the next call goes on.
pub(crate) fn remove_links(bpffs: &Path, is_gated: impl Fn(u32) -> bool) -> io::Result<Vec<PathBuf>> {
    let root = bpffs.join("cilium");
    let mut removed = Vec::new();
    let mut remain = false;
    for link in links(&root.join("endpoints"))? {
        // A link of no interface is one whose pod has gone.
        match sys::link_interface(&link)? {
            LinkPlace::Interface(interface) if is_gated(interface) && !is_ciliums(interface) => {
                removed.push(remove(link)?)
            }
            LinkPlace::Gone => removed.push(remove(link)?),
            LinkPlace::Interface(_) | LinkPlace::Elsewhere => remain = true,
        }
    }
    if !remain {
        for link in links(&root.join("devices"))? {
            removed.push(remove(link)?);
        }
    }
    Ok(removed)
}

/// Whether Cilium has made the interface of this number: it serves that pod's network itself, and needs its programs for it.
fn is_ciliums(interface: u32) -> bool {
    if_indextoname(interface).is_ok_and(|name| name.to_bytes().starts_with(b"lxc"))
}

fn remove(link: PathBuf) -> io::Result<PathBuf> {
    fs::remove_file(&link)?;
    Ok(link)
}

/// The pins below `directory/*/links`.
fn links(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for owner in entries(directory)? {
        found.extend(entries(&owner.join("links"))?);
    }
    Ok(found)
}

/// What is in a directory; nothing where there is none.
fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(Vec::new()),
        listed => listed?.map(|entry| Ok(entry?.path())).collect(),
    }
}
