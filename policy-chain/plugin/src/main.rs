//! The chained CNI plugin.

fn main() {}
