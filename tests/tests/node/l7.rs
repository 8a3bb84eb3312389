//! Requests and names through everything that a node has: agents, plugins, gates and proxies of two nodes (issue D).
//!
//! Every path that a packet can take is in `policy-chain/proxy/tests/net`, and what the engines make of requests in
//! `policy-chain/proxy/tests/engine`; here is what they are together, on nodes with two ENIs.

mod dns;
mod ground;
mod matrix;
mod names;
mod restart;
mod speak;
mod visible;
