//! A node's address pool in virtual time: the planner that ipamd runs, on vpcsim's model of EC2, without sockets, kernel or
//! clock. Hours of a node's life take milliseconds.
//!
//! - [`node::Node`] is the loop of the daemon around the planner: apply, plan, serve, call.
//! - [`vpc_cni::VpcCni`] is the pool of the AWS VPC CNI by its rules, for comparison.
//! - [`arms`] are the static settings that adaptive mode is compared with.
//! - [`trace`] has arrivals and ends of pods, to be replayed on both.
//! - [`translate`] is between the model's data and ipamd's.
#![forbid(unsafe_code)]

pub mod arms;
pub mod node;
pub mod trace;
pub mod translate;
pub mod vpc_cni;
