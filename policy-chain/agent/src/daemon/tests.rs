//! The daemon in virtual time, between a model of the cluster and a model of the kernel's gates.

mod adds;
mod aws_node;
mod names;
mod proxies;
mod restart;
mod sim;
mod storm;
mod trouble;
