//! A VPC as EC2 keeps it, without packets and without a clock: who owns which address, what is attached where, which
//! limits hold, and what a caller of the API is told.
//!
//! The model is pure. Time is an argument, randomness comes from a seed, and a call answers with its result and with
//! how long EC2 would have taken over it: a server sleeps that long, a test in virtual time adds it to its clock. The
//! effect of a call is there at once; what a caller sees of it later is decided by the lags in `Settings`.
//!
//! - `Model::call` is the EC2 API (`api`).
//! - `Model::state` is the truth, for the fabric, the metadata service and tests ([`state`]).
//! - The scene calls (`Model::add_vpc` and its neighbours) make what EC2 has calls for that no part of Sluice uses:
//!   gateways, route tables, peerings.
//!
//! One model is one account in one region.

pub mod address;
pub mod id;
pub mod random;
pub mod state;

pub use id::{InternetGatewayId, NatGatewayId, PeeringId, RouteTableId};
pub use state::State;
