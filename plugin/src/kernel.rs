//! The kernel's side of an attachment with all its interfaces: made, taken away, looked at.
//!
//! A veth is known by its marks ([`sluice_contract::node::veth`]), never by its name alone, and so is the VLAN of a branch ENI.

mod attach;
mod detach;
mod differences;
mod uplink;

use sluice_contract::id::{Attachment, MacAddr};
use sluice_contract::node::nic;
use sluice_contract::node::veth::{self, End};
use sluice_hostnet::branch::is_vlan;
use sluice_hostnet::state::{Link, LinkKind};

pub(crate) use attach::attach;
pub(crate) use detach::{Traces, detach, marked};
pub(crate) use differences::differences;

/// Whether a link is the host's end of an attachment.
fn is_host_end_of(link: &Link, attachment: &Attachment) -> bool {
    link.kind == LinkKind::Veth
        && (link.mac == Some(veth::mac(End::Host, attachment))
            || link.alias.as_deref() == Some(veth::alias(attachment).as_str()))
}

/// Whether a link bears one of two marks of a host's end.
fn bears(link: &Link, mac: MacAddr, alias: &str) -> bool {
    link.mac == Some(mac) || link.alias.as_deref() == Some(alias)
}

/// Whether a link is the VLAN of an attachment's branch ENI.
fn is_uplink_of(link: &Link, attachment: &Attachment) -> bool {
    is_vlan(link) && link.alias.as_deref() == Some(veth::alias(attachment).as_str())
}

/// Whether two links, in namespaces of their own, are joined. The pod's end may have another MAC address by now: a
/// later plugin of the list may set it.
fn are_ends_of_one_veth(pod_end: &Link, host_end: &Link) -> bool {
    pod_end.peer == Some(host_end.index) && host_end.peer == Some(pod_end.index)
}

/// Whether a link is a pod's, of whichever pod: marked by us, or a veth into another namespace without any mark, as
/// the VPC CNI leaves them.
fn is_pods(link: &Link) -> bool {
    link.kind == LinkKind::Veth
        && match &link.alias {
            Some(alias) => veth::is_ours(alias),
            None => link.peer_netns.is_some(),
        }
}

/// Whether a pod's link may be what an earlier sandbox of the pod whose name it has left as its `index`-th interface. A name alone
/// does not say so: the second interface of `a` is called like the first of `a.1`.
fn is_earlier(link: &Link, index: u8) -> bool {
    match link.alias.as_deref().and_then(veth::attachment) {
        Some(marked) => is_pods(link) && nic::index(&marked.ifname) == index,
        // What bears no mark that can be read, as the VPC CNI leaves it, is taken for a first one.
        None => is_pods(link) && index == 0,
    }
}

fn mac_text(mac: Option<MacAddr>) -> String {
    mac.map_or_else(|| "none".to_owned(), |mac| mac.to_string())
}
