//! The product on nodes of a VPC in a box: its real binaries, real packets, and what an operator would see. Needs root.

#![cfg(test)]

mod crash;
mod input;
mod packets;
mod pool;
