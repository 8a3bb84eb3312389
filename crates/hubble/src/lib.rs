//! Hubble's protocol, by which policyd tells flows and `sluice observe`, Hubble's CLI, Relay and UI read them.
//!
//! The messages are made from `proto/`, which has Hubble's packages, names and numbers for what Sluice fills. [`filter`] says
//! which flows a request means, [`json`] shows messages as Hubble's `-o jsonpb` does, [`mask`] leaves fields out.
//! Nothing here does I/O by itself.
#![forbid(unsafe_code)]

pub mod filter;
pub mod json;
pub mod mask;

macro_rules! package {
    ($(#[$doc:meta])* $name:ident, $file:literal) => {
        $(#[$doc])*
        #[allow(
            missing_docs,
            unused_qualifications,
            unreachable_pub,
            let_underscore_drop,
            missing_debug_implementations,
            clippy::all,
            clippy::pedantic,
            clippy::nursery,
            clippy::restriction,
            rustdoc::all,
            reason = "it is made by a program"
        )]
        pub mod $name {
            include!(concat!(env!("OUT_DIR"), "/", $file));
        }
    };
}

package! {
    /// `flow`: flows, and filters of them.
    flow, "flow.rs"
}
package! {
    /// `relay`: what an observer's answers have of it.
    relay, "relay.rs"
}
package! {
    /// `peer`: how Hubble Relay finds observers.
    peer, "peer.rs"
}
package! {
    /// `observer`: the service of a node.
    observer, "observer.rs"
}

/// TCP port of a node's observer.
pub const OBSERVER_PORT: u16 = 4244;

/// Types of events (`flow.CiliumEventType`), by Cilium's numbers.
pub mod event {
    /// A packet was dropped; its sub-type is the [`DropReason`](crate::flow::DropReason).
    pub const DROP: i32 = 1;
    /// A packet was let pass; its sub-type is where it goes.
    pub const TRACE: i32 = 4;
    /// Policy was asked.
    pub const POLICY_VERDICT: i32 = 5;
    /// The proxy judged a request.
    pub const L7: i32 = 129;

    /// The type with a name, as `hubble observe --type` has it.
    #[must_use]
    pub fn named(name: &str) -> Option<i32> {
        match name {
            "drop" => Some(DROP),
            "trace" => Some(TRACE),
            "policy-verdict" => Some(POLICY_VERDICT),
            "l7" => Some(L7),
            _ => None,
        }
    }
}
