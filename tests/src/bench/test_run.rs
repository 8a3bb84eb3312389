//! Packets put through the programs that judge a node's packets, by `BPF_PROG_TEST_RUN`: what they would do, and how long they take.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use sluice_contract::node::GATE_DIR;

use super::BenchError;

/// `TC_ACT_UNSPEC`: what comes next decides.
const PASSES: u32 = u32::MAX;
/// `TC_ACT_SHOT`.
const DROPS: u32 = 2;
/// `struct __sk_buff` (include/uapi/linux/bpf.h): its length, and where two of its fields are.
const CONTEXT: usize = 192;
const INGRESS_IFINDEX: usize = 36;
const IFINDEX: usize = 40;

/// A program of the gates, as it is pinned.
#[derive(Debug)]
pub struct Judge(SchedClassifier);

/// What became of a packet.
#[derive(Debug, Clone, Copy)]
pub struct Judged {
    /// It passed.
    pub passes: bool,
    /// How long the program took, at the mean.
    pub took: Duration,
}

impl Judge {
    /// Opens a pinned program, `from_pod` or `to_pod`, of the node on whose thread this is called.
    ///
    /// # Errors
    /// [`BenchError::Setup`]: it is not pinned.
    pub fn open(name: &str) -> Result<Self, BenchError> {
        let path = Path::new(GATE_DIR).join("programs").join(name);
        let opened = SchedClassifier::from_pin(&path);
        opened.map(Self).map_err(BenchError::setup(format!("the program {} cannot be opened", path.display())))
    }

    /// Puts a frame through, as one of the interface of that index which has come by another (`from`), so many times. On the
    /// node's thread.
    ///
    /// # Errors
    /// [`BenchError::Setup`]: the kernel refuses, or the program returned something that it never does.
    pub fn run(&self, frame: &[u8], interface: u32, from: u32, times: u32) -> Result<Judged, BenchError> {
        let mut context = [0; CONTEXT];
        for (at, value) in [(INGRESS_IFINDEX, from), (IFINDEX, interface)] {
            if let Some(field) = context.get_mut(at..at + 4) {
                field.copy_from_slice(&value.to_ne_bytes());
            }
        }
        let options =
            TestRunOptions { data_in: Some(frame), ctx_in: Some(&context), repeat: times, ..TestRunOptions::default() };
        let result = self.0.test_run(options).map_err(BenchError::setup("a test run failed"))?;
        match result.return_value {
            PASSES | DROPS => Ok(Judged { passes: result.return_value == PASSES, took: result.duration }),
            other => Err(BenchError::setup("a test run went wrong")(format!("the program returned {other}"))),
        }
    }
}

/// What is in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// A TCP segment with nothing but ACK.
    Ack,
    /// A UDP datagram.
    Datagram,
}

/// An Ethernet frame. Both ends are of one family; of a mixed pair the frame is of the source's, with an empty destination.
#[must_use]
pub fn frame(source: SocketAddr, destination: SocketAddr, content: Content) -> Vec<u8> {
    let mut transport = Vec::new();
    transport.extend(source.port().to_be_bytes());
    transport.extend(destination.port().to_be_bytes());
    let protocol = match content {
        Content::Ack => {
            // Sequence and acknowledgment, a header of five words, ACK, the window, checksum and urgent pointer.
            transport.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
            6
        }
        Content::Datagram => {
            transport.extend([0, 16, 0, 0]);
            17
        }
    };
    transport.extend([0; 8]);
    let length = u16::try_from(transport.len()).unwrap_or_default();
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    match source.ip() {
        IpAddr::V4(own) => {
            frame.extend([0x08, 0x00, 0x45, 0]);
            frame.extend((20 + length).to_be_bytes());
            frame.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
            frame.extend(own.octets());
            frame.extend(if let IpAddr::V4(peer) = destination.ip() { peer.octets() } else { [0; 4] });
        }
        IpAddr::V6(own) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend(own.octets());
            frame.extend(if let IpAddr::V6(peer) = destination.ip() { peer.octets() } else { [0; 16] });
        }
    }
    frame.extend(transport);
    frame
}
