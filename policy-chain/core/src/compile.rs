//! From policies to an image of the kernel's maps: fast, incremental, deterministic.
//!
//! [`program`] turns the policies that select a pod into an ordered list of rules over [`predicate`]s; it folds them, for
//! one peer, to a [`row`]: what happens on each protocol and port.

mod bits;
mod by_address;
pub mod diff;
pub mod engine;
mod fold;
mod identity;
pub mod image;
mod lower;
mod port_space;
pub mod predicate;
pub mod program;
pub mod row;
pub mod select;
mod service;
mod stage;
pub mod view;
