//! `--env`: ipamd's settings, read as ipamd reads them.

use std::collections::BTreeMap;

use sluice_ipamd_daemon::Config;
use sluice_ipamd_daemon::config::{ConfigFaults, VARIABLES};

/// The settings that a pool depends on.
const OF_THE_POOL: &[&str] = &[
    "ENABLE_PREFIX_DELEGATION",
    "IP_COOLDOWN_PERIOD",
    "MAX_ENI",
    "MINIMUM_IP_TARGET",
    "SLUICE_MAX_PODS",
    "SLUICE_WARM_MODE",
    "WARM_ENI_TARGET",
    "WARM_IP_TARGET",
    "WARM_PREFIX_TARGET",
];

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum SettingsError {
    /// It has no value.
    #[error("--env {0:?} is not of the form NAME=VALUE, like WARM_IP_TARGET=5")]
    Form(String),
    /// ipamd has no such setting.
    #[error("--env {name}: ipamd has no such setting; did you mean {nearest}? (docs/configuration.md lists all)")]
    Unknown {
        /// What was given.
        name: String,
        /// The setting of the pool whose name is most like it.
        nearest: &'static str,
    },
    /// A value is wrong.
    #[error("{0}\n  docs/configuration.md says what each may be")]
    Value(#[from] ConfigFaults),
}

/// Reads them; with what is to be said about them.
///
/// # Errors
/// [`SettingsError`].
pub(super) fn read(given: &[String], prefix_delegation: bool) -> Result<(Config, Vec<String>), SettingsError> {
    let mut settings = BTreeMap::new();
    let mut notes = Vec::new();
    for text in given {
        let (name, value) = text.split_once('=').ok_or_else(|| SettingsError::Form(text.clone()))?;
        if !VARIABLES.iter().any(|variable| variable.name == name) {
            return Err(SettingsError::Unknown { name: name.to_owned(), nearest: nearest(name) });
        }
        if !OF_THE_POOL.contains(&name) {
            notes.push(format!("{name} does not change what a pool holds"));
        }
        settings.insert(name, value);
    }
    if prefix_delegation {
        settings.insert("ENABLE_PREFIX_DELEGATION", "true");
    }
    let config = Config::load(&|name| settings.get(name).map(|value| (*value).to_owned()))?;
    Ok((config, notes))
}

/// The name that shares most of its words with `name`, the shortest of them.
fn nearest(name: &str) -> &'static str {
    let name = name.to_ascii_uppercase();
    let words: Vec<&str> = name.split(['_', '-']).collect();
    let shared = |known: &str| known.split('_').filter(|word| words.contains(word)).count();
    OF_THE_POOL
        .iter()
        .copied()
        .max_by_key(|known| (shared(known), std::cmp::Reverse(known.len())))
        .unwrap_or("WARM_IP_TARGET")
}
