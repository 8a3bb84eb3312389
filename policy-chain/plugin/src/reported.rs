//! What `prevResult` says of a sandbox: its interfaces with their addresses, and the host's interfaces. Pure.
//!
//! Plugins differ in what they say. All that is taken from a result is here, so that the rest need not know whose it is:
//! - the VPC CNI puts a route table's number into `mac`, and adds an interface `dummy` + 11 digits whose `sandbox` is a
//!   device number (reference/cilium.md 1.6): it is in no sandbox of ours;
//! - Calico names the host's interface and none in the sandbox, and its addresses name no interface;
//! - bridge names the bridge beside the host's end.

use std::net::IpAddr;

use sluice_contract::cni::AddResult;
use sluice_contract::id::{IfName, InvalidId};

/// A sandbox, as a result has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reported {
    /// The sandbox's interfaces in their order, each with its addresses: at least the one that the chain is run for.
    pub(crate) interfaces: Vec<(IfName, Vec<IpAddr>)>,
    /// The names of the host's interfaces.
    pub(crate) hosts: Vec<String>,
}

impl Reported {
    /// What `result` says of the sandbox that `is_sandbox` knows by its path. `ifname` is the interface that the chain is
    /// run for: addresses that name no interface of the sandbox are on it.
    pub(crate) fn of(
        result: &AddResult,
        ifname: &IfName,
        is_sandbox: impl Fn(&str) -> bool,
    ) -> Result<Self, InvalidId> {
        let mut reported = Self { interfaces: Vec::new(), hosts: Vec::new() };
        // For each interface of the result, which of the sandbox's it is.
        let mut places = Vec::with_capacity(result.interfaces.len());
        for interface in &result.interfaces {
            let place = match &interface.sandbox {
                Some(sandbox) if is_sandbox(sandbox) => Some(reported.place_of(&IfName::new(&interface.name)?)),
                Some(_) => None,
                None => {
                    reported.hosts.push(interface.name.clone());
                    None
                }
            };
            places.push(place);
        }
        let main = reported.place_of(ifname);
        for ip in &result.ips {
            let place = ip.interface.and_then(|index| places.get(index).copied().flatten()).unwrap_or(main);
            if let Some((_, addresses)) = reported.interfaces.get_mut(place)
                && !addresses.contains(&ip.address.addr())
            {
                addresses.push(ip.address.addr());
            }
        }
        Ok(reported)
    }

    /// The place of an interface in the list, in which it is from now on.
    fn place_of(&mut self, name: &IfName) -> usize {
        self.interfaces.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
            self.interfaces.push((name.clone(), Vec::new()));
            self.interfaces.len().saturating_sub(1)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use sluice_contract::cni::{Interface, IpConfig, SpecVersion};

    const NETNS: &str = "/run/netns/b";

    fn reported(result: &Value) -> Reported {
        let result = AddResult::from_value(SpecVersion::V1_0_0, result).unwrap();
        Reported::of(&result, &IfName::new("eth0").unwrap(), |path| path == NETNS).unwrap()
    }

    fn expect(interfaces: &[(&str, &[&str])], hosts: &[&str]) -> Reported {
        let interface = |(name, ips): &(&str, &[&str])| {
            (IfName::new(name).unwrap(), ips.iter().map(|ip| ip.parse().unwrap()).collect())
        };
        Reported {
            interfaces: interfaces.iter().map(interface).collect(),
            hosts: hosts.iter().map(|&host| host.to_owned()).collect(),
        }
    }

    #[test]
    fn sluice_eni_and_ptp_name_one_pair() {
        let result = json!({
            "interfaces": [{"name": "eni1", "mac": "02:00:00:00:00:01"}, {"name": "eth0", "sandbox": NETNS}],
            "ips": [{"interface": 1, "address": "10.0.1.60/32"}, {"interface": 1, "address": "2001:db8::60/128"}],
        });
        assert_eq!(reported(&result), expect(&[("eth0", &["10.0.1.60", "2001:db8::60"])], &["eni1"]));
    }

    #[test]
    fn the_vpc_cni_puts_other_things_where_they_do_not_belong() {
        let result = json!({
            "cniVersion": "0.4.0",
            "interfaces": [
                {"name": "eni1"},
                {"name": "eth0", "mac": "2", "sandbox": NETNS},
                {"name": "eni2"},
                {"name": "eth1", "mac": "10100", "sandbox": NETNS},
                {"name": "dummy1a2b3c4d5e6", "mac": "0", "sandbox": "1"},
            ],
            "ips": [
                {"version": "4", "interface": 1, "address": "10.0.1.60/32", "gateway": "10.0.1.1"},
                {"version": "4", "interface": 3, "address": "10.0.2.60/32", "gateway": "10.0.2.1"},
            ],
        });
        let expected = expect(&[("eth0", &["10.0.1.60"]), ("eth1", &["10.0.2.60"])], &["eni1", "eni2"]);
        assert_eq!(reported(&result), expected);
    }

    #[test]
    fn what_names_no_interface_of_the_sandbox_is_on_the_one_that_the_chain_is_run_for() {
        let calico = json!({"interfaces": [{"name": "cali1"}], "ips": [{"address": "10.1.0.2/32"}]});
        assert_eq!(reported(&calico), expect(&[("eth0", &["10.1.0.2"])], &["cali1"]));
        let on_host = json!({"interfaces": [{"name": "cali1"}], "ips": [{"interface": 0, "address": "10.1.0.2/32"}]});
        assert_eq!(reported(&on_host), expect(&[("eth0", &["10.1.0.2"])], &["cali1"]));
        assert_eq!(reported(&json!({"ips": []})), expect(&[("eth0", &[])], &[]));
        let twice = json!({
            "interfaces": [{"name": "net1", "sandbox": NETNS}, {"name": "net1", "sandbox": NETNS}],
            "ips": [{"interface": 0, "address": "10.1.0.2/24"}, {"interface": 1, "address": "10.1.0.2/24"}],
        });
        assert_eq!(reported(&twice), expect(&[("net1", &["10.1.0.2"]), ("eth0", &[])], &[]));
    }

    fn any_interface() -> impl Strategy<Value = Interface> {
        let sandbox = prop_oneof![Just(None), Just(Some(NETNS.to_owned())), Just(Some("1".to_owned()))];
        ("eth[0-2]|eni1|dummy1", sandbox).prop_map(|(name, sandbox)| Interface {
            name,
            sandbox,
            mac: None,
            mtu: None,
            socket_path: None,
            pci_id: None,
        })
    }

    fn any_result() -> impl Strategy<Value = AddResult> {
        let ips = proptest::collection::vec((proptest::option::of(0usize..6), 0u8..4), 0..6);
        (proptest::collection::vec(any_interface(), 0..6), ips).prop_map(|(interfaces, ips)| {
            let ip = |(interface, last): (Option<usize>, u8)| {
                let address = ipnet::IpNet::new(IpAddr::from([10, 0, 0, last]), 24).unwrap();
                IpConfig { interface: interface.filter(|index| *index < interfaces.len()), address, gateway: None }
            };
            AddResult { ips: ips.into_iter().map(ip).collect(), interfaces: interfaces.clone(), ..AddResult::default() }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// No address and no interface of the sandbox is lost, none is made up, and each is there once.
        #[test]
        fn nothing_is_lost_or_made_up(result in any_result()) {
            let ifname = IfName::new("eth0").unwrap();
            let reported = Reported::of(&result, &ifname, |path| path == NETNS).unwrap();
            let in_sandbox = |i: &&Interface| i.sandbox.as_deref() == Some(NETNS);
            let mut names: BTreeSet<_> =
                result.interfaces.iter().filter(in_sandbox).map(|i| i.name.clone()).collect();
            names.insert("eth0".to_owned());
            let listed: Vec<_> = reported.interfaces.iter().map(|(name, _)| name.to_string()).collect();
            prop_assert_eq!(listed.len(), names.len());
            prop_assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), names);
            let given: BTreeSet<_> = result.ips.iter().map(|ip| ip.address.addr()).collect();
            let kept: BTreeSet<_> = reported.interfaces.iter().flat_map(|(_, ips)| ips.iter().copied()).collect();
            prop_assert_eq!(kept, given);
            for (_, ips) in &reported.interfaces {
                prop_assert_eq!(ips.iter().collect::<BTreeSet<_>>().len(), ips.len());
            }
            let hosts: Vec<_> =
                result.interfaces.iter().filter(|i| i.sandbox.is_none()).map(|i| i.name.clone()).collect();
            prop_assert_eq!(reported.hosts, hosts);
        }
    }

    #[test]
    fn an_interface_that_linux_cannot_have_is_refused() {
        let result = json!({"interfaces": [{"name": "a/b", "sandbox": NETNS}]});
        let result = AddResult::from_value(SpecVersion::V1_0_0, &result).unwrap();
        assert!(Reported::of(&result, &IfName::new("eth0").unwrap(), |_| true).is_err());
    }
}
