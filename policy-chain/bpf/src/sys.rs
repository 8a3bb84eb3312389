//! The calls of bpf(2) that aya does not make.
#![expect(unsafe_code, reason = "bpf(2) takes addresses")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use aya::Pod;
use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd};
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
    attributes.batch.map_fd = u32::try_from(map.as_raw_fd()).unwrap_or(u32::MAX);
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
    let attributes: *mut bpf_attr = attributes;
    // SAFETY: the attributes outlive the call, and the addresses in them are of live buffers of the sizes that the map's
    // keys and values have; the callers see to that.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
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
