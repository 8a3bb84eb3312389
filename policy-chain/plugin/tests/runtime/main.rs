//! Drives the built plugin as a runtime does, beside a model of policyd, on nodes that are namespaces.
//!
//! Needs root, and the plugins of the CNI project (Debian: containernetworking-plugins). Each test has a node of its own:
//! new network, mount and host name, with a private `/run`, so that the plugin runs with its production paths and tests
//! run side by side.

#![cfg(test)]

mod add;
mod bad_input;
mod behind;
mod del;
mod latency;
mod node;
mod policyd;
mod verbs;
