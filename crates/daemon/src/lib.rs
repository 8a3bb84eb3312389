//! What the daemons of a node, ipamd, policyd and the proxy, have in common.
//!
//! - [`aws_node`]: the AWS VPC CNI's daemon, for as long as which they wait.
//! - [`rpc`]: the server of the socket that plugins speak to.
//! - [`tombstones`]: what plugins left behind while the daemon was down.
//! - [`frame`]: frames of that socket and others.
//! - [`environment`][]: configuration.
//! - [`http`]: ports for metrics and introspection.
//! - [`metrics`]: kinds of metrics that the library lacks.
//! - [`lock`]: one daemon of a kind on a node.
//! - [`log`]: logs, and errors in them.
#![forbid(unsafe_code)]

pub mod aws_node;
pub mod environment;
pub mod frame;
pub mod http;
pub mod lock;
pub mod log;
pub mod metrics;
pub mod rotated;
pub mod rpc;
pub mod tombstones;
