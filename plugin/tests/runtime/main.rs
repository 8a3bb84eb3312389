//! Drives the built plugin as a runtime does, beside a model of ipamd, on nodes that are namespaces.
//!
//! Needs root. Each test has a node of its own: new network, mount and host name, with a private `/run`, so that the
//! plugin runs with its production paths and tests run side by side.

#![cfg(test)]

mod add;
mod bad_input;
#[path = "../../../crates/hostnet/src/bpf/testing.rs"]
mod bpf;
mod branch;
mod cards;
mod del;
mod gated;
mod gc;
mod ipamd;
mod kill;
mod latency;
mod node;
mod race;
mod verbs;
