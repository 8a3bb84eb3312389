//! Matchers of the application protocols, without I/O.

pub mod dns;
pub mod http;
mod permit;
pub mod sni;

pub use permit::{Message, Permit};
