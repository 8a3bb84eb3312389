//! The policy agent of a node.

fn main() {}
