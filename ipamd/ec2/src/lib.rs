//! The `Cloud` seam on the real thing: EC2 through aws-sdk-ec2, the instance metadata service through aws-config.
//!
//! This is the only package that knows `aws-*`. It carries out and translates, and decides nothing: no retries (the
//! SDK's are switched off, because the executor's token buckets must see each call and each refusal), no waiting, no
//! ledger. What it adds to the bare calls is a bound on everything: time, pages, text, cached answers.
//!
//! ```text
//! let cloud = Ec2Cloud::new(Settings::from_environment(config.call_timeout)?);
//! ```
//!
//! Nothing is asked of anyone until the first call, so that ipamd serves before IMDS and EC2 have answered.
#![forbid(unsafe_code)]

mod cloud;
pub mod config;
mod decode;
mod error;
mod imds;
mod shared;

pub use cloud::Ec2Cloud;
pub use config::{InvalidSetting, Settings};

#[cfg(test)]
mod tests;
