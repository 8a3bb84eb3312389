//! Programs of two instructions for tests, loaded without a compiler. Other packages' tests include this file by its
//! path.
#![expect(unsafe_code, reason = "bpf(2) has no safe door in nix or the standard library")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

/// `r0 = TC_ACT_SHOT; exit`: every packet is dropped.
pub(crate) const DROP: [u64; 2] = [0x0000_0002_0000_00b7, 0x95];
/// `r0 = TC_ACT_OK; exit`: every packet passes.
pub(crate) const PASS: [u64; 2] = [0x0000_0000_0000_00b7, 0x95];

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
/// What runs at the hooks of a link.
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;

/// The first fields of `union bpf_attr` for `BPF_PROG_LOAD`; the kernel takes the rest for zeros.
#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
}

#[repr(C)]
struct Pin {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Loads a program for the hooks of a link. Its instructions are `struct bpf_insn`, as numbers.
pub(crate) fn load(instructions: &[u64]) -> OwnedFd {
    load_as(BPF_PROG_TYPE_SCHED_CLS, instructions)
}

/// Loads a program of a type of `enum bpf_prog_type`.
pub(crate) fn load_as(prog_type: u32, instructions: &[u64]) -> OwnedFd {
    let attributes = Load {
        prog_type,
        insn_cnt: instructions.len().try_into().unwrap(),
        insns: instructions.as_ptr().addr() as u64,
        license: c"GPL".as_ptr().addr() as u64,
    };
    // SAFETY: the kernel reads the attributes, the instructions and the licence, all of which live through the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attributes, size_of::<Load>()) };
    assert!(fd >= 0, "cannot load a program (root is needed): {}", io::Error::last_os_error());
    // SAFETY: the descriptor is new and ours.
    unsafe { OwnedFd::from_raw_fd(fd.try_into().unwrap()) }
}

/// Pins a program.
pub(crate) fn pin(program: BorrowedFd<'_>, path: &Path) {
    let name = CString::new(path.as_os_str().as_bytes()).unwrap();
    let bpf_fd = program.as_raw_fd().try_into().unwrap();
    let attributes = Pin { pathname: name.as_ptr().addr() as u64, bpf_fd, file_flags: 0 };
    // SAFETY: the kernel reads the attributes and the string, both of which live through the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_PIN, &raw const attributes, size_of::<Pin>()) };
    assert!(result == 0, "cannot pin {}: {}", path.display(), io::Error::last_os_error());
}

/// Mounts a file system for pins at `path`, on a thread that has mounts of its own.
pub(crate) fn bpffs(path: &str) -> PathBuf {
    mount(Some("bpf"), path, Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
    path.into()
}

/// The kernel's number of a program.
pub(crate) fn program_id(program: BorrowedFd<'_>) -> u32 {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd())).unwrap();
    info.lines().find_map(|line| line.strip_prefix("prog_id:")).unwrap().trim().parse().unwrap()
}
