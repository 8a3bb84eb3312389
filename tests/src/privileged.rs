//! Tests that need root or system packages. Where they must run (`CI` is set), that they cannot is a failure.

use std::convert::Infallible;
use std::fmt::Display;
use std::io::Write;

/// Whether a test can run that needs root and nothing else. If not, standard error says so.
///
/// # Panics
/// When the test cannot run although `CI` is set.
#[must_use]
pub fn privileged() -> bool {
    may_run(Ok::<(), Infallible>(()))
}

/// Whether everything is tried (`./test --all`), on a machine that does nothing else meanwhile: larger matrices, and how soon
/// something is done. Else a test waits as long as a slow machine may take.
#[must_use]
pub fn everything() -> bool {
    std::env::var_os("SLUICE_TEST_ALL").is_some()
}

/// Whether a test can run that needs root, and what `needs` looks for. If not, standard error says why.
///
/// # Panics
/// When the test cannot run although `CI` is set.
#[expect(clippy::panic, reason = "this is how a test fails")]
pub fn may_run<E: Display>(needs: Result<(), E>) -> bool {
    let obstacle = match needs {
        _ if !nix::unistd::geteuid().is_root() => "it needs root".to_owned(),
        Err(missing) => missing.to_string(),
        Ok(()) => return true,
    };
    if std::env::var_os("CI").is_some() {
        panic!("the test cannot run: {obstacle}");
    }
    let _nobody = writeln!(std::io::stderr(), "skipped: {obstacle}");
    false
}
