//! Small values that a hundred thousand pods have each, in few bytes.

use std::collections::BTreeSet;
use std::fmt;
use std::iter::{Chain, Copied};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::{option, slice};

use crate::model::Text;

/// Addresses without doubles, in the order given, IPv4-mapped ones as IPv4. One of IPv4, the usual case, takes no room of its
/// own.
#[derive(Clone, PartialEq, Eq)]
pub struct Addresses(Kept);

#[derive(Clone, PartialEq, Eq)]
enum Kept {
    One(Ipv4Addr),
    /// Never one of IPv4 alone, so that equal lists are equal values.
    Many(Box<[IpAddr]>),
}

impl Addresses {
    /// All of them.
    pub fn iter(&self) -> AddressesIter<'_> {
        let (one, many): (_, &[IpAddr]) = match &self.0 {
            Kept::One(one) => (Some(IpAddr::V4(*one)), &[]),
            Kept::Many(many) => (None, many),
        };
        one.into_iter().chain(many.iter().copied())
    }

    /// How many.
    #[must_use]
    pub const fn len(&self) -> usize {
        match &self.0 {
            Kept::One(_) => 1,
            Kept::Many(many) => many.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether an address is one of them.
    #[must_use]
    pub fn contains(&self, address: &IpAddr) -> bool {
        self.iter().any(|one| one == *address)
    }

    /// The same as a list.
    #[must_use]
    pub fn to_vec(&self) -> Vec<IpAddr> {
        self.iter().collect()
    }
}

/// Addresses in their order.
pub type AddressesIter<'a> = Chain<option::IntoIter<IpAddr>, Copied<slice::Iter<'a, IpAddr>>>;

impl<'a> IntoIterator for &'a Addresses {
    type Item = IpAddr;
    type IntoIter = AddressesIter<'a>;

    fn into_iter(self) -> AddressesIter<'a> {
        self.iter()
    }
}

impl FromIterator<IpAddr> for Addresses {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        let mut list: Vec<IpAddr> = Vec::new();
        let mut seen = BTreeSet::new();
        for address in addresses {
            let address = address.to_canonical();
            if seen.insert(address) {
                list.push(address);
            }
        }
        match list.as_slice() {
            [IpAddr::V4(one)] => Self(Kept::One(*one)),
            _ => Self(Kept::Many(list.into_boxed_slice())),
        }
    }
}

impl From<Vec<IpAddr>> for Addresses {
    fn from(addresses: Vec<IpAddr>) -> Self {
        addresses.into_iter().collect()
    }
}

impl Default for Addresses {
    fn default() -> Self {
        Self(Kept::Many(Box::default()))
    }
}

impl fmt::Debug for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Addresses in ascending order, IPv4 first, IPv4-mapped ones as IPv4; a clone shares them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct AddressSet {
    v4: Arc<[Ipv4Addr]>,
    v6: Arc<[Ipv6Addr]>,
}

impl AddressSet {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> {
        let v6 = self.v6.iter().copied().map(IpAddr::V6);
        self.v4.iter().copied().map(IpAddr::V4).chain(v6)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// Whether an address is one of them.
    #[must_use]
    pub fn contains(&self, address: &IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => self.v4.binary_search(&address).is_ok(),
            IpAddr::V6(address) => self.v6.binary_search(&address).is_ok(),
        }
    }

    /// Those of IPv4, as they are held.
    pub(crate) const fn v4(&self) -> &Arc<[Ipv4Addr]> {
        &self.v4
    }

    /// Those of IPv6, as they are held.
    pub(crate) const fn v6(&self) -> &Arc<[Ipv6Addr]> {
        &self.v6
    }
}

impl FromIterator<IpAddr> for AddressSet {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        let (mut v4, mut v6) = (BTreeSet::new(), BTreeSet::new());
        for address in addresses {
            match address.to_canonical() {
                IpAddr::V4(address) => v4.insert(address),
                IpAddr::V6(address) => v6.insert(address),
            };
        }
        Self { v4: v4.into_iter().collect(), v6: v6.into_iter().collect() }
    }
}

impl fmt::Debug for AddressSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// `metadata.uid`. A UUID takes no room of its own.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uid(UidText);

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum UidText {
    None,
    /// As the API server writes one: lower case, with dashes.
    Uuid([u8; 16]),
    Other(Text),
}

impl Uid {
    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        matches!(self.0, UidText::None)
    }
}

impl Default for Uid {
    fn default() -> Self {
        Self(UidText::None)
    }
}

impl From<&str> for Uid {
    fn from(text: &str) -> Self {
        if text.is_empty() {
            return Self(UidText::None);
        }
        Self(uuid(text).map_or_else(|| UidText::Other(text.into()), UidText::Uuid))
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            UidText::None => Ok(()),
            UidText::Other(text) => f.write_str(text),
            UidText::Uuid(bytes) => {
                for (index, byte) in bytes.iter().enumerate() {
                    if matches!(index, 4 | 6 | 8 | 10) {
                        f.write_str("-")?;
                    }
                    write!(f, "{byte:02x}")?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// The bytes of a UUID in the API server's form; none for any other text, so that a UID is shown as it was read.
fn uuid(text: &str) -> Option<[u8; 16]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; 16];
    let mut digits = text.bytes();
    if text.len() != 36 {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) && digits.next() != Some(b'-') {
            return None;
        }
        *byte = digit(digits.next()?)? << 4 | digit(digits.next()?)?;
    }
    Some(bytes)
}

/// `metadata.creationTimestamp`: later is greater, and none at all is least, which is the default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Created(Option<NonZeroU32>);

/// The last second that is told from later ones.
const MOST: i64 = u32::MAX as i64 - 1;

impl Created {
    /// So many seconds after the beginning of 1970, UTC. What is before, or after the 136 years that four bytes hold, is as
    /// near to it as can be.
    #[must_use]
    pub fn at(seconds: i64) -> Self {
        Self(NonZeroU32::new(u32::try_from(seconds.clamp(0, MOST)).unwrap_or_default() + 1))
    }

    /// Seconds after the beginning of 1970, UTC; none where there is no time at all.
    #[must_use]
    pub fn seconds(self) -> Option<i64> {
        self.0.map(|after| i64::from(after.get()) - 1)
    }

    /// Reads a time as the API server writes it (RFC 3339, in UTC): `2026-11-25T21:15:41Z`; fractions of a second are cut.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
        let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
        let number = |part: &str, digits: usize| {
            let valid = part.len() == digits && part.bytes().all(|byte| byte.is_ascii_digit());
            valid.then(|| part.parse::<i64>().ok()).flatten()
        };
        let three = |text: &'_ str, separator: char, first: usize| {
            let mut parts = text.split(separator);
            let read = (number(parts.next()?, first)?, number(parts.next()?, 2)?, number(parts.next()?, 2)?);
            parts.next().is_none().then_some(read)
        };
        let (year, month, day) = three(date, '-', 4)?;
        let (hour, minute, second) = three(time, ':', 2)?;
        let valid = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second < 61;
        if !valid || fraction.is_empty() || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        // Days since 1970 in the Gregorian calendar, with years that begin in March, so that leap days end them.
        let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
        let days =
            365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + (153 * month + 2) / 5 + day
                - 1;
        Some(Self::at((days - 719_468) * 86_400 + hour * 3_600 + minute * 60 + second))
    }
}

impl From<&str> for Created {
    /// What is not a time is none at all.
    fn from(text: &str) -> Self {
        Self::parse(text).unwrap_or_default()
    }
}
