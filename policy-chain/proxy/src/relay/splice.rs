//! Moving octets from one socket to another inside the kernel.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::task::{Poll, ready};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Octets that a pipe is asked to hold. An ordinary user may have 1 MiB; less is taken as it is.
const PIPE: i32 = 256 << 10;
/// Most pipes that a thread keeps for later.
const KEPT: usize = 64;

thread_local! {
    static PIPES: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// A pipe: what splice(2) needs between two sockets.
#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    fn take() -> io::Result<Self> {
        if let Some(pipe) = PIPES.with_borrow_mut(Vec::pop) {
            return Ok(pipe);
        }
        let (read, write) = nix::unistd::pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
        match fcntl(&write, FcntlArg::F_SETPIPE_SZ(PIPE)) {
            // Over the user's limit for all pipes: it stays as it is.
            Ok(_) | Err(Errno::EPERM | Errno::EBUSY) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(Self { read, write })
    }

    /// Keeps it for later. It must be empty.
    fn give(self) {
        PIPES.with_borrow_mut(|pipes| {
            if pipes.len() < KEPT {
                pipes.push(self);
            }
        });
    }
}

/// Which side failed.
#[derive(Debug)]
pub(crate) enum Failed {
    /// Reading.
    From(io::Error),
    /// Writing.
    To(io::Error),
}

/// Waits for octets and moves those that are there, at most `limit`; gives how many, 0 at the end of the stream.
///
/// A pipe is held only while octets are under way, so that connections that wait have none.
///
/// # Errors
/// Which side failed; octets that had been taken from the source by then are lost.
pub(crate) async fn splice_some(
    from: &TcpStream,
    to: &TcpStream,
    limit: usize,
    mut progress: impl FnMut(usize),
) -> Result<usize, Failed> {
    let (pipe, taken) = step(from, Interest::READABLE, || {
        let pipe = Pipe::take()?;
        match moved(from, &pipe.write, limit) {
            Ok(0) => {
                pipe.give();
                Ok((None, 0))
            }
            Ok(count) => Ok((Some(pipe), count)),
            Err(error) => {
                pipe.give();
                Err(error)
            }
        }
    })
    .await
    .map_err(Failed::From)?;
    let Some(pipe) = pipe else { return Ok(0) };
    let mut held = taken;
    while held > 0 {
        let count = step(to, Interest::WRITABLE, || moved(&pipe.read, to, held)).await.map_err(Failed::To)?;
        if count == 0 {
            return Err(Failed::To(io::ErrorKind::WriteZero.into()));
        }
        held = held.saturating_sub(count);
        progress(count);
    }
    pipe.give();
    Ok(taken)
}

fn moved(from: impl AsFd, to: impl AsFd, count: usize) -> io::Result<usize> {
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    let (from, to) = (from.as_fd().as_raw_fd(), to.as_fd().as_raw_fd());
    // SAFETY: both descriptors are borrowed for the time of the call, and there are no offsets to write to.
    let moved = unsafe { libc::splice(from, std::ptr::null_mut(), to, std::ptr::null_mut(), count, flags) };
    usize::try_from(moved).map_err(|_negative| io::Error::last_os_error())
}

/// Tries until it would not block, waiting through the slot that the other calls of this direction use too.
async fn step<T>(stream: &TcpStream, on: Interest, mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    poll_fn(|cx| {
        loop {
            ready!(if on.is_readable() { stream.poll_read_ready(cx) } else { stream.poll_write_ready(cx) })?;
            match stream.try_io(on, &mut work) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                answer => return Poll::Ready(answer),
            }
        }
    })
    .await
}
