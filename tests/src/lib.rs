//! What the tests and benchmarks of the product share: finding the built programs, a real container runtime, the peer
//! that benchmarks compare with.
#![forbid(unsafe_code)]

pub mod bench;
pub mod binaries;
pub mod containerd;
pub mod deploy;
