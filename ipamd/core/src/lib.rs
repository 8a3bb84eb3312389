//! The pure half of ipamd: who holds which address, what the pool ought to be, and what to do about it.
//!
//! Nothing here does I/O, reads a clock or draws a random number: time and randomness are arguments.
//!
//! The daemon's loop in five calls: [`state::State::apply`] takes in what has happened, [`plan::plan`] says which calls of
//! EC2 are due, [`serve::serve`] says which waiting ADDs get which address and which are refused,
//! [`checkpoint::Checkpoint`] keeps it all over a restart, and [`check::check`] lists every rule that is broken.
#![forbid(unsafe_code)]

pub mod arrivals;
pub mod aws_node;
pub mod branch;
pub mod check;
pub mod checkpoint;
pub mod cloud;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod fuzz;
pub mod garbage;
pub mod ipv6;
pub mod leak;
pub mod ledger;
pub mod limits;
pub mod op;
pub mod plan;
pub mod queue;
pub mod recover;
pub mod serve;
pub mod shared;
pub mod state;
pub mod time;
