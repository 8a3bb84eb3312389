//! A VPC in a box: what EC2 keeps ([`model`]), and later the servers and packets over it.
#![forbid(unsafe_code)]

pub mod limits;
pub mod model;
