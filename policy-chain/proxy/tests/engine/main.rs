//! The engines between clients and servers on the loopback interface.
#![cfg(test)]

mod bed;
mod connections;
mod h2;
mod http1;
mod leaving;
mod load;
mod peers;
mod smuggling;
mod tls;
