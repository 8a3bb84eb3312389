//! Sysctls below `/proc/sys/net`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use sluice_contract::id::IfName;

use super::Family;

/// A string is not the name of a network sysctl.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key:?} is not a network sysctl: it must be net/ and names joined by '/', without '.' or '..' as a name")]
pub struct InvalidSysctlKey {
    /// What was given, cut to 120 characters.
    pub key: String,
}

/// Where a container that sets sysctls of the host has the host's `/proc/sys/net` mounted: below here, at `net`.
const HOST_PROC_SYS: &str = "/host/proc/sys";

/// The name of a sysctl: its path below `/proc/sys`, such as `net/ipv4/conf/eth0/rp_filter`. Written with slashes,
/// because an interface's name may have dots.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SysctlKey(String);

impl SysctlKey {
    /// Checks a name that is written with slashes.
    ///
    /// # Errors
    /// [`InvalidSysctlKey`] when the name is not below `net/`, or leads elsewhere.
    pub fn new(key: impl Into<String>) -> Result<Self, InvalidSysctlKey> {
        let key = key.into();
        let valid = key.starts_with("net/")
            && key.len() <= 255
            && key.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
            && key.bytes().all(|byte| byte.is_ascii_graphic());
        if valid { Ok(Self(key)) } else { Err(InvalidSysctlKey { key: key.chars().take(120).collect() }) }
    }

    /// A setting of an interface, `net/ipv4/conf/DEV/SETTING`.
    ///
    /// # Errors
    /// [`InvalidSysctlKey`] when `setting` is not one name.
    pub fn of_interface(family: Family, dev: &IfName, setting: &str) -> Result<Self, InvalidSysctlKey> {
        let family = match family {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        };
        Self::new(format!("net/{family}/conf/{dev}/{setting}"))
    }

    /// The name with slashes.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The file. A container has `/proc/sys` read-only; where the host's is mounted at `HOST_PROC_SYS` as well, it is that
    /// one, which shows the same: the network namespace of whoever looks.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        static ROOT: LazyLock<&str> =
            LazyLock::new(|| if Path::new(HOST_PROC_SYS).join("net").is_dir() { HOST_PROC_SYS } else { "/proc/sys" });
        Path::new(*ROOT).join(&self.0)
    }
}

impl fmt::Display for SysctlKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for SysctlKey {
    type Error = InvalidSysctlKey;
    fn try_from(key: String) -> Result<Self, InvalidSysctlKey> {
        Self::new(key)
    }
}

impl From<SysctlKey> for String {
    fn from(key: SysctlKey) -> Self {
        key.0
    }
}

/// A sysctl and its value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Sysctl {
    /// Which one.
    pub key: SysctlKey,
    /// Its value, without white space around it.
    pub value: String,
}

impl Sysctl {
    /// A sysctl and the value that it has or shall have.
    #[must_use]
    pub fn new(key: SysctlKey, value: impl fmt::Display) -> Self {
        Self { key, value: value.to_string().trim().to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_stays_below_net() {
        assert!(SysctlKey::new("net/ipv4/tcp_early_demux").is_ok());
        for key in ["kernel/core_pattern", "net/../kernel/core_pattern", "net//x", "net/", "net", "/net/x", "net/a b"] {
            assert!(SysctlKey::new(key).is_err(), "{key}");
        }
        let dev = IfName::new("vlan.eth.7").unwrap();
        let key = SysctlKey::of_interface(Family::V6, &dev, "accept_ra").unwrap();
        assert_eq!(key.path(), PathBuf::from("/proc/sys/net/ipv6/conf/vlan.eth.7/accept_ra"));
        assert!(SysctlKey::of_interface(Family::V4, &dev, "../all").is_err());
    }
}
