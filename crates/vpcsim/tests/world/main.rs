//! Worlds with real machines, packets and programs. Needs root.
//!
//! | part | what it holds |
//! |---|---|
//! | [`groups`] | security groups |
//! | [`machine`] | a machine as production binaries see it |
//! | [`matrix`] | who reaches whom over the fabric |
//! | [`services`] | EC2 and the metadata service as nodes reach them |
//! | [`updown`] | the program `vpcsim` |

#![cfg(test)]

mod groups;
mod machine;
mod matrix;
mod services;
mod updown;

/// Whether this process may make namespaces. A test that needs to is passed over where it may not, except in CI.
fn privileged() -> bool {
    let root = nix::unistd::geteuid().is_root();
    #[expect(clippy::disallowed_methods, reason = "CI is how a test knows that it must not be skipped")]
    let must = std::env::var("CI").is_ok();
    assert!(root || !must, "this test needs root");
    root
}
