//! A scene: the VPCs, gateways, instances and Internet hosts to bring up, as YAML.
//!
//! ```yaml
//! time_scale: 0.1                       # factor on AWS's latencies; 1 unless given
//! vpcs:
//!   main:
//!     cidrs: [10.0.0.0/16]              # the first is the primary one
//!     ipv6_cidr: 3fff:0:0:100::/56      # nowhere but in the VPC
//!     internet_gateway: true
//!     subnets:
//!       public: {cidr: 10.0.1.0/24, zone: us-east-1a, routes: {0.0.0.0/0: internet-gateway}}
//!       private: {cidr: 10.0.2.0/24, ipv6_cidr: 3fff:0:0:101::/64, zone: us-east-1a, routes: {0.0.0.0/0: nat-gateway/nat}}
//!     nat_gateways: {nat: {subnet: public}}
//! peerings: {to-other: [main, other]}   # route: peering/to-other
//! instances:
//!   node-a: {type: m5.large, subnet: main/public, public_address: true}
//! internet_hosts: [198.51.100.10]
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Deserialize;

/// The largest scene file that is read, in bytes.
const MAX_FILE: u64 = 1024 * 1024;
/// The longest name: it becomes a directory and a host name (RFC 1123, one label).
const MAX_NAME: usize = 63;

/// What to bring up.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scene {
    /// Factor on all of AWS's latencies and lags; 0 is at once.
    #[serde(default = "one")]
    pub time_scale: f64,
    /// Whether EC2 throttles calls as AWS does.
    #[serde(default = "yes")]
    pub throttle: bool,
    /// The seed of ids, addresses and latencies.
    #[serde(default = "seed")]
    pub seed: u64,
    /// The VPCs by name.
    pub vpcs: BTreeMap<String, VpcScene>,
    /// Peering connections by name: the two VPCs.
    #[serde(default)]
    pub peerings: BTreeMap<String, (String, String)>,
    /// The instances by name, which is their host name too.
    #[serde(default)]
    pub instances: BTreeMap<String, InstanceScene>,
    /// Addresses of hosts in the Internet; each serves an echo on [`crate::probe`].
    #[serde(default)]
    pub internet_hosts: BTreeSet<IpAddr>,
}

const fn one() -> f64 {
    1.0
}

const fn yes() -> bool {
    true
}

const fn seed() -> u64 {
    1
}

/// A VPC.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VpcScene {
    /// Its CIDRs, the primary one first.
    pub cidrs: Vec<Ipv4Net>,
    /// Its IPv6 CIDR, a /56.
    #[serde(default)]
    pub ipv6_cidr: Option<Ipv6Net>,
    /// Whether its packets obey security groups, as on AWS. ENIs without groups of their own have the default one, which lets
    /// all out and lets only its own members in.
    #[serde(default)]
    pub enforce_security_groups: bool,
    /// Whether it has an Internet gateway.
    #[serde(default)]
    pub internet_gateway: bool,
    /// Its subnets by name.
    pub subnets: BTreeMap<String, SubnetScene>,
    /// Its NAT gateways by name.
    #[serde(default)]
    pub nat_gateways: BTreeMap<String, NatGatewayScene>,
}

/// A subnet.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubnetScene {
    /// Its CIDR.
    pub cidr: Ipv4Net,
    /// Its IPv6 CIDR, a /64 of the VPC's. Its instances get an address of it when they are launched.
    #[serde(default)]
    pub ipv6_cidr: Option<Ipv6Net>,
    /// Its availability zone.
    #[serde(default = "zone")]
    pub zone: String,
    /// Routes beside the VPC's own.
    #[serde(default)]
    pub routes: BTreeMap<IpNet, Via>,
    /// Its tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

fn zone() -> String {
    "us-east-1a".to_owned()
}

/// A NAT gateway.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NatGatewayScene {
    /// The subnet of its VPC that it stands in.
    pub subnet: String,
}

/// An instance.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceScene {
    /// Its type, e.g. `m5.large`.
    #[serde(rename = "type")]
    pub instance_type: String,
    /// `VPC/SUBNET`.
    pub subnet: SubnetRef,
    /// Its primary private address; any of the subnet's unless given.
    #[serde(default)]
    pub address: Option<Ipv4Addr>,
    /// Whether its primary address has a public one.
    #[serde(default)]
    pub public_address: bool,
    /// Its tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// A subnet by the name of its VPC and its own: `main/public`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct SubnetRef {
    /// The VPC.
    pub vpc: String,
    /// The subnet.
    pub subnet: String,
}

impl fmt::Display for SubnetRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.vpc, self.subnet)
    }
}

impl TryFrom<String> for SubnetRef {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        match text.split_once('/') {
            Some((vpc, subnet)) if !vpc.is_empty() && !subnet.is_empty() => {
                Ok(Self { vpc: vpc.into(), subnet: subnet.into() })
            }
            _ => Err(format!("{text:?} is not VPC/SUBNET")),
        }
    }
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Via {
    /// `internet-gateway`.
    InternetGateway,
    /// `nat-gateway/NAME`.
    NatGateway(String),
    /// `peering/NAME`.
    Peering(String),
}

impl TryFrom<String> for Via {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        match text.split_once('/') {
            None if text == "internet-gateway" => Ok(Self::InternetGateway),
            Some(("nat-gateway", name)) => Ok(Self::NatGateway(name.into())),
            Some(("peering", name)) => Ok(Self::Peering(name.into())),
            _ => Err(format!("{text:?} is none of internet-gateway, nat-gateway/NAME, peering/NAME")),
        }
    }
}

/// One thing that is wrong with a scene.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// Where, e.g. `instances.node-a.subnet`.
    pub at: String,
    /// What.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.what)
    }
}

/// Why a scene cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SceneError {
    /// The file cannot be read.
    #[error("the scene {path} cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// It is no YAML, or has fields that scenes do not have.
    #[error("the scene cannot be parsed: {reason}")]
    Parse {
        /// Where and why.
        reason: String,
    },
    /// It contradicts itself. Every fault is named.
    #[error("the scene has {} fault(s):{}", .0.len(), .0.iter().map(|fault| format!("\n  {fault}")).collect::<String>())]
    Invalid(Vec<Fault>),
}

impl FromStr for Scene {
    type Err = SceneError;

    fn from_str(text: &str) -> Result<Self, SceneError> {
        let scene: Self =
            serde_saphyr::from_str(text).map_err(|error| SceneError::Parse { reason: error.to_string() })?;
        let faults = scene.faults();
        if faults.is_empty() { Ok(scene) } else { Err(SceneError::Invalid(faults)) }
    }
}

impl Scene {
    /// Reads and checks a scene.
    ///
    /// # Errors
    /// [`SceneError`], with every fault at once.
    pub fn read(path: &Path) -> Result<Self, SceneError> {
        use std::io::Read as _;
        let read = |source| SceneError::Read { path: path.into(), source };
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(read)?;
        file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(read)?;
        if text.len() as u64 > MAX_FILE {
            return Err(read(std::io::ErrorKind::FileTooLarge.into()));
        }
        text.parse()
    }

    /// Everything that is wrong with the scene; empty when it can be brought up.
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        let mut check = Check::default();
        if !(self.time_scale.is_finite() && (0.0..=1000.0).contains(&self.time_scale)) {
            check.fault("time_scale", format!("{} is not between 0 and 1000", self.time_scale));
        }
        if self.vpcs.is_empty() {
            check.fault("vpcs", "there is none".into());
        }
        for (name, vpc) in &self.vpcs {
            check.vpc(self, name, vpc);
        }
        for (name, (one, other)) in &self.peerings {
            let at = format!("peerings.{name}");
            check.name(&at, name);
            for vpc in [one, other] {
                if !self.vpcs.contains_key(vpc) {
                    check.fault(&at, format!("there is no VPC {vpc:?}"));
                }
            }
            if let (Some(a), Some(b)) = (self.vpcs.get(one), self.vpcs.get(other))
                && (one == other || a.cidrs.iter().any(|x| b.cidrs.iter().any(|y| overlap(*x, *y))))
            {
                check.fault(&at, "the CIDRs of its VPCs overlap".into());
            }
        }
        for (name, instance) in &self.instances {
            check.instance(self, name, instance);
        }
        for host in &self.internet_hosts {
            let private = match host {
                IpAddr::V4(host) => host.is_private() || host.is_link_local(),
                IpAddr::V6(host) => host.is_unique_local() || host.is_unicast_link_local(),
            };
            if private || host.is_loopback() || host.is_multicast() {
                check.fault("internet_hosts", format!("{host} is no public address"));
            }
        }
        check.0
    }
}

fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

#[derive(Default)]
struct Check(Vec<Fault>);

impl Check {
    fn fault(&mut self, at: &str, what: String) {
        self.0.push(Fault { at: at.into(), what });
    }

    fn name(&mut self, at: &str, name: &str) {
        let valid = !name.is_empty()
            && name.len() <= MAX_NAME
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !name.starts_with('-')
            && !name.ends_with('-');
        if !valid {
            self.fault(at, format!("{name:?} is no name: lower-case letters, digits and '-', at most {MAX_NAME}"));
        }
    }

    fn vpc(&mut self, scene: &Scene, name: &str, vpc: &VpcScene) {
        let at = format!("vpcs.{name}");
        self.name(&at, name);
        if vpc.cidrs.is_empty() {
            self.fault(&format!("{at}.cidrs"), "there is none".into());
        }
        for cidr in &vpc.cidrs {
            if !(16..=28).contains(&cidr.prefix_len()) || cidr.trunc() != *cidr {
                self.fault(&format!("{at}.cidrs"), format!("{cidr} is no block of /16 to /28"));
            }
        }
        if let Some(cidr) = vpc.ipv6_cidr.filter(|cidr| cidr.prefix_len() != 56 || cidr.trunc() != *cidr) {
            self.fault(&format!("{at}.ipv6_cidr"), format!("{cidr} is no /56"));
        }
        for (index, a) in vpc.cidrs.iter().enumerate() {
            if vpc.cidrs.iter().skip(index + 1).any(|b| overlap(*a, *b)) {
                self.fault(&format!("{at}.cidrs"), format!("{a} overlaps another"));
            }
        }
        for (subnet_name, subnet) in &vpc.subnets {
            let at = format!("{at}.subnets.{subnet_name}");
            self.name(&at, subnet_name);
            if !(16..=28).contains(&subnet.cidr.prefix_len()) || !vpc.cidrs.iter().any(|c| c.contains(&subnet.cidr)) {
                self.fault(&format!("{at}.cidr"), format!("{} is no part of the VPC of /16 to /28", subnet.cidr));
            }
            let others = vpc.subnets.iter().filter(|(other, _)| *other < subnet_name);
            for (other, _) in others.filter(|(_, other)| overlap(other.cidr, subnet.cidr)) {
                self.fault(&format!("{at}.cidr"), format!("{} overlaps that of {other}", subnet.cidr));
            }
            let inside = |cidr: &Ipv6Net| vpc.ipv6_cidr.is_some_and(|outer| outer.contains(cidr));
            if let Some(cidr) = subnet.ipv6_cidr.filter(|cidr| cidr.prefix_len() != 64 || !inside(cidr)) {
                self.fault(&format!("{at}.ipv6_cidr"), format!("{cidr} is no /64 of the VPC's IPv6 CIDR"));
            }
            for (to, via) in &subnet.routes {
                if matches!((to, via), (IpNet::V6(_), Via::NatGateway(_))) {
                    self.fault(&format!("{at}.routes.{to}"), "a NAT gateway translates IPv4 only".into());
                }
                if let Some(what) = missing(scene, name, vpc, via) {
                    self.fault(&format!("{at}.routes.{to}"), what);
                }
            }
        }
        for (nat, gateway) in &vpc.nat_gateways {
            let at = format!("{at}.nat_gateways.{nat}");
            self.name(&at, nat);
            if !vpc.subnets.contains_key(&gateway.subnet) {
                self.fault(&at, format!("the VPC has no subnet {:?}", gateway.subnet));
            }
            if !vpc.internet_gateway {
                self.fault(&at, "the VPC has no Internet gateway".into());
            }
        }
    }

    fn instance(&mut self, scene: &Scene, name: &str, instance: &InstanceScene) {
        let at = format!("instances.{name}");
        self.name(&at, name);
        let found = scene.vpcs.get(&instance.subnet.vpc).and_then(|vpc| vpc.subnets.get(&instance.subnet.subnet));
        match (found, instance.address) {
            (None, _) => self.fault(&format!("{at}.subnet"), format!("there is no subnet {}", instance.subnet)),
            (Some(subnet), Some(address)) if !subnet.cidr.contains(&address) => {
                self.fault(&format!("{at}.address"), format!("{address} is not in {}", subnet.cidr));
            }
            _ => {}
        }
        let twins = scene.instances.iter().filter(|(other, _)| other.as_str() < name);
        if crate::limits::instance_type(&instance.instance_type).is_none() {
            let what = format!("{:?} is no instance type that vpcsim knows", instance.instance_type);
            self.fault(&format!("{at}.type"), what);
        }
        for (other, twin) in twins {
            if instance.address.is_some() && twin.address == instance.address && twin.subnet == instance.subnet {
                self.fault(&format!("{at}.address"), format!("{other} has it too"));
            }
        }
    }
}

/// What a route of `vpc` names and is not there.
fn missing(scene: &Scene, name: &str, vpc: &VpcScene, via: &Via) -> Option<String> {
    match via {
        Via::InternetGateway if !vpc.internet_gateway => Some("the VPC has no Internet gateway".into()),
        Via::NatGateway(nat) if !vpc.nat_gateways.contains_key(nat) => {
            Some(format!("the VPC has no NAT gateway {nat:?}"))
        }
        Via::Peering(peering) => match scene.peerings.get(peering) {
            Some((one, other)) if one == name || other == name => None,
            Some(_) => Some(format!("peering {peering:?} is between other VPCs")),
            None => Some(format!("there is no peering {peering:?}")),
        },
        Via::InternetGateway | Via::NatGateway(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "
vpcs:
  main:
    cidrs: [10.0.0.0/16, 100.64.0.0/16]
    internet_gateway: true
    subnets:
      public: {cidr: 10.0.1.0/24, routes: {0.0.0.0/0: internet-gateway, 10.1.0.0/16: peering/pair}}
      private: {cidr: 100.64.1.0/24, zone: us-east-1b, routes: {0.0.0.0/0: nat-gateway/nat}}
    nat_gateways: {nat: {subnet: public}}
  other:
    cidrs: [10.1.0.0/16]
    subnets: {only: {cidr: 10.1.1.0/24}}
peerings: {pair: [main, other]}
instances:
  node-a: {type: m5.large, subnet: main/public, public_address: true, address: 10.0.1.10}
internet_hosts: [198.51.100.10]
";

    #[test]
    fn a_scene_is_read() {
        let scene: Scene = GOOD.parse().unwrap();
        assert_eq!(scene.vpcs["main"].cidrs.len(), 2);
        assert_eq!(scene.vpcs["main"].subnets["private"].routes.values().next(), Some(&Via::NatGateway("nat".into())));
        assert_eq!(scene.instances["node-a"].subnet.to_string(), "main/public");
        assert!((scene.time_scale - 1.0).abs() < f64::EPSILON && scene.throttle);
    }

    #[test]
    fn the_scene_that_is_shipped_is_good() {
        let scene: Scene = include_str!("../scenes/two-nodes.yaml").parse().unwrap();
        assert_eq!(scene.instances.len(), 4);
    }

    #[test]
    fn what_scenes_do_not_have_is_refused() {
        for (from, to) in [
            ("vpcs:", "vpc:"),
            ("type: m5.large", "kind: m5.large"),
            ("main/public, public", "public, public"),
            ("internet-gateway", "igw"),
            ("10.0.1.0/24", "10.0.1.0/33"),
        ] {
            let error = GOOD.replacen(from, to, 1).parse::<Scene>().unwrap_err();
            assert!(matches!(error, SceneError::Parse { .. }), "{to}: {error}");
        }
    }

    #[test]
    fn every_fault_is_reported_at_once() {
        let bad = GOOD
            .replace("100.64.1.0/24", "10.2.1.0/24")
            .replace("{subnet: public}", "{subnet: nowhere}")
            .replace("[main, other]", "[main, nobody]")
            .replace("m5.large", "m5.tiny")
            .replace("10.0.1.10}", "10.0.9.10}")
            .replace("198.51.100.10", "10.9.9.9");
        let Err(SceneError::Invalid(faults)) = bad.parse::<Scene>() else { panic!("it was taken") };
        let places: Vec<&str> = faults.iter().map(|fault| fault.at.as_str()).collect();
        assert_eq!(
            places,
            [
                "vpcs.main.subnets.private.cidr",
                "vpcs.main.nat_gateways.nat",
                "peerings.pair",
                "instances.node-a.address",
                "instances.node-a.type",
                "internet_hosts"
            ]
        );
    }
}

#[cfg(test)]
mod fuzz;
