//! The datapath of the proxy, with real packets: a node with AWS's rules, pods on two ENIs, the gates with compiled policy,
//! and in the place of the engines a relay that copies.
//!
//! | part | what it holds |
//! |---|---|
//! | [`paths`] | every way a packet can take is the proxy's and ends where it should, with the client's own address |
//! | [`ends`] | half-close, resets, ports that are used again, changes of policy, a proxy that is gone |
//! | [`bulk`] | large packets, fragments, what ICMP tells |
//! | [`dns`] | the DNS engine, with dnsmasq, dig and the C library |
//! | [`hostile`] | marks and packets that nobody has a flow for; dry runs |
//! | [`names`] | UDP in others' names |
#![cfg(test)]

mod bulk;
mod dns;
mod ends;
mod hostile;
mod names;
mod paths;
mod world;
