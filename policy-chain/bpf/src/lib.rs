//! Policy in the kernel: eBPF programs, their maps, and how they are attached.
//!
//! The programs are C (`c/`), compiled with clang by `build.rs`. [`layout`] is what both sides agree on. [`gate`] owns the
//! maps that they read, [`filters`] and [`links`] put the programs on interfaces, [`local`] puts one
//! on the node's own input, [`events`] reads what they tell, [`btf`] finds where connection tracking keeps what they ask it.
//! [`proxy`] has what the proxy's namespaces need, and [`reader`] is how the proxy sees what the gates know;
//! [`names`] is the one thing that it writes.
//!
//! `unsafe` is allowed in [`layout`], which says that its types are plain data, and in `sys`, which calls bpf(2).

pub mod btf;
pub mod cilium;
pub mod events;
pub mod filters;
pub mod gate;
pub mod layout;
pub mod links;
pub mod local;
pub mod names;
pub mod object;
pub mod programs;
pub mod proxy;
pub mod reader;
mod sys;
