//! The engines between clients and servers on the loopback interface.
#![cfg(test)]

mod bed;
mod connections;
mod http1;
mod smuggling;
