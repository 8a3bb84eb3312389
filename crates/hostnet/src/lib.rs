//! The host's network: what is there, what should be, and how to get from one to the other.
//!
//! The only package that speaks netlink, enters namespaces, writes network sysctls or runs `nft`.
//!
//! - [`state`]: plain types for links, addresses, routes, rules, neighbours, sysctls and nftables tables, and
//!   [`state::Observed`], a picture of them.
//! - [`desired`]: what should be there ([`desired::Desired`]) and what is ours to change ([`desired::Scope`]).
//! - [`plan`]: the pure step from both to operations with reasons.
//! - [`netns`]: namespaces, and threads that live in them.
#![forbid(unsafe_code)]

pub mod desired;
pub mod netns;
pub mod plan;
pub mod state;
