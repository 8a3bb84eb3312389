//! Reading of single variables: each fault is noted, and reading goes on with the default.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::ops::{Deref, DerefMut};
use std::str::FromStr;
use std::time::Duration;

use ipnet::Ipv4Net;
use sluice_contract::node::{VETH_PREFIX_RULE, is_veth_prefix};
use sluice_daemon::environment;
pub use sluice_daemon::environment::{ConfigFault, ConfigFaults};
use sluice_ipamd_core::ipv6::Families;

use super::variables::{Effect, VARIABLES};

/// Reads variables as both daemons do, and the kinds that only this one has.
pub(super) struct Reader<'a>(environment::Reader<'a>);

impl<'a> Deref for Reader<'a> {
    type Target = environment::Reader<'a>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Reader<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(source: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self(environment::Reader::new(source, |name| VARIABLES.iter().any(|variable| variable.name == name)))
    }

    /// All faults, sorted by name.
    pub(super) fn finish(self) -> Result<(), ConfigFaults> {
        self.0.finish()
    }

    /// A number of ENIs or addresses; VPC CNI takes negative ones for `if_negative`.
    pub(super) fn target(&mut self, name: &'static str, default: u32, if_negative: u32, max: u32) -> u32 {
        self.parsed(name, default, |value| {
            match value.parse::<i64>() {
                Ok(number) if number < 0 => Ok(if_negative),
                Ok(number) => u32::try_from(number).ok().filter(|number| *number <= max).ok_or(()),
                Err(_) => Err(()),
            }
            .map_err(|()| format!("it must be a whole number up to {max}"))
        })
    }

    pub(super) fn seconds(&mut self, name: &'static str, default: u32, range: RangeInclusive<u32>) -> Duration {
        self.parsed(name, Duration::from_secs(default.into()), |value| {
            value
                .parse::<u32>()
                .ok()
                .filter(|seconds| range.contains(seconds))
                .map(|seconds| Duration::from_secs(seconds.into()))
                .ok_or_else(|| format!("it must be a number of seconds from {} to {}", range.start(), range.end()))
        })
    }

    /// One of a list of words in any case; the first is the default.
    pub(super) fn choice<T: Copy + Default>(&mut self, name: &'static str, choices: &[(&str, T)]) -> T {
        let default = choices.first().map_or_else(T::default, |(_, value)| *value);
        self.parsed(name, default, |value| {
            choices.iter().find(|(word, _)| word.eq_ignore_ascii_case(value)).map(|(_, choice)| *choice).ok_or_else(
                || {
                    format!(
                        "it must be one of {}",
                        choices.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ")
                    )
                },
            )
        })
    }

    /// A mark, decimal or `0x` hexadecimal, not zero.
    pub(super) fn mark(&mut self, name: &'static str, default: u32) -> u32 {
        self.parsed(name, default, |value| {
            let number = match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
                Some(digits) => u32::from_str_radix(digits, 16),
                None => u32::from_str(value),
            };
            number.ok().filter(|mark| *mark != 0).ok_or_else(|| "it must be a number from 1 to 0xffffffff".to_owned())
        })
    }

    /// At most four characters, so that the hash of the pod's name fits; not what the host's links begin with.
    pub(super) fn veth_prefix(&mut self, name: &'static str, default: &str) -> String {
        self.parsed(name, default.to_owned(), |value| {
            if is_veth_prefix(value) { Ok(value.to_owned()) } else { Err(VETH_PREFIX_RULE.to_owned()) }
        })
    }

    /// IPv4 CIDRs with commas between them.
    pub(super) fn cidrs(&mut self, name: &'static str) -> Vec<Ipv4Net> {
        self.parsed(name, Vec::new(), |value| {
            let parts: Vec<&str> = value.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
            if parts.len() > 256 {
                return Err("it may have 256 CIDRs".to_owned());
            }
            let read = |part: &&str| match part.parse::<Ipv4Net>() {
                Ok(net) if net.addr() == net.network() => Ok(net),
                Ok(net) => Err(format!("{part} has host bits set: {} is meant?", net.trunc())),
                Err(_) => Err(format!("{part:?} is not an IPv4 CIDR such as 10.0.0.0/8")),
            };
            parts.iter().map(read).collect()
        })
    }

    /// A JSON object of strings with the limits of EC2's tags; keys of Kubernetes on AWS are refused.
    pub(super) fn tags(&mut self, name: &'static str) -> BTreeMap<String, String> {
        self.parsed(name, BTreeMap::new(), |value| {
            let tags: BTreeMap<String, String> = serde_json::from_str(value)
                .map_err(|error| format!("it must be a JSON object of strings ({error})"))?;
            if tags.len() > 40 {
                return Err("it may have 40 tags: EC2 allows 50, and some are ours".to_owned());
            }
            for (key, value) in &tags {
                if key.is_empty() || key.chars().count() > 128 || value.chars().count() > 256 {
                    return Err(format!("tag {key:?}: a key has 1 to 128 characters, a value up to 256"));
                }
                if key.contains("k8s.amazonaws.com") || key.starts_with("aws:") || key.starts_with("sluice.dev/") {
                    return Err(format!("tag {key:?}: keys of k8s.amazonaws.com, aws: and sluice.dev/ are reserved"));
                }
            }
            Ok(tags)
        })
    }

    /// The families that two switches say; a fault when they say none.
    pub(super) fn families(&mut self, v4: &'static str, v6: &'static str) -> Families {
        match (self.boolean(v4, true), self.boolean(v6, false)) {
            (true, false) => Families::V4,
            (false, true) => Families::V6,
            (true, true) => Families::Dual,
            (false, false) => {
                self.fault(v4, "false", format!("pods need addresses: it or {v6} must be true"));
                Families::V4
            }
        }
    }

    /// The variables that are set to something and have no effect yet.
    pub(super) fn set_without_effect(&self) -> Vec<&'static str> {
        VARIABLES
            .iter()
            .filter(|variable| variable.effect == Effect::Later)
            .filter(|variable| {
                self.text(variable.name).is_some_and(|value| !value.eq_ignore_ascii_case(variable.default))
            })
            .map(|variable| variable.name)
            .collect()
    }
}
