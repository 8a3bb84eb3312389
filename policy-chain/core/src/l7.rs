//! Matchers of the application protocols, without I/O.

pub mod dns;
pub mod http;
pub mod sni;
