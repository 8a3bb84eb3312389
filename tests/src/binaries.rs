//! Finds the programs of this workspace: they lie beside the program that asks, in `target/PROFILE`. So a test of one
//! profile never runs the programs of another.

use std::path::{Path, PathBuf};

/// Why a program of the workspace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BinaryError {
    /// It has not been built.
    #[error("{path} is not built: run `cargo build {profile}--workspace --bins` first")]
    NotBuilt {
        /// Where it would be.
        path: PathBuf,
        /// The option that names the profile, and a space; or nothing.
        profile: String,
    },
    /// The running program does not know where it is.
    #[error("the directory of the running program is unknown")]
    Nowhere(#[source] std::io::Error),
}

/// The path of the workspace's program `name`, built with the profile of the program that asks.
///
/// # Errors
/// [`BinaryError`]; it says which command builds the program.
pub fn binary(name: &str) -> Result<PathBuf, BinaryError> {
    let directory = profile_directory().map_err(BinaryError::Nowhere)?;
    let path = directory.join(name);
    if path.is_file() {
        return Ok(path);
    }
    let profile = match directory.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => String::new(),
        Some(profile) => format!("--profile {profile} "),
    };
    Err(BinaryError::NotBuilt { path, profile })
}

/// `target/PROFILE`: the directory of programs; tests lie in `deps` below it.
fn profile_directory() -> std::io::Result<PathBuf> {
    let executable = std::env::current_exe()?;
    let directory = executable.parent().unwrap_or(Path::new("/"));
    let parent = directory.parent().filter(|_| directory.file_name().is_some_and(|name| name == "deps"));
    Ok(parent.unwrap_or(directory).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_built_is_named_with_the_command_that_builds_it() {
        let text = binary("no-such-program").unwrap_err().to_string();
        assert!(text.contains("/no-such-program is not built: run `cargo build "), "{text}");
        assert!(!text.contains("/deps/"), "{text}");
    }
}
