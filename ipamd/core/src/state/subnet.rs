//! Subnets: what is known of them, what they are for, and what they are short of.

use std::collections::BTreeMap;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::tag;
use crate::cloud::AddressCount;
use crate::plan::Targets;
use crate::time::Timestamp;

/// A subnet that ENIs are or may be in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// Its CIDR.
    pub cidr: Ipv4Net,
    /// Its IPv6 CIDR, if it has one.
    #[serde(default)]
    pub ipv6_cidr: Option<Ipv6Net>,
    /// Free addresses when EC2 was last asked; none if it has not been.
    pub available: Option<u32>,
    /// Its tags, which say whether new ENIs may be made in it.
    pub tags: BTreeMap<String, String>,
    /// No whole /28 before then, as far as is known.
    pub no_prefixes: Option<Shortage>,
    /// No address at all before then, as far as is known.
    pub no_addresses: Option<Shortage>,
}

/// A subnet's shortage: when to try again, and how often that was in vain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shortage {
    /// Not worth a call before then.
    pub until: Timestamp,
    /// How many times in a row it had not even one.
    pub times: u32,
    /// How many to ask for at most: half of what was refused last.
    pub at_most: u32,
}

impl Subnet {
    /// One of which only the CIDR is known.
    pub(crate) const fn unknown(cidr: Ipv4Net) -> Self {
        Self { cidr, ipv6_cidr: None, available: None, tags: BTreeMap::new(), no_prefixes: None, no_addresses: None }
    }

    /// Until when addresses of this form are not to be had.
    #[must_use]
    pub fn short_until(&self, form: AddressCount, now: Timestamp) -> Option<Timestamp> {
        let shortage = match form {
            AddressCount::Secondary(_) => self.no_addresses,
            // Without addresses there are no prefixes either.
            AddressCount::Prefixes(_) => self.no_prefixes.max_by_until(self.no_addresses),
        };
        shortage.map(|shortage| shortage.until).filter(|until| *until > now)
    }

    /// Whether it had not one whole /28 when EC2 was last asked for one.
    #[must_use]
    pub fn lacks_prefixes(&self) -> bool {
        self.no_prefixes.is_some_and(|shortage| shortage.times > 0)
    }

    /// Whether new ENIs may be made in it (reference/vpc-cni.md 3.4). `is_primary`: the primary ENI is in it.
    #[must_use]
    pub fn takes_enis(&self, is_primary: bool, targets: &Targets) -> bool {
        match self.role() {
            "0" => false,
            _ if !targets.subnet_discovery => is_primary,
            "" => is_primary,
            _ => self.is_for(targets.cluster.as_deref()),
        }
    }

    /// Whether pods are to have no addresses of it, also of ENIs that are there (reference/vpc-cni.md 3.4): it is tagged out
    /// of use, or for other clusters. One of which no tags are known is not.
    #[must_use]
    pub fn is_excluded(&self, cluster: Option<&str>) -> bool {
        match self.role() {
            "" => false,
            "0" => true,
            _ => !self.is_for(cluster),
        }
    }

    fn role(&self) -> &str {
        self.tags.get(tag::SUBNET_ROLE).map_or("", String::as_str)
    }

    /// Whether it is for this cluster: reserved for none, or for this one among others.
    fn is_for(&self, cluster: Option<&str>) -> bool {
        let mut reserved = self.tags.keys().filter_map(|key| key.strip_prefix(tag::SUBNET_CLUSTER)).peekable();
        cluster.is_none_or(|cluster| reserved.peek().is_none() || reserved.any(|name| name == cluster))
    }

    /// How many addresses or prefixes to ask for at most in one call: less after each refusal.
    #[must_use]
    pub fn asked_at_most(&self, form: AddressCount) -> u32 {
        let shortage = match form {
            AddressCount::Secondary(_) => self.no_addresses,
            AddressCount::Prefixes(_) => self.no_prefixes.max_by_until(self.no_addresses),
        };
        shortage.map_or(u32::MAX, |shortage| shortage.at_most.max(1))
    }
}

trait MaxByUntil {
    fn max_by_until(self, other: Self) -> Self;
}

impl MaxByUntil for Option<Shortage> {
    fn max_by_until(self, other: Self) -> Self {
        [self, other].into_iter().flatten().max_by_key(|shortage| shortage.until)
    }
}
