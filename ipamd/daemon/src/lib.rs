//! The asynchronous half of ipamd: it sees EC2 through the `Cloud` seam and the host through `Kernel`, so that it runs
//! in virtual time against vpcsim's model as it runs on a node.
#![forbid(unsafe_code)]

pub mod cloud;
