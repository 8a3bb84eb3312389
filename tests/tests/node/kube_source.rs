//! policyd's Kubernetes source against an API server: what it tells of a cluster, and what it does when the API server is
//! away, wrong, or behind.

mod chaos;
mod failing;
pub(crate) mod observer;
mod rights;
mod telling;
mod writing;
