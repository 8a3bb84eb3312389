//! What the kernel's maps hold: the mirror of what the C programs include.
//!
//! `layout/source.rs` says it once. Here it becomes Rust types, which aya reads and writes as they are; `build.rs` makes a
//! C header of it in which the compiler checks every size and offset against these types.
#![expect(unsafe_code, reason = "plain old data is declared to aya by an unsafe trait")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address as the maps hold it: IPv6, or IPv4 as `::ffff:a.b.c.d`.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(4))]
pub struct Address(pub [u8; 16]);

// SAFETY: an array of bytes.
unsafe impl aya::Pod for Address {}

impl Address {
    /// No address.
    pub const NONE: Self = Self([0; 16]);

    /// Whether it is none.
    #[must_use]
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => Self(v6.octets()),
        }
    }
}

impl From<Ipv4Addr> for Address {
    fn from(address: Ipv4Addr) -> Self {
        Self(address.to_ipv6_mapped().octets())
    }
}

impl From<Address> for IpAddr {
    /// IPv4 addresses come back as such.
    fn from(address: Address) -> Self {
        Self::V6(Ipv6Addr::from(address.0)).to_canonical()
    }
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(&IpAddr::from(*self), f)
    }
}

macro_rules! constants {
    ($($(#[doc = $doc:expr])* $name:ident : $type:ty = $value:expr;)*) => {
        $($(#[doc = $doc])* pub const $name: $type = $value;)*
    };
}

macro_rules! numbers {
    ($($(#[doc = $doc:expr])* $name:ident $prefix:literal {
        $($(#[doc = $variant_doc:expr])* $variant:ident = $number:literal $text:literal,)*
    })*) => {$(
        $(#[doc = $doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $name {
            $($(#[doc = $variant_doc])* $variant = $number,)*
        }

        impl $name {
            /// All of them, by number.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The one with this number.
            #[must_use]
            pub const fn of(number: u8) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// Its number.
            #[must_use]
            pub const fn number(self) -> u8 {
                self as u8
            }

            /// Its name in metrics and logs.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }
    )*};
}

macro_rules! structs {
    ($($(#[doc = $doc:expr])* $name:ident {
        $($(#[doc = $field_doc:expr])* $field:ident : $type:ty,)*
    })*) => {$(
        $(#[doc = $doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(C)]
        pub struct $name {
            $($(#[doc = $field_doc])* pub $field: $type,)*
        }

        const _: () = assert!(size_of::<$name>() == 0 $(+ size_of::<$type>())*, "padding between fields");

        // SAFETY: integers and arrays of them, in C's order, without padding (asserted above): any bytes are a value.
        unsafe impl aya::Pod for $name {}
    )*};
}

/// Kind of a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapKind {
    /// `BPF_MAP_TYPE_HASH`.
    Hash,
    /// `BPF_MAP_TYPE_LPM_TRIE`.
    Lpm,
    /// `BPF_MAP_TYPE_LRU_HASH`.
    LruHash,
    /// `BPF_MAP_TYPE_PERCPU_HASH`.
    PerCpuHash,
    /// `BPF_MAP_TYPE_PERCPU_ARRAY`.
    PerCpuArray,
    /// `BPF_MAP_TYPE_ARRAY`.
    Array,
    /// `BPF_MAP_TYPE_SOCKMAP`.
    SockMap,
    /// `BPF_MAP_TYPE_RINGBUF`; the entries are bytes.
    Ring,
}

/// A map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapLayout {
    /// Its name, in C and as a pin.
    pub name: &'static str,
    /// Its kind.
    pub kind: MapKind,
    /// Bytes of a key.
    pub key: usize,
    /// Bytes of a value.
    pub value: usize,
    /// Entries, at most.
    pub entries: u32,
}

macro_rules! maps {
    ($($(#[doc = $doc:expr])* $name:ident : $kind:ident $(($key:ty, $value:ty))? $entries:literal $(, $flags:ident)?;)*) => {
        /// All maps.
        pub const MAPS: &[MapLayout] = &[$(MapLayout {
            name: stringify!($name),
            kind: MapKind::$kind,
            key: 0 $(+ size_of::<$key>())?,
            value: 0 $(+ size_of::<$value>())?,
            entries: $entries,
        }),*];
    };
}

include!("layout/source.rs");

impl Connection {
    /// The verdict of the last judgement.
    #[must_use]
    pub const fn verdict(&self) -> Option<Verdict> {
        Verdict::of((self.judged & 0xff) as u8)
    }

    /// The endpoint's revision at the last judgement.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.judged >> JUDGED_REVISION_SHIFT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_comes_back() {
        for text in ["10.0.0.1", "2001:db8::1"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Address::from(address)), address);
        }
    }

    #[test]
    fn numbers_come_back() {
        for reason in DropReason::ALL {
            assert_eq!(DropReason::of(reason.number()), Some(*reason));
            let drops = MAPS.iter().find(|map| map.name == "drops").unwrap();
            assert!(u32::from(reason.number()) < drops.entries);
        }
        assert_eq!(Verdict::of(0), None);
    }

    /// A connection is one cache line, and an address in a key is found at a multiple of 4.
    #[test]
    fn sizes() {
        assert_eq!(size_of::<Connection>(), 64);
        assert_eq!(size_of::<ConnectionKey>(), 44);
        assert_eq!(size_of::<Endpoint>(), 120);
        assert_eq!(size_of::<RowPrefix>(), 12);
    }
}
