//! Opens what others have pinned in the file system of BPF objects.
//!
//! Plugins load no programs; they attach one that is there. So this is one call of `bpf(2)`, without the crates that
//! can do all of it.
#![expect(unsafe_code, reason = "bpf(2) has no safe door in nix or the standard library")]

use std::ffi::CString;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// `BPF_OBJ_GET` of `enum bpf_cmd` (include/uapi/linux/bpf.h).
const BPF_OBJ_GET: libc::c_long = 7;

/// Why a pinned object could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the pinned BPF object {path}")]
pub struct PinError {
    /// The pin.
    pub path: PathBuf,
    /// The system's word.
    #[source]
    pub source: io::Error,
}

impl PinError {
    /// Whether there is no such pin: nobody has made it since the node booted, or no BPF file system is mounted there.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        // A path into another file system that happens to exist is refused with EACCES (`bpf_inode_type`).
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// The part of `union bpf_attr` that `BPF_OBJ_GET` reads, with the padding spelt out.
#[repr(C)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Opens the object that is pinned at `path`: a program, a map or a link. What it is shows when it is used: the kernel
/// attaches nothing but a program of the hook's type.
///
/// # Errors
/// [`PinError`]; [`PinError::is_missing`] tells whether nothing is pinned there.
pub fn open_pinned(path: impl AsRef<Path>) -> Result<OwnedFd, PinError> {
    let path = path.as_ref();
    let failed = |source| PinError { path: path.into(), source };
    let name = CString::new(path.as_os_str().as_bytes())
        .map_err(|_nul| failed(io::Error::new(io::ErrorKind::InvalidInput, "the path has a zero byte in it")))?;
    let attributes = ObjGet { pathname: name.as_ptr().addr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: the kernel reads `size_of::<ObjGet>()` bytes, all of them initialised, and the string that `pathname`
    // points to, which ends in a zero and lives until after the call; it writes to neither.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const attributes, size_of::<ObjGet>()) };
    let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(|| failed(io::Error::last_os_error()))?;
    // SAFETY: the kernel has just made this descriptor (close-on-exec) for us, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::testing::{DROP, PASS, bpffs, load, pin, program_id};
    use super::*;
    use crate::netns::{NamespaceThread, ThreadSpec};

    #[test]
    fn a_pinned_program_is_opened_and_a_missing_one_is_named() {
        let node = NamespaceThread::spawn(ThreadSpec::new_node("pins", "pins")).unwrap();
        node.run_blocking(|| async {
            let dir = bpffs("/mnt");
            let (drop, pass) = (load(&DROP), load(&PASS));
            pin(drop.as_fd(), &dir.join("drop"));
            let opened = open_pinned(dir.join("drop")).unwrap();
            assert_eq!(program_id(opened.as_fd()), program_id(drop.as_fd()));
            assert_ne!(program_id(opened.as_fd()), program_id(pass.as_fd()));
            let error = open_pinned(dir.join("gone")).unwrap_err();
            assert!(error.is_missing(), "{error:?}");
            assert_eq!(error.to_string(), "cannot open the pinned BPF object /mnt/gone");
            // A file of another file system is there, and is no pin.
            let error = open_pinned("/proc/self/status").unwrap_err();
            assert!(!error.is_missing(), "{error:?}");
            let error = open_pinned("/mnt/\0").unwrap_err();
            assert_eq!(error.source.kind(), io::ErrorKind::InvalidInput);
        })
        .unwrap();
    }
}
