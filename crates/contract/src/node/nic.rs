//! Pods with an interface on each network card of their node (VPC CNI's `ENABLE_MULTI_NIC`).
//!
//! Such a pod is one attachment for its runtime, by the name of its first interface. For us each interface is an attachment of
//! its own, which differs in the interface's name alone: it has one address, one veth and one ENI, and is found and taken away
//! like any other. Interfaces are counted along the network cards that are used, from 0.

use super::veth::POD_IFNAME;
use crate::id::{Attachment, IfName};

/// The annotation of a pod that asks for it; containerd hands it on as the capability `io.kubernetes.cri.pod-annotations`.
pub const ANNOTATION: &str = "k8s.amazonaws.com/nicConfig";
/// The annotation's value.
pub const EVERY_CARD: &str = "multi-nic-attachment";
/// The most interfaces of one pod. No instance type has more than 32 network cards.
pub const INTERFACES_MAX: u8 = 64;
/// How the names of further interfaces begin; their number follows.
const FURTHER: &str = "mNicIf";

/// What the `index`-th interface of a pod is called: as the runtime says for the first, and after VPC CNI for the others. None
/// where there is no such interface.
#[must_use]
pub fn ifname(first: &IfName, index: u8) -> Option<IfName> {
    match index {
        0 => Some(first.clone()),
        1..INTERFACES_MAX => IfName::new(format!("{FURTHER}{index}")).ok(),
        _ => None,
    }
}

/// Which of a pod's interfaces this one is; 0 for every name that is not one of a further interface.
#[must_use]
pub fn index(ifname: &IfName) -> u8 {
    let number = ifname.as_str().strip_prefix(FURTHER).filter(|digits| !digits.starts_with(['0', '+']));
    number.and_then(|digits| digits.parse().ok()).filter(|index| (1..INTERFACES_MAX).contains(index)).unwrap_or(0)
}

/// The attachment of the `index`-th interface of the pod whose first is `first`.
#[must_use]
pub fn attachment(first: &Attachment, index: u8) -> Option<Attachment> {
    let ifname = ifname(&first.ifname, index)?;
    Some(Attachment { ifname, ..first.clone() })
}

/// The attachment that the runtime knows: that of the pod's first interface.
#[must_use]
pub fn first(attachment: &Attachment) -> Attachment {
    match (index(&attachment.ifname), IfName::new(POD_IFNAME)) {
        (1.., Ok(ifname)) => Attachment { ifname, ..attachment.clone() },
        _ => attachment.clone(),
    }
}

/// The attachments of further interfaces that a pod may have beside `first`; none for what is not a pod's first interface.
pub fn further(first: &Attachment) -> impl Iterator<Item = Attachment> {
    let most = if has_further(first) { INTERFACES_MAX } else { 1 };
    (1..most).filter_map(|index| attachment(first, index))
}

/// Whether an attachment may have further interfaces: only a Kubernetes pod's own does, not that of another network.
#[must_use]
pub fn has_further(first: &Attachment) -> bool {
    first.ifname.as_str() == POD_IFNAME
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{ContainerId, NetworkName};

    fn named(ifname: &str) -> Attachment {
        Attachment {
            container: ContainerId::new("abc").unwrap(),
            ifname: IfName::new(ifname).unwrap(),
            network: NetworkName::new("sluice").unwrap(),
        }
    }

    #[test]
    fn interfaces_are_named_as_by_the_vpc_cni() {
        let names: Vec<String> =
            (0..3).map(|index| attachment(&named("eth0"), index).unwrap().ifname.to_string()).collect();
        assert_eq!(names, ["eth0", "mNicIf1", "mNicIf2"]);
        assert_eq!(attachment(&named("eth0"), INTERFACES_MAX), None);
        assert!(attachment(&named("eth0"), INTERFACES_MAX - 1).is_some());
    }

    #[test]
    fn a_further_interface_leads_to_the_first() {
        for further in further(&named("eth0")) {
            assert_eq!(first(&further), named("eth0"));
            assert_eq!(attachment(&named("eth0"), index(&further.ifname)), Some(further));
        }
        assert_eq!(further(&named("eth0")).count(), usize::from(INTERFACES_MAX) - 1);
        for other in ["net1", "mNicIf", "mNicIf0", "mNicIf01", "mNicIf+1", "mNicIf64", "mNicIf1x", "xmNicIf1"] {
            assert_eq!(first(&named(other)), named(other), "{other}");
            assert_eq!(further(&named(other)).count(), 0, "{other}");
        }
    }
}
