//! The one place that reads the environment.

use sluice_contract::cni::Environment;

/// The variables of the CNI protocol. Bytes that are not UTF-8 become U+FFFD, which no grammar of them allows.
pub(crate) fn environment() -> Environment {
    Environment::read(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
}
