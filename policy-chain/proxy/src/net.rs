//! How redirected packets become sockets, and sockets packets again (DESIGN 8).
//!
//! | part | what it does |
//! |---|---|
//! | [`place`] | the two namespaces, their links to the host, their routes: made, found again, mended |
//! | [`listen`] | the sockets that take what gates send: one a worker and kind, taken over from an older process |
//! | [`upstream`] | connections to servers in their clients' names, and which backend took them |
//! | [`datagram`] | UDP to servers in a client's name, and to clients in a server's |
//! | [`splice`] | bytes from one connection to the other without a copy |
//!
//! A thread that opens sockets here lives in the namespace of its direction ([`place::Place::thread`]); sockets that are
//! open already may be used on any.

pub mod datagram;
pub mod listen;
pub mod place;
pub mod splice;
mod sys;
pub mod upstream;

pub use datagram::Datagrams;
pub use listen::{Acceptor, Listeners};
pub use place::{Place, PlaceConfig, PlaceError, Places};
pub use upstream::Upstreams;
