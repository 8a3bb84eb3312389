//! Vectors with packets: a cluster of a vectors file built in namespaces, its steps applied to real agents and proxies, and every
//! row probed with real TCP, UDP, SCTP and ICMP, and requests of HTTP, DNS and TLS.
//!
//! [`place`] gives every pod of a fixture a node and, for IPv6, an address; [`town`] builds nodes and pods over vpcsim's
//! machines, each pod by the real plugin chain, and [`eni`] the ENIs that they are on; [`objects`] writes the cluster as the agent
//! reads it; [`mod@run`] carries a file out, [`names`] has names resolve, and [`probe`] sends what the rows say.
//!
//! Addresses are those of the file: prefixes in its policies mean what they say. Pods get them from an address
//! daemon that speaks ipamd's protocol and knows them beforehand ([`ipamd`]).

pub mod eni;
pub mod ipamd;
pub mod names;
pub mod objects;
pub mod place;
pub mod probe;
pub mod publish;
pub mod report;
pub mod run;
pub mod stage;
pub mod town;
