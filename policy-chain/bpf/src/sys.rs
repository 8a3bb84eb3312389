//! The calls of bpf(2) that aya does not make.
#![expect(unsafe_code, reason = "bpf(2) takes addresses")]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::Pod;
use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_insn, bpf_link_type, bpf_prog_type};
use sluice_hostnet::tc::Hook;

/// Room for what the kernel keeps between two batches: a bucket's number (hash maps), or a key (tries).
const CURSOR_BYTES: usize = 64;

/// Where a walk through a map goes on.
#[derive(Debug, Clone)]
pub(crate) struct Cursor {
    position: [u8; CURSOR_BYTES],
    begun: bool,
}

impl Cursor {
    /// At the begin.
    pub(crate) const fn new() -> Self {
        Self { position: [0; CURSOR_BYTES], begun: false }
    }
}

/// Reads up to `limit` entries of a hash map or a trie, appends them to `entries`, and moves the cursor behind them.
/// Says whether that was the end of the map (the cursor is then at the begin again). What is added or removed meanwhile
/// may be seen or not; what stays is seen.
///
/// `BPF_MAP_LOOKUP_BATCH`: Linux 5.6 for hash maps, 5.13 for tries. A hash map wants room for all that is in a bucket,
/// so `limit` should not be under some hundreds: `ENOSPC` says that it was.
pub(crate) fn read_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    cursor: &mut Cursor,
    limit: usize,
    entries: &mut Vec<(K, V)>,
) -> io::Result<bool> {
    if size_of::<K>() > CURSOR_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the key is longer than a cursor"));
    }
    let mut keys: Vec<K> = Vec::with_capacity(limit);
    let mut values: Vec<V> = Vec::with_capacity(limit);
    let mut next = [0_u8; CURSOR_BYTES];
    // SAFETY: all bytes 0 are a value of this union of integers.
    let mut attributes: bpf_attr = unsafe { std::mem::zeroed() };
    attributes.batch.in_batch = if cursor.begun { cursor.position.as_ptr() as u64 } else { 0 };
    attributes.batch.out_batch = next.as_mut_ptr() as u64;
    attributes.batch.keys = keys.as_mut_ptr() as u64;
    attributes.batch.values = values.as_mut_ptr() as u64;
    attributes.batch.count = u32::try_from(limit).unwrap_or(u32::MAX);
    attributes.batch.map_fd = number(map);
    let end = match bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attributes) {
        Ok(()) => false,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
        Err(error) => return Err(error),
    };
    // SAFETY: the kernel has written how many entries it gives.
    let count = unsafe { attributes.batch.count };
    let count = usize::try_from(count).unwrap_or(0).min(limit);
    // SAFETY: the kernel has filled so many keys, which is not above the capacity; every pattern of bytes is a value.
    unsafe { keys.set_len(count) };
    // SAFETY: as for the keys.
    unsafe { values.set_len(count) };
    entries.extend(keys.into_iter().zip(values));
    *cursor = if end { Cursor::new() } else { Cursor { position: next, begun: true } };
    Ok(end)
}

fn bpf(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<()> {
    call(command, attributes).map(drop)
}

fn call(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<libc::c_long> {
    let attributes: *mut bpf_attr = attributes;
    // SAFETY: the attributes outlive the call, and the addresses in them are of live buffers of the sizes that the map's
    // keys and values have, or of strings that end; the callers see to that.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The value that begins with these bytes; none: they are too few.
pub(crate) fn from_bytes<T: Pod>(bytes: &[u8]) -> Option<T> {
    let bytes = bytes.get(..size_of::<T>())?;
    // SAFETY: there are as many bytes as the type has, and every pattern of bytes is a value of it.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// Programs on one hook, at most: the kernel's own limit (`BPF_MPROG_MAX`).
const TCX_PROGRAMS: usize = 64;

/// The numbers of the programs that tcx links have attached to a hook of an interface of the caller's namespace; none
/// where the kernel has no such links (before Linux 6.6).
pub(crate) fn tcx_programs(index: u32, hook: Hook) -> io::Result<Vec<u32>> {
    match tcx_query(index, hook) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(Vec::new()),
        result => result,
    }
}

/// As [`tcx_programs`]; `EINVAL` where the kernel has no such links.
pub(crate) fn tcx_query(index: u32, hook: Hook) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; TCX_PROGRAMS];
    // SAFETY: all bytes 0 are a value of this union of integers.
    let mut attributes: bpf_attr = unsafe { std::mem::zeroed() };
    attributes.query.__bindgen_anon_1.target_ifindex = index;
    attributes.query.attach_type = match hook {
        Hook::Ingress => bpf_attach_type::BPF_TCX_INGRESS,
        Hook::Egress => bpf_attach_type::BPF_TCX_EGRESS,
    } as u32;
    attributes.query.prog_ids = ids.as_mut_ptr() as u64;
    attributes.query.__bindgen_anon_2.prog_cnt = u32::try_from(TCX_PROGRAMS).unwrap_or_default();
    match bpf(bpf_cmd::BPF_PROG_QUERY, &mut attributes) {
        // Nothing was ever attached there.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Vec::new()),
        result => result?,
    }
    // SAFETY: these are the attributes that were asked with.
    let query = unsafe { attributes.query };
    // SAFETY: the kernel has written how many there are.
    let count = unsafe { query.__bindgen_anon_2.prog_cnt };
    ids.truncate(usize::try_from(count).unwrap_or_default());
    Ok(ids)
}

/// Where a link attaches its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkPlace {
    /// To the interface of this index.
    Interface(u32),
    /// To one that is gone.
    Gone,
    /// It is no link of an interface's hooks.
    Elsewhere,
}

/// Where the pinned link at `path` attaches its program, if it is one of tcx (Linux 6.6) or of netkit (6.7).
pub(crate) fn link_interface(path: &Path) -> io::Result<LinkPlace> {
    /// `struct bpf_link_info` up to the interface of a tcx or a netkit link: type, id, program, padding, interface.
    const WORDS: usize = 5;
    const INTERFACE: usize = 4;
    let name = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: all bytes 0 are a value of this union of integers.
    let mut attributes: bpf_attr = unsafe { std::mem::zeroed() };
    attributes.__bindgen_anon_4.pathname = name.as_ptr() as u64;
    let link = bpf_fd(bpf_cmd::BPF_OBJ_GET, &mut attributes)?;
    let mut info = [0_u32; WORDS];
    // SAFETY: as above.
    let mut attributes: bpf_attr = unsafe { std::mem::zeroed() };
    attributes.info.bpf_fd = number(link.as_fd());
    attributes.info.info_len = u32::try_from(size_of_val(&info)).unwrap_or_default();
    attributes.info.info = info.as_mut_ptr() as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    let kinds = [bpf_link_type::BPF_LINK_TYPE_TCX, bpf_link_type::BPF_LINK_TYPE_NETKIT];
    if !kinds.into_iter().any(|kind| info[0] == kind as u32) {
        return Ok(LinkPlace::Elsewhere);
    }
    Ok(if info[INTERFACE] == 0 { LinkPlace::Gone } else { LinkPlace::Interface(info[INTERFACE]) })
}

/// The family of addresses that a hook is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// `NFPROTO_IPV4`.
    V4,
    /// `NFPROTO_IPV6`.
    V6,
}

/// As much as the verifier says when it refuses a program.
const LOG_BYTES: usize = 64 * 1024;

/// Loads a program of type `BPF_PROG_TYPE_NETFILTER`. What the verifier says goes to `log`, if it refuses.
pub(crate) fn load_netfilter(
    name: &str,
    license: &CStr,
    instructions: &[bpf_insn],
    log: &mut String,
) -> io::Result<OwnedFd> {
    let mut said = vec![0_u8; LOG_BYTES];
    // SAFETY: all bytes 0 are a value of this union of integers.
    let mut attributes: bpf_attr = unsafe { std::mem::zeroed() };
    // SAFETY: as above; the fields of this struct are integers, and were all set to 0.
    let load = unsafe { &mut attributes.__bindgen_anon_3 };
    load.prog_type = bpf_prog_type::BPF_PROG_TYPE_NETFILTER as u32;
    load.expected_attach_type = bpf_attach_type::BPF_NETFILTER as u32;
    load.insns = instructions.as_ptr() as u64;
    load.insn_cnt = u32::try_from(instructions.len()).unwrap_or(u32::MAX);
    load.license = license.as_ptr() as u64;
    for (to, from) in load.prog_name.iter_mut().take(NAME_BYTES).zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let loaded = bpf_fd(bpf_cmd::BPF_PROG_LOAD, &mut attributes);
    if loaded.is_err() {
        // SAFETY: as above.
        let load = unsafe { &mut attributes.__bindgen_anon_3 };
        load.log_level = 1;
        load.log_buf = said.as_mut_ptr() as u64;
        load.log_size = u32::try_from(said.len()).unwrap_or_default();
        let again = bpf_fd(bpf_cmd::BPF_PROG_LOAD, &mut attributes);
        let end = said.iter().position(|byte| *byte == 0).unwrap_or_default();
        *log = String::from_utf8_lossy(said.get(..end).unwrap_or_default()).into_owned();
        return again;
    }
    loaded
}

/// Letters of a program's name, at most (`BPF_OBJ_NAME_LEN`, with a 0 at the end).
const NAME_BYTES: usize = 15;

/// Whether the kernel takes programs for netfilter's hooks.
pub(crate) fn has_netfilter_programs() -> bool {
    // r0 = 1 (NF_ACCEPT); exit
    let accept =
        bpf_insn { code: 0xb7, _bitfield_align_1: [], _bitfield_1: bpf_insn::new_bitfield_1(0, 0), off: 0, imm: 1 };
    let exit =
        bpf_insn { code: 0x95, _bitfield_align_1: [], _bitfield_1: bpf_insn::new_bitfield_1(0, 0), off: 0, imm: 0 };
    load_netfilter("probe", c"GPL", &[accept, exit], &mut String::new()).is_ok()
}

/// Attaches a program to the local input of the caller's namespace, for as long as the link that it gives is open or
/// pinned. `EBUSY`: another program has this priority.
pub(crate) fn attach_local_input(program: BorrowedFd<'_>, family: Family, priority: i32) -> io::Result<OwnedFd> {
    const NFPROTO_IPV4: u32 = 2;
    const NFPROTO_IPV6: u32 = 10;
    const NF_INET_LOCAL_IN: u32 = 1;
    // SAFETY: all bytes 0 are a value of this union of integers.
    let mut attributes: bpf_attr = unsafe { std::mem::zeroed() };
    attributes.link_create.__bindgen_anon_1.prog_fd = number(program);
    attributes.link_create.attach_type = bpf_attach_type::BPF_NETFILTER as u32;
    attributes.link_create.__bindgen_anon_3.netfilter.pf = match family {
        Family::V4 => NFPROTO_IPV4,
        Family::V6 => NFPROTO_IPV6,
    };
    attributes.link_create.__bindgen_anon_3.netfilter.hooknum = NF_INET_LOCAL_IN;
    attributes.link_create.__bindgen_anon_3.netfilter.priority = priority;
    bpf_fd(bpf_cmd::BPF_LINK_CREATE, &mut attributes)
}

/// Pins an object at a path that is free.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: all bytes 0 are a value of this union of integers.
    let mut attributes: bpf_attr = unsafe { std::mem::zeroed() };
    attributes.__bindgen_anon_4.pathname = name.as_ptr() as u64;
    attributes.__bindgen_anon_4.bpf_fd = number(object);
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attributes)
}

fn number(descriptor: BorrowedFd<'_>) -> u32 {
    descriptor.as_raw_fd().cast_unsigned()
}

/// A call that gives a descriptor.
fn bpf_fd(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<OwnedFd> {
    let descriptor = call(command, attributes)?;
    let descriptor = RawFd::try_from(descriptor).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made it for us (close-on-exec), and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
