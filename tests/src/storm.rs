//! Datagrams as fast as they can be sent, which a gate is to drop; and what policyd says came of them.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use serde_json::Value;
use sluice_policy_bpf::layout::DropReason;

/// Octets of a datagram.
const DATAGRAM: [u8; 16] = [0; 16];

/// Datagrams are being sent.
#[derive(Debug)]
pub struct Storm {
    over: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    senders: Vec<JoinHandle<()>>,
}

impl Storm {
    /// Begins, in the calling thread's namespace, with as many threads, each of which is one flow.
    ///
    /// # Errors
    /// When a socket or a thread cannot be made.
    pub fn begin(threads: usize, to: SocketAddr) -> io::Result<Self> {
        let (over, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let sender = |_| {
            let any: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0; 16], 0).into() };
            let socket = UdpSocket::bind(any)?;
            socket.connect(to)?;
            let (over, sent) = (Arc::clone(&over), Arc::clone(&sent));
            std::thread::Builder::new().name("storm".into()).spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    // What the kernel has no room for was not sent.
                    if socket.send(&DATAGRAM).is_ok() {
                        sent.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        };
        let senders = (0..threads).map(sender).collect::<io::Result<Vec<_>>>()?;
        Ok(Self { over, sent, senders })
    }

    /// How many datagrams were sent so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends, and says how many datagrams were sent.
    #[must_use]
    pub fn end(mut self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        for sender in self.senders.drain(..) {
            // One that has panicked has sent what it has counted.
            let _panicked = sender.join();
        }
        self.sent()
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// What has been dropped, and what was told of it, since the gates were made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Told {
    /// Packets that gates have dropped, as the kernel counts them.
    pub dropped: u64,
    /// Flows that were written down, of any kind.
    pub flows: u64,
    /// Events that were lost, as policyd counts them.
    pub lost: u64,
}

impl Told {
    /// From policyd's page.
    #[must_use]
    pub fn of(view: &Value) -> Self {
        let number = |path: &str| view.pointer(path).and_then(Value::as_u64).unwrap_or_default();
        // What a pod sends before it has a policy is dropped by a program that counts and tells nothing else.
        let untold = [DropReason::EventLost, DropReason::CounterLost, DropReason::NotReady].map(DropReason::as_str);
        let drops = view.get("drops").and_then(Value::as_object).into_iter().flatten();
        let dropped =
            drops.filter(|(reason, _)| !untold.contains(&reason.as_str())).filter_map(|(_, count)| count.as_u64());
        Self { dropped: dropped.sum(), flows: number("/flows/seen"), lost: number("/flows/lost") }
    }

    /// What came since `earlier`.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self {
            dropped: self.dropped.saturating_sub(earlier.dropped),
            flows: self.flows.saturating_sub(earlier.flows),
            lost: self.lost.saturating_sub(earlier.lost),
        }
    }

    /// Whether every packet that was dropped is a flow, or counted as lost.
    #[must_use]
    pub const fn is_all(self) -> bool {
        self.flows + self.lost >= self.dropped
    }
}
