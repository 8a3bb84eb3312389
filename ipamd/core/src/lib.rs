//! The pure half of ipamd: who holds which address, what the pool ought to be, and what to do about it.
//!
//! Nothing here does I/O, reads a clock or draws a random number: time and randomness are arguments.
#![forbid(unsafe_code)]

pub mod cloud;
