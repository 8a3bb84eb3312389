use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use sluice_contract::rpc::{Call, Outcome};

use super::*;

struct Socket(PathBuf);

impl Socket {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self(std::env::temp_dir().join(format!("sluice-client-{}-{count}.sock", std::process::id())))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

fn ask(socket: &Path, deadline: Duration, patience: Duration) -> Result<Outcome, ClientError> {
    let deadline = Instant::now() + deadline;
    Client { us: "sluice-test", daemon: "testd", socket, deadline, patience }.ask(Call::Status)
}

/// A daemon that hangs takes nobody in: when its queue is full, even connecting waits.
#[test]
fn a_daemon_with_a_full_queue_is_waited_for_no_longer_than_the_deadline() {
    let path = Socket::new();
    let listener = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(listener.as_raw_fd(), &UnixAddr::new(&path.0).unwrap()).unwrap();
    // One waits in the queue; the next waits for a place in it.
    listen(&listener, Backlog::new(0).unwrap()).unwrap();
    let first = UnixStream::connect(&path.0).unwrap();
    let (told, answer) = mpsc::channel();
    let asked = path.0.clone();
    let asking = std::thread::spawn(move || {
        told.send(ask(&asked, Duration::from_millis(200), Duration::from_millis(100))).unwrap();
    });
    let result = answer.recv_timeout(Duration::from_secs(20));
    // Lets one that still waits go on.
    drop((listener, first));
    asking.join().unwrap();
    let error = result.expect("it gives up").unwrap_err();
    assert!(matches!(error, ClientError::Late { .. }), "{error:?}");
    assert!(error.is_gone());
}

#[test]
fn a_path_that_is_no_socket_is_named() {
    for path in [PathBuf::from("/"), PathBuf::from(format!("/{}", "x".repeat(200)))] {
        let error = ask(&path, Duration::ZERO, Duration::ZERO).unwrap_err();
        assert!(error.to_string().starts_with("testd does not listen on /"), "{error}");
    }
}
