//! The asynchronous half of ipamd: it sees EC2 through the `Cloud` seam and the host through `Kernel`, so that it runs
//! in virtual time against vpcsim's model as it runs on a node.
//!
//! The binary's part is small:
//!
//! ```text
//! let config = Config::from_environment()?;      // every fault at once
//! // logs by config.log_filter and config.log_format
//! run(config, cloud, HostKernel::current()?, shutdown).await?;
//! ```
//!
//! [`run::run`] returns only when `shutdown` has resolved, or when the daemon cannot start at all.
#![forbid(unsafe_code)]

pub mod clock;
pub mod cloud;
pub mod cluster;
pub mod config;
mod daemon;
mod executor;
mod http;
mod inbox;
pub mod kernel;
pub mod metrics;
mod rpc;
pub mod run;
mod store;
mod takeover;
pub mod view;

#[cfg(test)]
mod testing;

pub use config::Config;
pub use kernel::host::HostKernel;
pub use run::{RunError, run};
pub use sluice_daemon::log;
pub use sluice_daemon::rpc::ListenError;
pub use store::StoreError;
