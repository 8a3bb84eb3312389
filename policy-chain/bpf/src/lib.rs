//! Policy in the kernel: eBPF programs, their maps, and how they are attached.
//!
//! The programs are C (`c/`), compiled with clang by `build.rs`. [`layout`] is what both sides agree on.

pub mod layout;
pub mod object;
