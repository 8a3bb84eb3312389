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

/// How the path of its agent's socket ends, wherever its directory of runtime state is (`/var/run/cilium`).
const AGENT: &str = "/cilium/cilium.sock";

/// `__SO_ACCEPTCON`: the socket listens.
const LISTENS: u32 = 0x1_0000;

/// Whether Cilium's agent runs in the network namespace of the calling thread, as it does in the host's: its socket is there, wherever
/// its file is. As long as it does, what it has at interfaces is no leftover.
///
/// # Errors
/// Those of /proc.
pub fn agent_runs() -> io::Result<bool> {
    Ok(is_listed(&fs::read_to_string("/proc/thread-self/net/unix")?))
}

/// Whether its socket is in the kernel's list: number, references, protocol, flags, type, state, inode and path of each.
fn is_listed(sockets: &str) -> bool {
    sockets.lines().any(|socket| {
        let flags = socket.split_whitespace().nth(3).and_then(|flags| u32::from_str_radix(flags, 16).ok());
        socket.ends_with(AGENT) && flags.is_some_and(|flags| flags & LISTENS != 0)
    })
}

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

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use sluice_hostnet::netns::Namespace;

    use super::*;

    #[test]
    fn the_agent_is_seen_by_its_socket_in_the_host_and_while_it_listens() {
        let dir = std::env::temp_dir().join(format!("sluice-cilium-agent-{}", std::process::id()));
        fs::create_dir_all(dir.join("cilium")).unwrap();
        let path = dir.join("cilium/cilium.sock");
        let host = Namespace::new_unbound().expect("the tests run as root");
        let elsewhere = Namespace::new_unbound().unwrap();
        let seen = |namespace: &Namespace| namespace.run(|| agent_runs().unwrap()).unwrap();
        assert!(!seen(&host));
        let listener = host.run(|| UnixListener::bind(&path).unwrap()).unwrap();
        assert!(seen(&host) && !seen(&elsewhere));
        let client = host.run(|| UnixStream::connect(&path).unwrap()).unwrap();
        let accepted = listener.accept().unwrap();
        drop(listener);
        assert!(!seen(&host), "a connection of before is no agent");
        drop((client, accepted));
        fs::remove_dir_all(&dir).unwrap();
    }
}
