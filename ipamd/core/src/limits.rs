//! What each instance type can hold: the table that ipamd carries, so that a start needs no DescribeInstanceTypes.
//!
//! The data are `limits/types.tsv`, written by `limits/generate.py`; a type that is not there is asked of EC2 (the
//! `Cloud` seam's `instance_limits`). The table is read through at each question instead of being kept parsed: there
//! is one question a start, and the text is part of the binary and costs no memory of its own.

use crate::cloud::InstanceLimits;

static TYPES: &str = include_str!("limits/types.tsv");

/// What runs below the guest; it decides whether ENIs can hold prefixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hypervisor {
    /// Nitro: prefixes work.
    Nitro,
    /// Xen: no prefixes.
    Xen,
    /// No hypervisor, a bare-metal type: prefixes work.
    Metal,
}

/// One instance type, as DescribeInstanceTypes tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceType {
    /// `InstanceType`, e.g. `m5.large`.
    pub name: &'static str,
    /// `NetworkCards[].MaximumNetworkInterfaces` by card index; never empty. The default card is the first.
    pub enis_per_card: Vec<u32>,
    /// `Ipv4AddressesPerInterface`, the primary address among them.
    pub ipv4_per_eni: u32,
    /// `Ipv6AddressesPerInterface`.
    pub ipv6_per_eni: u32,
    /// `Hypervisor` and `BareMetal`.
    pub hypervisor: Hypervisor,
}

impl InstanceType {
    /// The limits of each network card.
    #[must_use]
    pub fn limits(&self) -> InstanceLimits {
        InstanceLimits {
            enis: self.enis_per_card.first().copied().unwrap_or(0),
            further_cards: self.enis_per_card.iter().skip(1).copied().collect(),
            ipv4_per_eni: self.ipv4_per_eni,
            prefixes: self.hypervisor != Hypervisor::Xen,
        }
    }
}

/// The limits of `instance_type`, or nothing where the table does not know it.
#[must_use]
pub fn limits(instance_type: &str) -> Option<InstanceLimits> {
    find(instance_type).map(|found| found.limits())
}

/// Whether instances of a type can have a trunk ENI: those on Nitro, the burstable ones (`t2`, `t3`, `t3a`, `t4g`) apart. A few
/// other types cannot either; which, only AWS's VPC resource controller knows, and it says so on the node.
#[must_use]
pub fn takes_trunk(instance_type: &str, limits: &InstanceLimits) -> bool {
    let burstable = instance_type.strip_prefix('t').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    limits.prefixes && !burstable
}

/// As much as the largest type can hold, for a type of which nothing is known and that nobody is to be asked about.
#[must_use]
pub fn largest() -> InstanceLimits {
    let none = InstanceLimits { enis: 0, further_cards: Vec::new(), ipv4_per_eni: 0, prefixes: true };
    let cards = all().map(|row| row.enis_per_card.len()).max().unwrap_or(1);
    let largest = all().map(|row| row.limits()).fold(none, |most, limits| InstanceLimits {
        enis: most.enis.max(limits.enis),
        ipv4_per_eni: most.ipv4_per_eni.max(limits.ipv4_per_eni),
        ..most
    });
    InstanceLimits { further_cards: vec![largest.enis; cards.saturating_sub(1)], ..largest }
}

/// All that the table says of `instance_type`.
#[must_use]
pub fn find(instance_type: &str) -> Option<InstanceType> {
    all().find(|row| row.name == instance_type)
}

/// Every type of the table, by name.
pub fn all() -> impl Iterator<Item = InstanceType> {
    TYPES.lines().filter(|line| !line.starts_with('#')).filter_map(parse)
}

fn parse(line: &'static str) -> Option<InstanceType> {
    let mut columns = line.split('\t');
    let row = InstanceType {
        name: columns.next()?,
        enis_per_card: cards(columns.next()?)?,
        ipv4_per_eni: columns.next()?.parse().ok()?,
        ipv6_per_eni: columns.next()?.parse().ok()?,
        hypervisor: match columns.next()? {
            "nitro" => Hypervisor::Nitro,
            "xen" => Hypervisor::Xen,
            "metal" => Hypervisor::Metal,
            _ => return None,
        },
    };
    columns.next().is_none().then_some(row)
}

/// `3`: one card of three ENIs. `8,7`: two cards. `2x32`: 32 cards of two each.
fn cards(text: &str) -> Option<Vec<u32>> {
    match text.split_once('x') {
        Some((enis, cards)) => Some(vec![enis.parse().ok()?; usize::from(cards.parse::<u8>().ok()?)]),
        None => text.split(',').map(|enis| enis.parse().ok()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_is_a_type_and_none_is_there_twice() {
        let lines = TYPES.lines().filter(|line| !line.starts_with('#')).count();
        let rows: Vec<InstanceType> = all().collect();
        assert_eq!(rows.len(), lines);
        assert!(lines >= 1395, "{lines}");
        assert!(rows.is_sorted_by(|a, b| a.name < b.name));
        for row in &rows {
            assert!(!row.enis_per_card.is_empty() && row.enis_per_card.iter().all(|&enis| enis > 0), "{row:?}");
            assert!(row.ipv4_per_eni > 0 && row.ipv4_per_eni <= 64, "{row:?}");
        }
    }

    /// The groups of reference/vpc-cni.md 3.6.
    #[test]
    fn the_types_that_people_run_have_the_limits_that_aws_documents() {
        for (name, enis, ipv4_per_eni, prefixes) in [
            ("t2.micro", 2, 2, false),
            ("t2.medium", 3, 6, false),
            ("t3.nano", 2, 2, true),
            ("t3.small", 3, 4, true),
            ("t3.medium", 3, 6, true),
            ("m4.large", 2, 10, false),
            ("c5.large", 3, 10, true),
            ("m5.large", 3, 10, true),
            ("m5.xlarge", 4, 15, true),
            ("m5.2xlarge", 4, 15, true),
            ("m5.4xlarge", 8, 30, true),
            ("m6i.8xlarge", 8, 30, true),
            ("m5.24xlarge", 15, 50, true),
            ("m5.metal", 15, 50, true),
            ("m6g.large", 3, 10, true),
            ("p3dn.24xlarge", 15, 50, true),
            ("m8a.48xlarge", 24, 64, true),
            // More than one card: the limit is that of the default card.
            ("p4d.24xlarge", 15, 50, true),
            ("p5.48xlarge", 2, 50, true),
            ("c6in.32xlarge", 8, 50, true),
        ] {
            let found = limits(name).unwrap();
            assert_eq!((found.enis, found.ipv4_per_eni, found.prefixes), (enis, ipv4_per_eni, prefixes), "{name}");
        }
    }

    #[test]
    fn types_with_several_cards_tell_of_each() {
        for (name, cards) in [
            ("m5.large", vec![3]),
            ("p4d.24xlarge", vec![15; 4]),
            ("p5.48xlarge", vec![2; 32]),
            ("trn1.32xlarge", vec![5; 8]),
            ("i7ie.48xlarge", vec![8, 7]),
        ] {
            assert_eq!(find(name).unwrap().enis_per_card, cards, "{name}");
            let limits = limits(name).unwrap();
            let told: Vec<u32> = (0..).map(|card| limits.enis_of(card)).take_while(|enis| *enis > 0).collect();
            assert_eq!(told, cards, "{name}");
        }
        assert_eq!(all().filter(|row| row.enis_per_card.len() > 1).count(), 71);
    }

    #[test]
    fn an_unknown_type_is_not_guessed() {
        for name in ["", "m5", "M5.large", "m5.large ", "#", "m99.colossal"] {
            assert_eq!(limits(name), None, "{name:?}");
        }
    }
}
