use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use sluice_contract::id::{Attachment, ContainerId, IfName, NetworkName};

use super::*;

struct Socket(PathBuf);

impl Socket {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self(std::env::temp_dir().join(format!("sluice-eni-{}-{count}.sock", std::process::id())))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

fn request() -> CheckRequest {
    CheckRequest {
        attachment: Attachment {
            container: ContainerId::new("abc").unwrap(),
            ifname: IfName::new("eth0").unwrap(),
            network: NetworkName::new("sluice").unwrap(),
        },
    }
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
        let deadline = Instant::now() + Duration::from_millis(200);
        let ipamd = Ipamd { socket: &asked, deadline, patience: Duration::from_millis(100) };
        told.send(ipamd.check(request())).unwrap();
    });
    let result = answer.recv_timeout(Duration::from_secs(20));
    // Lets one that still waits go on.
    drop((listener, first));
    asking.join().unwrap();
    let error = result.expect("it gives up").unwrap_err();
    assert!(matches!(error, IpamdError::Late { .. }), "{error:?}");
    assert!(error.is_gone());
}

#[test]
fn a_path_that_is_no_socket_is_named() {
    for path in [PathBuf::from("/"), PathBuf::from(format!("/{}", "x".repeat(200)))] {
        let ipamd = Ipamd { socket: &path, deadline: Instant::now(), patience: Duration::ZERO };
        let error = ipamd.check(request()).unwrap_err();
        assert!(error.to_string().starts_with("ipamd does not listen on /"), "{error}");
    }
}
