//! The pure half of policy: what the three dialects mean, and the tables that say it to the kernel.
//!
//! Kubernetes NetworkPolicy, ClusterNetworkPolicy and Cilium's policies are read by [`parse`] into [`model`], which is
//! plain data. From there two ways lead to a verdict, and property tests hold them equal: [`compile`] folds everything
//! into an image of the kernel's maps, kept up to date event by event; [`oracle`] follows the specifications word by word
//! and is slow. Nothing here does I/O or reads a clock.
#![forbid(unsafe_code)]

pub mod cluster;
pub mod compile;
mod few;
pub mod flow;
pub mod l7;
pub mod lint;
pub mod manifest;
pub mod model;
pub mod oracle;
mod pack;
pub mod parse;
pub mod settings;
pub mod vector;
