//! The compiled programs.

/// The object file that `build.rs` made of `c/`, aligned as ELF's readers want it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/gate.o"));

/// The object file of what judges at the node's local input.
pub static LOCAL: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/local.o"));

/// The object file of what belongs to the proxy's namespaces.
pub static PROXY: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/proxy.o"));

/// The compiler that made it: `clang 14`.
pub const COMPILER: &str = env!("SLUICE_COMPILER");
