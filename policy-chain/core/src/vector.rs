//! Vectors: a cluster, what is done to it step by step, and which traffic has to pass then. Unit tests of policies.
//!
//! [`schema`] is a file as plain data, [`mod@read`] reads one, [`mod@run`] carries one out and asks a [`judge::Judge`]. The schema is
//! told in `docs/policy-vectors.md`. Nobody here knows who judges: the compiler, the oracle, or both beside each other.

pub mod application;
pub mod judge;
pub mod probe;
pub mod read;
pub mod run;
pub mod schema;
pub mod world;

pub use judge::Judge;
pub use read::read;
pub use run::run;

#[cfg(test)]
mod tests;
