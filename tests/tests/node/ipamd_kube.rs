//! ipamd's Kubernetes source against the fake API server: what it tells, what it writes, and that nothing of what goes wrong
//! there is believed.

mod groups;
mod on_node;
mod rights;
mod seen;
mod telling;
mod writing;
