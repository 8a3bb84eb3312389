//! Octets both ways, once a connection needs no more looking at.
