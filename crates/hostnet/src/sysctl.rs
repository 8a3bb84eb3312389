//! Reading and writing `/proc/sys/net`, which shows the network namespace of the thread that looks.
//!
//! Calls here are for a thread that is in the right namespace: [`crate::host::Host`] sees to that.

use std::io;

use crate::state::{Sysctl, SysctlKey};

/// Why a sysctl could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} the sysctl {key}")]
pub struct SysctlError {
    /// What was to be done.
    pub action: &'static str,
    /// Which one.
    pub key: SysctlKey,
    /// The system's word.
    #[source]
    pub source: io::Error,
}

/// The value of a sysctl in the calling thread's namespace; none if the kernel does not have it.
///
/// # Errors
/// [`SysctlError`].
pub fn read(key: &SysctlKey) -> Result<Option<Sysctl>, SysctlError> {
    match std::fs::read_to_string(key.path()) {
        Ok(value) => Ok(Some(Sysctl::new(key.clone(), value))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SysctlError { action: "read", key: key.clone(), source }),
    }
}

/// Gives a sysctl a value in the calling thread's namespace, unless it has it already. Gives the value before if it
/// was another.
///
/// A sysctl of IPv6 in a kernel without IPv6 has nothing to do, and is no error.
///
/// # Errors
/// [`SysctlError`].
pub fn write(sysctl: &Sysctl) -> Result<Option<String>, SysctlError> {
    let failed = |action, source| SysctlError { action, key: sysctl.key.clone(), source };
    let Some(before) = read(&sysctl.key)? else {
        let ipv6 = "/proc/sys/net/ipv6";
        if sysctl.key.as_str().starts_with("net/ipv6/") && !std::path::Path::new(ipv6).exists() {
            return Ok(None);
        }
        return Err(failed("find", io::ErrorKind::NotFound.into()));
    };
    if before.value == sysctl.value {
        return Ok(None);
    }
    std::fs::write(sysctl.key.path(), &sysctl.value).map_err(|source| failed("write", source))?;
    Ok(Some(before.value))
}
