//! What the tests of this directory share.

/// Whether this process may make namespaces. A test that needs to is passed over where it may not, except in CI.
pub(crate) fn privileged() -> bool {
    let root = nix::unistd::geteuid().is_root();
    #[expect(clippy::disallowed_methods, reason = "CI is how a test knows that it must not be skipped")]
    let must = std::env::var("CI").is_ok();
    assert!(root || !must, "this test needs root");
    root
}
