//! How a pod's veth tells whose it is.
//!
//! The name of the host's end comes from the pod's name, so that a pod that replaces another of the same name takes
//! the same interface name, and a name alone proves nothing. Two things do: the MAC addresses, which are made from the
//! attachment and set in the same step that makes the veth, and the alias of the host's end (`IFLA_IFALIAS`), which is
//! set a moment later and can be read back, as ipamd does when it has lost its ledger.

use sha1::{Digest, Sha1};

use super::hex;
use crate::id::{Attachment, ContainerId, IfName, InvalidId, MacAddr, NetworkName, PodRef};

/// How every alias starts.
const MARK: &str = "sluice ";
/// The longest alias that Linux takes, in bytes (`IFALIASZ` less the final zero).
const ALIAS_LIMIT: usize = 255;
/// The interface that a Kubernetes pod has; others are further attachments of the same pod.
pub const POD_IFNAME: &str = "eth0";

/// One end of a pod's veth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// The one on the host.
    Host,
    /// The one in the pod.
    Pod,
}

fn digest(role: &str, attachment: &Attachment) -> impl AsRef<[u8]> {
    let mut hash = Sha1::new();
    for part in [role, attachment.container.as_str(), attachment.ifname.as_str(), attachment.network.as_str()] {
        hash.update(part.as_bytes());
        // No id has a NUL in it, so that no two attachments are the same bytes.
        hash.update([0]);
    }
    hash.finalize()
}

/// The MAC address of one end: locally administered, the same each time.
#[must_use]
pub fn mac(end: End, attachment: &Attachment) -> MacAddr {
    let role = match end {
        End::Host => "host",
        End::Pod => "pod",
    };
    let mut mac = [0; 6];
    for (byte, hashed) in mac.iter_mut().zip(digest(role, attachment).as_ref()) {
        *byte = *hashed;
    }
    // Locally administered, and not a group (IEEE 802, section 8.2).
    mac[0] = (mac[0] | 2) & 0xfe;
    MacAddr(mac)
}

/// The alias of the host's end: `sluice CONTAINER/IFNAME@NETWORK`, or a hash where that is too long for an alias.
#[must_use]
pub fn alias(attachment: &Attachment) -> String {
    let alias = format!("{MARK}{attachment}");
    if alias.len() <= ALIAS_LIMIT { alias } else { format!("{MARK}#{}", hex(digest("alias", attachment).as_ref())) }
}

/// Whether an alias is one of ours, whichever attachment it names.
#[must_use]
pub fn is_ours(alias: &str) -> bool {
    alias.starts_with(MARK)
}

/// The attachment that an alias names; none for a hash, and for what is not ours.
#[must_use]
pub fn attachment(alias: &str) -> Option<Attachment> {
    let (container, rest) = alias.strip_prefix(MARK)?.split_once('/')?;
    // An interface's name may have an '@', a network's may not.
    let (ifname, network) = rest.rsplit_once('@')?;
    Some(Attachment {
        container: ContainerId::new(container).ok()?,
        ifname: IfName::new(ifname).ok()?,
        network: NetworkName::new(network).ok()?,
    })
}

/// The name of the host's end. Those of a Kubernetes pod's interfaces are the VPC CNI's. Where there is no pod, and for further
/// attachments of one pod, the sandbox and the interface are hashed too: two of them may live at once.
///
/// # Errors
/// When `prefix` is longer than the four characters that `IFNAMSIZ` leaves beside the hash.
pub fn host_name(prefix: &str, pod: &PodRef, attachment: &Attachment) -> Result<IfName, InvalidId> {
    let index = super::nic::index(&attachment.ifname);
    if !pod.name.is_empty() && (index > 0 || attachment.ifname.as_str() == POD_IFNAME) {
        return super::host_veth(prefix, pod, index);
    }
    let name = format!("{}.{}.{}", pod.name, attachment.container, attachment.ifname);
    super::host_veth(prefix, &PodRef { namespace: pod.namespace.clone(), name, uid: None }, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(container: &str, ifname: &str, network: &str) -> Attachment {
        Attachment {
            container: ContainerId::new(container).unwrap(),
            ifname: IfName::new(ifname).unwrap(),
            network: NetworkName::new(network).unwrap(),
        }
    }

    #[test]
    fn an_alias_names_its_attachment() {
        for named in [of("abc", "eth0", "sluice"), of("a.b-c_d", "e@th", "n"), of(&"c".repeat(200), "eth0", "sluice")] {
            assert_eq!(attachment(&alias(&named)).as_ref(), Some(&named), "{named}");
        }
        for foreign in ["", "sluice", "sluice ", "sluice a", "sluice a/b", "uplink", "sluice ../eth0@n"] {
            assert_eq!(attachment(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn an_alias_fits_and_tells_long_attachments_apart() {
        let long = |network: &str| alias(&of(&"c".repeat(253), "eth0", network));
        assert!(long("n").len() <= ALIAS_LIMIT);
        assert_ne!(long("n"), long("m"));
        assert!(is_ours(&long("n")));
        assert_eq!(attachment(&long("n")), None);
    }

    #[test]
    fn macs_are_local_unicast_and_differ() {
        let (a, b) = (of("abc", "eth0", "sluice"), of("abd", "eth0", "sluice"));
        let macs = [mac(End::Host, &a), mac(End::Pod, &a), mac(End::Host, &b), mac(End::Pod, &b)];
        for (at, one) in macs.iter().enumerate() {
            assert_eq!(one.0[0] & 3, 2, "{one}");
            assert!(!macs[..at].contains(one), "{one}");
        }
        assert_eq!(mac(End::Host, &a), macs[0]);
    }

    #[test]
    fn only_the_interface_of_a_kubernetes_pod_is_named_by_the_pod_alone() {
        let pod = PodRef { namespace: "default".into(), name: "sample-pod".into(), uid: None };
        let name = |pod: &PodRef, container: &str, ifname: &str| {
            host_name("eni", pod, &of(container, ifname, "sluice")).unwrap().to_string()
        };
        assert_eq!(name(&pod, "abc", "eth0"), "enicc21c2d7785");
        assert_eq!(name(&pod, "abd", "eth0"), "enicc21c2d7785");
        assert_ne!(name(&pod, "abc", "net1"), "enicc21c2d7785");
        assert_eq!(name(&pod, "abc", "mNicIf1"), "enia0b7655f3c9", "its second interface");
        let none = PodRef::default();
        assert_ne!(name(&none, "abc", "eth0"), name(&none, "abd", "eth0"));
        assert_eq!(name(&none, "abc", "eth0").len(), 14);
    }
}
