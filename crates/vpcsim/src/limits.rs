//! What instance types can hold (DescribeInstanceTypes, `NetworkInfo`): enough types for scenes and tests.
//!
//! `ipamd/core` has the full table for production; this one is what the simulated EC2 enforces and tells, and the two
//! must agree on the types that both have.

/// Who virtualises the instance; decides whether prefixes can be assigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hypervisor {
    /// Nitro.
    Nitro,
    /// Xen: no prefix delegation.
    Xen,
    /// None: bare metal.
    None,
}

/// An instance type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceType {
    /// Its name.
    pub name: &'static str,
    /// ENIs that each network card holds, by card index.
    pub cards: &'static [u32],
    /// IPv4 addresses an ENI, the primary among them; a prefix takes the place of one address.
    pub ipv4_per_eni: u32,
    /// IPv6 addresses an ENI.
    pub ipv6_per_eni: u32,
    /// Who virtualises it.
    pub hypervisor: Hypervisor,
    /// `VCpuInfo.DefaultVCpus`.
    pub vcpus: u32,
    /// `MemoryInfo.SizeInMiB`.
    pub memory_mib: u32,
    /// `x86_64` or `arm64`.
    pub architecture: &'static str,
    /// `EfaSupported`.
    pub efa: bool,
}

impl InstanceType {
    /// `MaximumNetworkInterfaces`: over all cards.
    #[must_use]
    pub fn enis(&self) -> u32 {
        self.cards.iter().fold(0, |sum, card| sum.saturating_add(*card))
    }

    /// Whether /28 and /80 prefixes can be assigned (EC2 User Guide, "Assign prefixes": Nitro and bare metal only).
    #[must_use]
    pub fn prefixes(&self) -> bool {
        self.hypervisor != Hypervisor::Xen
    }
}

/// The type of that name.
#[must_use]
pub fn instance_type(name: &str) -> Option<&'static InstanceType> {
    INSTANCE_TYPES.iter().find(|entry| entry.name == name)
}

const GIB: u32 = 1024;

macro_rules! types {
    ($($name:literal $cards:expr, $v4:literal $v6:literal $hypervisor:ident $vcpus:literal cpu $gib:literal GiB $architecture:ident $efa:literal;)*) => {
        /// All types, by name.
        pub static INSTANCE_TYPES: &[InstanceType] = &[$(InstanceType {
            name: $name,
            cards: &$cards,
            ipv4_per_eni: $v4,
            ipv6_per_eni: $v6,
            hypervisor: Hypervisor::$hypervisor,
            vcpus: $vcpus,
            memory_mib: $gib * GIB,
            architecture: stringify!($architecture),
            efa: $efa,
        }),*];
    };
}

// ENIs and addresses are held against ipamd's full table by a test below.
types! {
    "c5.large"       [3], 10 10 Nitro 2 cpu 4 GiB x86_64 false;
    "c5.xlarge"      [4], 15 15 Nitro 4 cpu 8 GiB x86_64 false;
    "c5.2xlarge"     [4], 15 15 Nitro 8 cpu 16 GiB x86_64 false;
    "c5.4xlarge"     [8], 30 30 Nitro 16 cpu 32 GiB x86_64 false;
    "c5.9xlarge"     [8], 30 30 Nitro 36 cpu 72 GiB x86_64 false;
    "c5.12xlarge"    [8], 30 30 Nitro 48 cpu 96 GiB x86_64 false;
    "c5.18xlarge"    [15], 50 50 Nitro 72 cpu 144 GiB x86_64 false;
    "c5.24xlarge"    [15], 50 50 Nitro 96 cpu 192 GiB x86_64 false;
    "c5.metal"       [15], 50 50 None 96 cpu 192 GiB x86_64 false;
    "c6in.32xlarge"  [8, 8], 50 50 Nitro 128 cpu 256 GiB x86_64 true;
    "g6e.48xlarge"   [10, 10, 10, 10], 50 50 Nitro 192 cpu 1536 GiB x86_64 true;
    "hpc7a.96xlarge" [2, 2], 50 50 Nitro 192 cpu 768 GiB x86_64 true;
    "m4.large"       [2], 10 10 Xen 2 cpu 8 GiB x86_64 false;
    "m4.xlarge"      [4], 15 15 Xen 4 cpu 16 GiB x86_64 false;
    "m4.4xlarge"     [8], 30 30 Xen 16 cpu 64 GiB x86_64 false;
    "m5.large"       [3], 10 10 Nitro 2 cpu 8 GiB x86_64 false;
    "m5.xlarge"      [4], 15 15 Nitro 4 cpu 16 GiB x86_64 false;
    "m5.2xlarge"     [4], 15 15 Nitro 8 cpu 32 GiB x86_64 false;
    "m5.4xlarge"     [8], 30 30 Nitro 16 cpu 64 GiB x86_64 false;
    "m5.8xlarge"     [8], 30 30 Nitro 32 cpu 128 GiB x86_64 false;
    "m5.12xlarge"    [8], 30 30 Nitro 48 cpu 192 GiB x86_64 false;
    "m5.16xlarge"    [15], 50 50 Nitro 64 cpu 256 GiB x86_64 false;
    "m5.24xlarge"    [15], 50 50 Nitro 96 cpu 384 GiB x86_64 false;
    "m5.metal"       [15], 50 50 None 96 cpu 384 GiB x86_64 false;
    "m6g.large"      [3], 10 10 Nitro 2 cpu 8 GiB arm64 false;
    "m6g.xlarge"     [4], 15 15 Nitro 4 cpu 16 GiB arm64 false;
    "m6i.large"      [3], 10 10 Nitro 2 cpu 8 GiB x86_64 false;
    "m6i.xlarge"     [4], 15 15 Nitro 4 cpu 16 GiB x86_64 false;
    "m6i.2xlarge"    [4], 15 15 Nitro 8 cpu 32 GiB x86_64 false;
    "m6i.4xlarge"    [8], 30 30 Nitro 16 cpu 64 GiB x86_64 false;
    "m6i.8xlarge"    [8], 30 30 Nitro 32 cpu 128 GiB x86_64 false;
    "m6i.12xlarge"   [8], 30 30 Nitro 48 cpu 192 GiB x86_64 false;
    "m6i.16xlarge"   [15], 50 50 Nitro 64 cpu 256 GiB x86_64 false;
    "m6i.24xlarge"   [15], 50 50 Nitro 96 cpu 384 GiB x86_64 false;
    "m6i.32xlarge"   [15], 50 50 Nitro 128 cpu 512 GiB x86_64 true;
    "p3dn.24xlarge"  [15], 50 50 Nitro 96 cpu 768 GiB x86_64 true;
    "p4d.24xlarge"   [15, 15, 15, 15], 50 50 Nitro 96 cpu 1152 GiB x86_64 true;
    "p5.48xlarge"    [2; 32], 50 50 Nitro 192 cpu 2048 GiB x86_64 true;
    "r5.large"       [3], 10 10 Nitro 2 cpu 16 GiB x86_64 false;
    "r5.xlarge"      [4], 15 15 Nitro 4 cpu 32 GiB x86_64 false;
    "r5.2xlarge"     [4], 15 15 Nitro 8 cpu 64 GiB x86_64 false;
    "r5.4xlarge"     [8], 30 30 Nitro 16 cpu 128 GiB x86_64 false;
    "r5.8xlarge"     [8], 30 30 Nitro 32 cpu 256 GiB x86_64 false;
    "r5.12xlarge"    [8], 30 30 Nitro 48 cpu 384 GiB x86_64 false;
    "r5.16xlarge"    [15], 50 50 Nitro 64 cpu 512 GiB x86_64 false;
    "r5.24xlarge"    [15], 50 50 Nitro 96 cpu 768 GiB x86_64 false;
    "t3.nano"        [2], 2 2 Nitro 2 cpu 1 GiB x86_64 false;
    "t3.micro"       [2], 2 2 Nitro 2 cpu 1 GiB x86_64 false;
    "t3.small"       [3], 4 4 Nitro 2 cpu 2 GiB x86_64 false;
    "t3.medium"      [3], 6 6 Nitro 2 cpu 4 GiB x86_64 false;
    "t3.large"       [3], 12 12 Nitro 2 cpu 8 GiB x86_64 false;
    "t3.xlarge"      [4], 15 15 Nitro 4 cpu 16 GiB x86_64 false;
    "t3.2xlarge"     [4], 15 15 Nitro 8 cpu 32 GiB x86_64 false;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_what_the_field_counts_on() {
        let m5 = instance_type("m5.large").unwrap();
        assert_eq!((m5.enis(), m5.ipv4_per_eni, m5.prefixes()), (3, 10, true));
        assert_eq!(instance_type("p5.48xlarge").unwrap().enis(), 64);
        assert!(!instance_type("m4.large").unwrap().prefixes());
        assert!(instance_type("c5.metal").unwrap().prefixes());
        assert!(instance_type("m5.gigantic").is_none());
    }

    #[test]
    fn the_table_agrees_with_ipamds() {
        let full = include_str!("../../../ipamd/core/src/limits/types.tsv");
        for entry in INSTANCE_TYPES {
            let line = full.lines().find(|line| line.split('\t').next() == Some(entry.name)).unwrap();
            let cards = match entry.cards {
                [one] => one.to_string(),
                [first, ..] => format!("{first}x{}", entry.cards.len()),
                [] => panic!("{} has no network card", entry.name),
            };
            let hypervisor = match entry.hypervisor {
                Hypervisor::Nitro => "nitro",
                Hypervisor::Xen => "xen",
                Hypervisor::None => "metal",
            };
            let (v4, v6) = (entry.ipv4_per_eni, entry.ipv6_per_eni);
            assert_eq!(line, format!("{}\t{cards}\t{v4}\t{v6}\t{hypervisor}", entry.name));
        }
    }

    #[test]
    fn no_type_is_listed_twice() {
        let mut names: Vec<_> = INSTANCE_TYPES.iter().map(|entry| entry.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), INSTANCE_TYPES.len());
    }
}
