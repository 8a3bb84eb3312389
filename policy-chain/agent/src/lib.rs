//! The policy agent of a node.
