//! The result of ADD, in one form inside and in the shape of each version on the wire.
//!
//! 0.3.0, 0.3.1 and 0.4.0 have one shape, with `version` in each of `ips`; 1.0.0 drops that; 1.1.0 adds fields to
//! interfaces and routes. Converting to an older version leaves out what that version cannot say; nothing else changes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::version::SpecVersion;
use crate::id::MacAddr;

/// The most entries of each list in a result.
const LIST_LIMIT: usize = 1024;

/// Why a value is not a result.
#[derive(Debug, thiserror::Error)]
pub enum ResultError {
    /// It is not of the shape of its version.
    #[error("it does not have the shape of a result of CNI {version}")]
    Shape {
        /// The version.
        version: SpecVersion,
        /// What serde says.
        #[source]
        source: serde_json::Error,
    },
    /// An address names an interface that is not in the list.
    #[error("address {address} is on interface {index}, but there are {interfaces} interfaces")]
    Index {
        /// The address.
        address: IpNet,
        /// The index that it names.
        index: usize,
        /// How many there are.
        interfaces: usize,
    },
    /// A list is longer than anyone needs.
    #[error("{list:?} has {length} entries; at most {LIST_LIMIT} are read")]
    TooLong {
        /// The list.
        list: &'static str,
        /// Its length.
        length: usize,
    },
}

/// What an ADD has made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddResult {
    /// The interfaces, on the host and in the sandbox.
    pub interfaces: Vec<Interface>,
    /// The addresses.
    pub ips: Vec<IpConfig>,
    /// The routes in the sandbox.
    pub routes: Vec<Route>,
    /// What the sandbox's `resolv.conf` should say.
    pub dns: Dns,
    /// Keys outside the specification, each with a domain before a slash. Runtimes pass over them.
    pub extra: BTreeMap<String, Value>,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name. Not always one of a Linux interface: the VPC CNI reports `dummy` and eleven digits.
    pub name: String,
    /// Its MAC address.
    pub mac: Option<MacAddr>,
    /// Its MTU in bytes (1.1.0).
    pub mtu: Option<u32>,
    /// The sandbox that it is in, a path for us; `None` for the host's.
    pub sandbox: Option<String>,
    /// A vhost-user socket (1.1.0).
    pub socket_path: Option<PathBuf>,
    /// The PCI address of the device behind it (1.1.0).
    pub pci_id: Option<String>,
}

impl Interface {
    /// An interface with a name and a MAC address.
    #[must_use]
    pub fn new(name: impl Into<String>, mac: MacAddr) -> Self {
        Self { name: name.into(), mac: Some(mac), mtu: None, sandbox: None, socket_path: None, pci_id: None }
    }
}

/// An address on an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpConfig {
    /// Index in [`AddResult::interfaces`].
    pub interface: Option<usize>,
    /// The address with the length of its prefix.
    pub address: IpNet,
    /// The gateway.
    pub gateway: Option<IpAddr>,
}

/// A route in the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The destination.
    pub dst: IpNet,
    /// The next hop; without one the runtime takes the gateway of the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// MTU in bytes (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The maximal segment size to announce, in bytes (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// The metric; lower comes first (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// The route table (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// The scope as in rtnetlink(7): 0 universe, 253 link (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl Route {
    /// A route to `dst` over `gw`.
    #[must_use]
    pub const fn new(dst: IpNet, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }

    fn basic(&self) -> Self {
        Self::new(self.dst, self.gw)
    }
}

/// What a `resolv.conf` should say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Name servers, best first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Search domains.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A result as it is on the wire; which fields are there depends on the version.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    #[serde(skip_serializing_if = "Option::is_none")]
    cni_version: Option<SpecVersion>,
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_empty")]
    interfaces: Vec<WireInterface>,
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_empty")]
    ips: Vec<WireIp>,
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_empty")]
    routes: Vec<Route>,
    #[serde(default, skip_serializing_if = "Dns::is_empty")]
    dns: Dns,
    #[serde(flatten)]
    extra: Map<String, Value>,
}

/// Go writes an empty list as null where the field has no `omitempty`.
fn null_is_empty<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireInterface {
    name: String,
    /// A string, because some plugins put other things than MAC addresses here (the VPC CNI a table id).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mac: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sandbox: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    socket_path: Option<PathBuf>,
    #[serde(rename = "pciID", default, skip_serializing_if = "Option::is_none")]
    pci_id: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct WireIp {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    interface: Option<usize>,
    address: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
}

impl AddResult {
    /// The result in the shape of `version`.
    #[must_use]
    pub fn to_value(&self, version: SpecVersion) -> Value {
        let wire = Wire {
            cni_version: Some(version),
            interfaces: self.interfaces.iter().map(|interface| wire_interface(interface, version)).collect(),
            ips: self.ips.iter().map(|ip| wire_ip(ip, version)).collect(),
            routes: self
                .routes
                .iter()
                .map(|r| if version.has_link_details() { r.clone() } else { r.basic() })
                .collect(),
            dns: self.dns.clone(),
            extra: self
                .extra
                .iter()
                .filter(|(key, _)| key.contains('/'))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect(),
        };
        // Plain structs with string keys cannot fail to become a value.
        serde_json::to_value(wire).unwrap_or(Value::Null)
    }

    /// Reads a result in the shape of its own `cniVersion`, or of `version` where it has none. A version that cannot
    /// say a field has it passed over.
    ///
    /// # Errors
    /// Any [`ResultError`].
    pub fn from_value(version: SpecVersion, value: &Value) -> Result<Self, ResultError> {
        let wire = Wire::deserialize(value).map_err(|source| ResultError::Shape { version, source })?;
        let version = wire.cni_version.unwrap_or(version);
        for (list, length) in
            [("interfaces", wire.interfaces.len()), ("ips", wire.ips.len()), ("routes", wire.routes.len())]
        {
            if length > LIST_LIMIT {
                return Err(ResultError::TooLong { list, length });
            }
        }
        let interfaces: Vec<_> =
            wire.interfaces.into_iter().map(|interface| own_interface(interface, version)).collect();
        for ip in &wire.ips {
            if let Some(index) = ip.interface.filter(|index| *index >= interfaces.len()) {
                return Err(ResultError::Index { address: ip.address, index, interfaces: interfaces.len() });
            }
        }
        let own_ip = |ip: WireIp| IpConfig { interface: ip.interface, address: ip.address, gateway: ip.gateway };
        Ok(Self {
            ips: wire.ips.into_iter().map(own_ip).collect(),
            routes: wire
                .routes
                .iter()
                .map(|r| if version.has_link_details() { r.clone() } else { r.basic() })
                .collect(),
            dns: wire.dns,
            extra: wire.extra.into_iter().filter(|(key, _)| key.contains('/')).collect(),
            interfaces,
        })
    }

    /// What is left of the result after a way through `version`.
    #[must_use]
    pub fn as_of(&self, version: SpecVersion) -> Self {
        let mut result = self.clone();
        result.extra.retain(|key, _| key.contains('/'));
        if !version.has_link_details() {
            for interface in &mut result.interfaces {
                (interface.mtu, interface.socket_path, interface.pci_id) = (None, None, None);
            }
            for route in &mut result.routes {
                *route = route.basic();
            }
        }
        result
    }
}

fn wire_interface(interface: &Interface, version: SpecVersion) -> WireInterface {
    let details = version.has_link_details();
    WireInterface {
        name: interface.name.clone(),
        mac: interface.mac.map(String::from),
        mtu: interface.mtu.filter(|_| details),
        sandbox: interface.sandbox.clone(),
        socket_path: interface.socket_path.clone().filter(|_| details),
        pci_id: interface.pci_id.clone().filter(|_| details),
    }
}

fn own_interface(interface: WireInterface, version: SpecVersion) -> Interface {
    let details = version.has_link_details();
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    Interface {
        name: interface.name,
        mac: interface.mac.and_then(|mac| mac.parse().ok()),
        mtu: interface.mtu.filter(|mtu| details && *mtu > 0),
        sandbox: filled(interface.sandbox),
        socket_path: interface.socket_path.filter(|path| details && !path.as_os_str().is_empty()),
        pci_id: filled(interface.pci_id).filter(|_| details),
    }
}

fn wire_ip(ip: &IpConfig, version: SpecVersion) -> WireIp {
    let family = if ip.address.addr().is_ipv4() { "4" } else { "6" };
    WireIp {
        version: version.has_ip_family().then(|| family.to_owned()),
        interface: ip.interface,
        address: ip.address,
        gateway: ip.gateway,
    }
}
