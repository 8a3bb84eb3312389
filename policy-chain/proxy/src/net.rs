//! The proxy's network namespaces, what comes out of them, and connections in a client's name.
