//! Identifiers that are checked when they enter the system and never again.
//!
//! Each newtype wraps a string of one grammar. The grammar is as wide as the party that issues the id allows, and no
//! wider: ids end up in file names, nft elements and log fields.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a string is not an id of the kind that was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {value:?} is not valid: {rule}")]
pub struct InvalidId {
    /// Which id was expected, in the words of its issuer, e.g. `network interface id`.
    pub kind: &'static str,
    /// What was given, cut to 80 characters.
    pub value: String,
    /// The rule that it breaks.
    pub rule: &'static str,
}

impl InvalidId {
    fn new(kind: &'static str, value: &str, rule: &'static str) -> Self {
        Self { kind, value: value.chars().take(80).collect(), rule }
    }
}

macro_rules! string_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Box<str>);

        impl $name {
            /// Checks `value` against the grammar of this id.
            ///
            /// # Errors
            /// [`InvalidId`] names the value and the rule that it breaks.
            pub fn new(value: impl AsRef<str>) -> Result<Self, InvalidId> {
                let value = value.as_ref();
                let valid: fn(&str) -> bool = $valid;
                if valid(value) { Ok(Self(value.into())) } else { Err(InvalidId::new($kind, value, $rule)) }
            }

            /// The id as it is written on the wire.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(value: &str) -> Result<Self, InvalidId> {
                Self::new(value)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(value: String) -> Result<Self, InvalidId> {
                Self::new(value)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0.into()
            }
        }
    };
}

fn aws_id(prefix: &str, value: &str) -> bool {
    value.strip_prefix(prefix).is_some_and(|hex| {
        (8..=32).contains(&hex.len()) && hex.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
    })
}

/// The characters of a CNI container id and network name: `[a-zA-Z0-9][a-zA-Z0-9_.-]*` (CNI spec 1.1.0, section 2).
fn cni_identifier(value: &str) -> bool {
    let mut bytes = value.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
        && value.len() <= 253
}

string_id!(
    /// An EC2 network interface, `eni-` and hexadecimal digits.
    EniId, "network interface id", "it must be eni- and 8 to 32 lower-case hexadecimal digits", |v| aws_id("eni-", v)
);
string_id!(
    /// The attachment of a network interface to an instance, `eni-attach-` and hexadecimal digits.
    AttachmentId, "attachment id", "it must be eni-attach- and 8 to 32 lower-case hexadecimal digits",
    |v| aws_id("eni-attach-", v)
);
string_id!(
    /// An EC2 instance, `i-` and hexadecimal digits.
    InstanceId, "instance id", "it must be i- and 8 to 32 lower-case hexadecimal digits", |v| aws_id("i-", v)
);
string_id!(
    /// A VPC subnet, `subnet-` and hexadecimal digits.
    SubnetId, "subnet id", "it must be subnet- and 8 to 32 lower-case hexadecimal digits", |v| aws_id("subnet-", v)
);
string_id!(
    /// A VPC, `vpc-` and hexadecimal digits.
    VpcId, "VPC id", "it must be vpc- and 8 to 32 lower-case hexadecimal digits", |v| aws_id("vpc-", v)
);
string_id!(
    /// A VPC security group, `sg-` and hexadecimal digits.
    SecurityGroupId, "security group id", "it must be sg- and 8 to 32 lower-case hexadecimal digits",
    |v| aws_id("sg-", v)
);
string_id!(
    /// A sandbox as its runtime names it (`CNI_CONTAINERID`).
    ContainerId, "container id", "it must start with a letter or digit, go on with those, '_', '.' or '-', and have at most 253 characters",
    cni_identifier
);
string_id!(
    /// A CNI network, the `name` of a conflist.
    NetworkName, "network name", "it must start with a letter or digit, go on with those, '_', '.' or '-', and have at most 253 characters",
    cni_identifier
);
string_id!(
    /// A Linux network interface: at most 15 bytes (`IFNAMSIZ` less the final zero), no '/', ':' or white space, not "." or "..".
    /// Nor a '%', which no link can have: the kernel makes `eth%d` the first `ethN` that is free, and refuses others.
    IfName, "interface name", "it must have 1 to 15 bytes, no '/', ':', '%' or white space, and not be '.' or '..'",
    |v| (1..=15).contains(&v.len()) && v != "." && v != ".."
        && v.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%'))
);

/// What one ADD makes and one DEL takes away: a sandbox's attachment to a network by an interface (CNI spec 1.1.0,
/// section 2: "attachment").
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attachment {
    /// The sandbox.
    pub container: ContainerId,
    /// The interface inside the sandbox.
    pub ifname: IfName,
    /// The network that the conflist names.
    pub network: NetworkName,
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}@{}", self.container, self.ifname, self.network)
    }
}

/// The pod that a sandbox belongs to, as `CNI_ARGS` tells it. Names are kept as given: a runtime without Kubernetes
/// leaves them empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodRef {
    /// `K8S_POD_NAMESPACE`.
    #[serde(default)]
    pub namespace: String,
    /// `K8S_POD_NAME`.
    #[serde(default)]
    pub name: String,
    /// `K8S_POD_UID`; absent where the runtime does not give it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

impl fmt::Display for PodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The number of a VLAN on a link: 1 to 4094 (IEEE 802.1Q; 0 is no VLAN, and 4095 is reserved).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct VlanId(u16);

impl VlanId {
    /// Checks a number.
    ///
    /// # Errors
    /// [`InvalidId`] for one that no VLAN has.
    pub fn new(number: u16) -> Result<Self, InvalidId> {
        if (1..=4094).contains(&number) {
            Ok(Self(number))
        } else {
            Err(InvalidId::new("VLAN number", &number.to_string(), "it must be 1 to 4094"))
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl TryFrom<u16> for VlanId {
    type Error = InvalidId;
    fn try_from(number: u16) -> Result<Self, InvalidId> {
        Self::new(number)
    }
}

impl From<VlanId> for u16 {
    fn from(vlan: VlanId) -> Self {
        vlan.0
    }
}

/// A 48-bit Ethernet address, written `02:00:5e:10:00:01`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr(pub [u8; 6]);

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = InvalidId;

    fn from_str(value: &str) -> Result<Self, InvalidId> {
        let wrong = || InvalidId::new("MAC address", value, "it must be six hexadecimal bytes with ':' between them");
        let mut bytes = [0u8; 6];
        let mut parts = value.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(part, 16).ok().filter(|_| !part.starts_with('+')).ok_or_else(wrong)?;
        }
        if parts.next().is_some() { Err(wrong()) } else { Ok(Self(bytes)) }
    }
}

impl TryFrom<String> for MacAddr {
    type Error = InvalidId;
    fn try_from(value: String) -> Result<Self, InvalidId> {
        value.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_keep_to_their_grammar() {
        assert!(EniId::new("eni-0a1b2c3d4e5f60718").is_ok());
        assert!(EniId::new("eni-0A1B2C3D").is_err());
        assert!(EniId::new("eni-").is_err());
        assert!(EniId::new("eni-attach-0a1b2c3d4e5f60718").is_err());
        assert!(AttachmentId::new("eni-attach-0a1b2c3d4e5f60718").is_ok());
        assert!(IfName::new("eth0").is_ok());
        assert!(IfName::new("sixteen-bytes-xx").is_err());
        assert!(IfName::new("a/b").is_err());
        assert!(IfName::new("..").is_err());
        assert!(IfName::new("eth%d").is_err());
        assert!(ContainerId::new("../../etc").is_err());
        assert!(ContainerId::new("").is_err());
    }

    #[test]
    fn an_invalid_id_says_what_it_is_and_why() {
        let error = EniId::new("eth0").unwrap_err().to_string();
        assert_eq!(
            error,
            "network interface id \"eth0\" is not valid: it must be eni- and 8 to 32 lower-case hexadecimal digits"
        );
    }

    #[test]
    fn a_vlan_has_a_number_that_a_frame_can_carry() {
        assert_eq!(VlanId::new(4094).unwrap().get(), 4094);
        assert!(VlanId::new(0).is_err());
        assert_eq!(
            VlanId::new(4095).unwrap_err().to_string(),
            "VLAN number \"4095\" is not valid: it must be 1 to 4094"
        );
    }

    #[test]
    fn mac_addresses_round_trip() {
        let mac: MacAddr = "02:00:5e:10:00:fF".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:5e:10:00:ff");
        for bad in
            ["", "02:00:5e:10:00", "02:00:5e:10:00:01:02", "2:0:5e:10:0:1", "+2:00:5e:10:00:01", "zz:00:5e:10:00:01"]
        {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
    }
}
