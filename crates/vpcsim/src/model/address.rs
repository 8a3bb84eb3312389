//! Which addresses of a subnet are taken.
//!
//! IPv4 is kept as one 16-bit mask for each /28, so that "is there a whole /28" and "how many addresses are free" can
//! disagree as they do on AWS: a subnet with hundreds of free addresses may have no prefix to give.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use super::random::Random;

/// How EC2 picks an address that the caller leaves to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Placement {
    /// Anywhere in the subnet, so that single addresses break up its /28s: what AWS does ("subnet fragmentation" in the
    /// EKS best practices on prefix mode).
    #[default]
    Scattered,
    /// The lowest that is free.
    Lowest,
}

/// The prefix length of an IPv4 prefix delegation.
pub const PREFIX_V4: u8 = 28;
/// The prefix length of an IPv6 prefix delegation.
pub const PREFIX_V6: u8 = 80;

const WHOLE: u16 = u16::MAX;
const PER_BLOCK: u32 = 16;

/// The IPv4 addresses of a subnet of /28 to /16. The first four and the last are EC2's own.
#[derive(Debug, Clone, Default)]
pub struct AddressSpace {
    base: u32,
    /// One bit an address, set when it is taken or reserved.
    blocks: Vec<u16>,
    free: u32,
}

/// Whether an address can be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is free.
    Free,
    /// It is taken.
    Taken,
    /// It is one of the five that EC2 keeps.
    Reserved,
    /// It is not in the subnet.
    Outside,
}

impl AddressSpace {
    /// The space of `cidr`, empty but for the five reserved addresses.
    #[must_use]
    pub fn new(cidr: Ipv4Net) -> Self {
        let base = cidr.network().to_bits();
        let size = cidr.broadcast().to_bits().saturating_sub(base).saturating_add(1);
        let count = usize::try_from(size.div_ceil(PER_BLOCK)).unwrap_or(0);
        let mut blocks = vec![0u16; count];
        if let Some(first) = blocks.first_mut() {
            *first |= 0x000f;
        }
        if let Some(last) = blocks.last_mut() {
            *last |= 0x8000;
        }
        let mut space = Self { base, blocks, free: 0 };
        space.free = space.recount();
        space
    }

    /// Free addresses.
    #[must_use]
    pub fn available(&self) -> u32 {
        self.free
    }

    /// Free addresses, counted one by one: what [`Self::available`] must equal.
    #[must_use]
    pub fn recount(&self) -> u32 {
        self.blocks.iter().map(|mask| mask.count_zeros()).fold(0, u32::saturating_add)
    }

    /// /28s that are wholly free.
    #[must_use]
    pub fn free_prefixes(&self) -> usize {
        self.blocks.iter().filter(|mask| **mask == 0).count()
    }

    /// Whether `address` can be taken.
    #[must_use]
    pub fn standing(&self, address: Ipv4Addr) -> Standing {
        let Some((block, bit)) = self.locate(address) else { return Standing::Outside };
        let last = self.blocks.len().saturating_sub(1);
        if (block == 0 && bit < 4) || (block == last && bit == 15) {
            return Standing::Reserved;
        }
        match self.blocks.get(block) {
            Some(mask) if mask & (1 << bit) == 0 => Standing::Free,
            Some(_) => Standing::Taken,
            None => Standing::Outside,
        }
    }

    /// Takes one address; false when it is not free.
    pub fn take(&mut self, address: Ipv4Addr) -> bool {
        if self.standing(address) != Standing::Free {
            return false;
        }
        let Some((block, bit)) = self.locate(address) else { return false };
        let Some(mask) = self.blocks.get_mut(block) else { return false };
        *mask |= 1 << bit;
        self.free = self.free.saturating_sub(1);
        true
    }

    /// Gives one address back.
    pub fn release(&mut self, address: Ipv4Addr) {
        if self.standing(address) != Standing::Taken {
            return;
        }
        let Some((block, bit)) = self.locate(address) else { return };
        let Some(mask) = self.blocks.get_mut(block) else { return };
        *mask &= !(1 << bit);
        self.free = self.free.saturating_add(1);
    }

    /// Takes a free address of the model's choice.
    pub fn take_any(&mut self, placement: Placement, random: &mut Random) -> Option<Ipv4Addr> {
        let block = self.pick(placement, random, |mask| mask != WHOLE)?;
        let mask = *self.blocks.get(block)?;
        let start = match placement {
            Placement::Scattered => random.below(PER_BLOCK),
            Placement::Lowest => 0,
        };
        let bit = (0..PER_BLOCK).map(|step| (start + step) % PER_BLOCK).find(|bit| mask & (1 << bit) == 0)?;
        let address = self.address(block, bit);
        self.take(address).then_some(address)
    }

    /// Takes one /28; false when it is not a whole, free /28 of the subnet.
    pub fn take_prefix(&mut self, prefix: Ipv4Net) -> bool {
        let Some((block, 0)) = self.locate(prefix.network()).filter(|_| prefix.prefix_len() == PREFIX_V4) else {
            return false;
        };
        match self.blocks.get_mut(block) {
            Some(mask) if *mask == 0 => {
                *mask = WHOLE;
                self.free = self.free.saturating_sub(PER_BLOCK);
                true
            }
            _ => false,
        }
    }

    /// Gives one /28 back that [`Self::take_prefix`] took.
    pub fn release_prefix(&mut self, prefix: Ipv4Net) {
        let Some((block, 0)) = self.locate(prefix.network()).filter(|_| prefix.prefix_len() == PREFIX_V4) else {
            return;
        };
        if let Some(mask) = self.blocks.get_mut(block)
            && *mask == WHOLE
        {
            *mask = 0;
            self.free = self.free.saturating_add(PER_BLOCK);
        }
    }

    /// Takes a free /28 of the model's choice.
    pub fn take_any_prefix(&mut self, placement: Placement, random: &mut Random) -> Option<Ipv4Net> {
        let block = self.pick(placement, random, |mask| mask == 0)?;
        let prefix = Ipv4Net::new(self.address(block, 0), PREFIX_V4).ok()?;
        self.take_prefix(prefix).then_some(prefix)
    }

    fn pick(&self, placement: Placement, random: &mut Random, fits: impl Fn(u16) -> bool) -> Option<usize> {
        let count = self.blocks.len();
        let start = match placement {
            Placement::Scattered => usize::try_from(random.below(u32::try_from(count).ok()?)).ok()?,
            Placement::Lowest => 0,
        };
        let (before, after) = self.blocks.split_at_checked(start)?;
        let later = after.iter().position(|mask| fits(*mask)).map(|at| start.saturating_add(at));
        later.or_else(|| before.iter().position(|mask| fits(*mask)))
    }

    fn locate(&self, address: Ipv4Addr) -> Option<(usize, u32)> {
        let offset = address.to_bits().checked_sub(self.base)?;
        let block = usize::try_from(offset / PER_BLOCK).ok()?;
        (block < self.blocks.len()).then_some((block, offset % PER_BLOCK))
    }

    fn address(&self, block: usize, bit: u32) -> Ipv4Addr {
        let offset = u32::try_from(block).unwrap_or(u32::MAX).saturating_mul(PER_BLOCK).saturating_add(bit);
        Ipv4Addr::from_bits(self.base.saturating_add(offset))
    }
}

/// The IPv6 addresses and /80s of a subnet's /64. There are so many that only what is taken is kept.
#[derive(Debug, Clone, Default)]
pub struct Ipv6Space {
    cidr: Option<Ipv6Net>,
    addresses: BTreeSet<Ipv6Addr>,
    prefixes: BTreeSet<Ipv6Net>,
}

impl Ipv6Space {
    /// The space of `cidr`, empty.
    #[must_use]
    pub fn new(cidr: Option<Ipv6Net>) -> Self {
        Self { cidr, ..Self::default() }
    }

    /// Whether `address` can be taken.
    #[must_use]
    pub fn standing(&self, address: Ipv6Addr) -> Standing {
        let Some(cidr) = self.cidr.filter(|cidr| cidr.contains(&address)) else { return Standing::Outside };
        let offset = address.to_bits().saturating_sub(cidr.network().to_bits());
        if offset < 4 || address == cidr.broadcast() {
            Standing::Reserved
        } else if self.addresses.contains(&address) || self.prefixes.iter().any(|p| p.contains(&address)) {
            Standing::Taken
        } else {
            Standing::Free
        }
    }

    /// Takes one address; false when it is not free.
    pub fn take(&mut self, address: Ipv6Addr) -> bool {
        self.standing(address) == Standing::Free && self.addresses.insert(address)
    }

    /// Gives one address back.
    pub fn release(&mut self, address: Ipv6Addr) {
        self.addresses.remove(&address);
    }

    /// Takes a free address of the model's choice.
    pub fn take_any(&mut self, random: &mut Random) -> Option<Ipv6Addr> {
        let cidr = self.cidr?;
        (0..64).find_map(|_| {
            let address = Ipv6Addr::from_bits(cidr.network().to_bits() | u128::from(random.draw()));
            self.take(address).then_some(address)
        })
    }

    /// Takes one /80; false when any of it is taken or outside.
    pub fn take_prefix(&mut self, prefix: Ipv6Net) -> bool {
        let inside = self.cidr.is_some_and(|cidr| cidr.contains(&prefix) && prefix.network() != cidr.network());
        if prefix.prefix_len() != PREFIX_V6
            || !inside
            || prefix.trunc() != prefix
            || self.addresses.range(prefix.network()..=prefix.broadcast()).next().is_some()
        {
            return false;
        }
        self.prefixes.insert(prefix)
    }

    /// Gives one /80 back.
    pub fn release_prefix(&mut self, prefix: Ipv6Net) {
        self.prefixes.remove(&prefix);
    }

    /// Takes a free /80 of the model's choice.
    pub fn take_any_prefix(&mut self, random: &mut Random) -> Option<Ipv6Net> {
        let cidr = self.cidr?;
        (0..64).find_map(|_| {
            let index = u128::from(random.draw() & 0xffff) << 48;
            let prefix = Ipv6Net::new(Ipv6Addr::from_bits(cidr.network().to_bits() | index), PREFIX_V6).ok()?;
            self.take_prefix(prefix).then_some(prefix)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(cidr: &str) -> AddressSpace {
        AddressSpace::new(cidr.parse().unwrap())
    }

    #[test]
    fn five_addresses_are_reserved() {
        let space = space("10.0.0.0/24");
        assert_eq!(space.available(), 251);
        for reserved in ["10.0.0.0", "10.0.0.1", "10.0.0.3", "10.0.0.255"] {
            assert_eq!(space.standing(reserved.parse().unwrap()), Standing::Reserved, "{reserved}");
        }
        assert_eq!(space.standing("10.0.0.4".parse().unwrap()), Standing::Free);
        assert_eq!(space.standing("10.0.1.0".parse().unwrap()), Standing::Outside);
        assert_eq!(AddressSpace::new("10.0.0.0/28".parse().unwrap()).available(), 11);
    }

    #[test]
    fn free_addresses_without_a_whole_prefix() {
        let mut space = space("10.0.0.0/26");
        assert_eq!(space.free_prefixes(), 2);
        assert!(space.take("10.0.0.20".parse().unwrap()));
        assert!(space.take("10.0.0.40".parse().unwrap()));
        assert_eq!((space.available(), space.free_prefixes()), (57, 0));
        assert!(space.take_any_prefix(Placement::Scattered, &mut Random::new(1)).is_none());
        space.release("10.0.0.40".parse().unwrap());
        let prefix = space.take_any_prefix(Placement::Scattered, &mut Random::new(1)).unwrap();
        assert_eq!(prefix, "10.0.0.32/28".parse().unwrap());
        assert!(!space.take("10.0.0.40".parse().unwrap()));
        assert_eq!(space.available(), space.recount());
    }

    #[test]
    fn every_address_can_be_had_once() {
        for placement in [Placement::Scattered, Placement::Lowest] {
            let mut space = space("10.0.0.0/25");
            let mut random = Random::new(7);
            let taken: BTreeSet<_> = std::iter::from_fn(|| space.take_any(placement, &mut random)).collect();
            assert_eq!(taken.len(), 123);
            assert_eq!((space.available(), space.recount()), (0, 0));
        }
    }

    #[test]
    fn ipv6_prefixes_and_addresses_keep_apart() {
        let mut space = Ipv6Space::new(Some("2001:db8:0:1::/64".parse().unwrap()));
        let mut random = Random::new(3);
        let prefix = space.take_any_prefix(&mut random).unwrap();
        assert_eq!(prefix.prefix_len(), 80);
        assert!(!space.take(prefix.hosts().next().unwrap()));
        let address = space.take_any(&mut random).unwrap();
        assert!(!space.take_prefix(Ipv6Net::new(address, 80).unwrap().trunc()));
        assert_eq!(space.standing("2001:db8:0:1::2".parse().unwrap()), Standing::Reserved);
    }
}
