//! The wire between plugins and daemons: length-prefixed JSON over a Unix socket, one request a connection (DESIGN 3).
//!
//! ```text
//! plugin                                   daemon
//!   | Hello {protocol, software}             |
//!   | Request {deadline_ms, call}            |   both frames are sent at once
//!   | -------------------------------------> |
//!   |             Hello {protocol, software} |
//!   |                         Reply {..}     |
//!   | <------------------------------------- |   the daemon closes
//! ```
//!
//! A frame is a 32-bit big-endian length and that many bytes of JSON. Unknown fields are passed over, so that a newer
//! side may add some; a field that changes its meaning raises the protocol number. A plugin whose socket closes before
//! the reply has withdrawn its request.
//!
//! Both sockets speak it: ipamd's with [`Call`] and [`Outcome`], policyd's with [`PolicyCall`] and [`PolicyOutcome`].

mod frame;
mod message;
mod policy;
pub mod tombstone;

pub use frame::{
    FRAME_LIMIT, FrameError, decode, encode, encode_within, frame_length, frame_length_within, read_frame, write_frame,
};
pub use message::{
    AddReply, AddRequest, Branch, Call, CheckRequest, DelReply, DelRequest, GcReply, GcRequest, Hello, Outcome,
    PodAddress, ProtocolRange, Refusal, RefusalCode, Reply, Request, StatusReply,
};
pub use policy::{
    GateInterface, PolicyAdd, PolicyAddReply, PolicyCall, PolicyCheck, PolicyCheckReply, PolicyDel, PolicyOutcome,
    PolicyStatusReply,
};
