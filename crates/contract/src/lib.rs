//! The names of the system: CNI types, the messages of both sockets, ids, and the fixed names on a node.
//!
//! Everything here is plain data with validating constructors; nothing does I/O, so every other package may depend
//! on it and its tests need neither root nor network.
#![forbid(unsafe_code)]

pub mod cni;
#[cfg(test)]
mod fuzz;
pub mod id;
pub mod log;
pub mod names;
pub mod node;
pub mod proxy;
pub mod rpc;
