//! The host's network: what is there, what should be, and how to get from one to the other.
//!
//! The only package that speaks netlink, enters namespaces, writes network sysctls or runs `nft`.
//!
//! - [`state`]: plain types for links, addresses, routes, rules, neighbours, sysctls and nftables tables, and
//!   [`state::Observed`], a picture of them.
//! - [`desired`]: what should be there ([`desired::Desired`]) and what is ours to change ([`desired::Scope`]).
//! - [`plan`]: the pure step from both to operations with reasons.
//! - [`netns`]: namespaces, and threads that live in them.
//! - [`host`]: one namespace to look at and to change: observes, and carries plans out with undo.
//! - [`netlink`]: the socket, and what a plugin does with one link.
//! - [`watch`]: changes as they happen.
//! - [`conntrack`]: the flows that connection tracking knows.
//! - [`nft`], [`sysctl`]: what netlink does not reach.
//! - [`plugin`]: what the process of a CNI plugin does, whichever plugin it is.
//! - [`branch`]: the host's side of a pod with security groups of its own.
//! - [`shape`]: limits on what a link sends.
//! - [`vpc_cni`]: what the AWS VPC CNI leaves in the packet filter.
//! - [`tc`], [`bpf`]: programs on the hooks of a link, and how one that is pinned is opened.
//!
//! `unsafe` is allowed in [`bpf`] and for reading an option of a socket in [`vpc_cni`]: one call each that has no safe door.

pub mod bpf;
pub mod branch;
pub mod conntrack;
pub mod desired;
pub mod host;
pub mod netlink;
pub mod netns;
mod nfnetlink;
pub mod nft;
pub mod plan;
pub mod plugin;
pub mod shape;
pub mod state;
pub mod sysctl;
pub mod tc;
pub mod vpc_cni;
pub mod watch;
