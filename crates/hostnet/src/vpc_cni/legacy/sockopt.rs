//! Options of a socket whose value is as long as the caller says.
#![expect(unsafe_code, reason = "nix knows options of one length alone")]

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

/// Reads an option of `socket` into `value`, which is also what is asked.
pub(super) fn get(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, value: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    let (socket, buffer) = (socket.as_raw_fd(), value.as_mut_ptr().cast());
    // SAFETY: the kernel writes no more than `length` bytes to `buffer`, which is that long, and both live as long as the call takes.
    let result = unsafe { libc::getsockopt(socket, level, option, buffer, &raw mut length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
