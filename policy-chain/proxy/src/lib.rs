//! The proxy of a node: it looks at what the gates send it, HTTP, TLS server names and DNS, judges each request by the rules
//! of its flow, and forwards what passes in the client's own name (DESIGN 8).
//!
//! ```text
//!  gate ── redirect ──> net: accept ──> dispatch ── looks at ──> http, tls, dns, relay ── net: connect ──> gate
//!                                          │                          │ each request
//!                                   policy: the rules of the flow     └──> record
//!                                     ▲                  ▲
//!                    the kernel's maps: connection,   what decisions mean: pushed by policyd
//!                    endpoint, decision
//! ```

pub mod config;
pub mod connect;
pub mod connections;
pub mod dns;
pub mod engine;
pub mod flow;
pub mod handover;
pub mod http;
pub mod metrics;
pub mod names;
pub mod net;
mod pages;
pub mod policy;
pub mod policyd;
pub mod record;
pub mod relay;
pub mod run;
mod session;
pub mod tls;
mod wake;
pub mod worker;

#[cfg(test)]
#[global_allocator]
static ALLOCATOR: sluice_fuzz::Counting = sluice_fuzz::Counting;

/// The name in greetings and logs.
pub const SOFTWARE: &str = "sluice-proxy";
