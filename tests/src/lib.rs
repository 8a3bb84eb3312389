//! What the tests and benchmarks of the product share: a real container runtime, and the measuring of plugins beside a
//! peer.
#![forbid(unsafe_code)]

pub mod apiserver;
pub mod bed;
pub mod bench;
pub mod containerd;
pub mod directory;
pub mod live;
pub mod privileged;
pub mod prober;
pub mod service_proxy;
pub mod storm;
