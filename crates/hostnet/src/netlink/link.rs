//! Links one at a time, without dumps: what a plugin needs for a pod.

use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use nix::errno::Errno;
use rtnetlink::{LinkUnspec, LinkVeth, LinkVlan};
use sluice_contract::id::{IfName, MacAddr, VlanId};

use super::encode::{link_named, link_numbered, links_in, set_link};
use super::{Netlink, NetlinkError, Request, decode_link};
use crate::netns::Namespace;
use crate::state::Link;

/// Why something could not be done with a link.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} the link {link}")]
pub struct LinkError {
    /// What was to be done.
    pub action: &'static str,
    /// The link's name, or `#` and its number.
    pub link: String,
    /// The kernel's answer.
    #[source]
    pub source: NetlinkError,
}

impl LinkError {
    /// The kernel's error number, if it is the kernel that refused: `EEXIST` for a name that is taken.
    #[must_use]
    pub const fn errno(&self) -> Option<Errno> {
        self.source.errno()
    }
}

/// A veth pair to be made: one end in the socket's namespace, the other placed straight into a second one.
#[derive(Debug, Clone, Copy)]
pub struct VethSpec<'a> {
    /// The near end's name.
    pub name: &'a IfName,
    /// The near end's Ethernet address; none lets the kernel choose.
    pub mac: Option<MacAddr>,
    /// Whether the near end is up at once.
    pub up: bool,
    /// The far end's name. It is down: the kernel refuses to open it before the pair is joined (`veth_open`), and
    /// sysctls that must hold from its first packet come before that anyway.
    pub peer_name: &'a IfName,
    /// The far end's Ethernet address.
    pub peer_mac: Option<MacAddr>,
    /// Where the far end goes; none leaves it beside the near one.
    pub peer_namespace: Option<&'a Namespace>,
    /// The MTU of both ends, in bytes.
    pub mtu: u32,
}

impl VethSpec<'_> {
    fn message(&self) -> LinkMessage {
        let mut peer = LinkUnspec::new_with_name(self.peer_name.as_str()).mtu(self.mtu);
        if let Some(MacAddr(mac)) = self.peer_mac {
            peer = peer.address(mac.to_vec());
        }
        if let Some(namespace) = self.peer_namespace {
            peer = peer.append_extra_attribute(LinkAttribute::NetNsFd(namespace.as_fd().as_raw_fd()));
        }
        let mut near = LinkVeth::new(self.name.as_str(), self.peer_name.as_str())
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())))
            .mtu(self.mtu);
        if let Some(MacAddr(mac)) = self.mac {
            near = near.address(mac.to_vec());
        }
        if self.up { near.up() } else { near }.build()
    }
}

/// A VLAN to be made on a link (IEEE 802.1Q). It is down: what must hold from its first packet comes before.
#[derive(Debug, Clone, Copy)]
pub struct VlanSpec<'a> {
    /// Its name.
    pub name: &'a IfName,
    /// The number of the link that it is on.
    pub parent: u32,
    /// The VLAN.
    pub vlan: VlanId,
    /// Its Ethernet address, which need not be the parent's.
    pub mac: MacAddr,
    /// Its MTU in bytes; no more than the parent's.
    pub mtu: u32,
}

impl VlanSpec<'_> {
    fn message(&self) -> LinkMessage {
        let MacAddr(mac) = self.mac;
        LinkVlan::new(self.name.as_str(), self.parent, self.vlan.get()).mtu(self.mtu).address(mac.to_vec()).build()
    }

    pub(crate) fn request(&self) -> Request {
        Request::change(RouteNetlinkMessage::NewLink(self.message()), NLM_F_CREATE | NLM_F_EXCL)
    }
}

/// The request that deletes a link, by its number.
pub(crate) fn delete_request(index: u32) -> Request {
    Request::change(RouteNetlinkMessage::DelLink(LinkUnspec::new_with_index(index).build()), 0)
}

impl Netlink {
    /// Makes a VLAN, and gives it.
    ///
    /// # Errors
    /// [`LinkError`]; [`LinkError::errno`] is `EOPNOTSUPP` where the kernel has no VLANs, and `EEXIST` when the name is taken, or
    /// the VLAN on that link.
    pub async fn create_vlan(&self, spec: &VlanSpec<'_>) -> Result<Link, LinkError> {
        let failed = |source| LinkError { action: "create", link: spec.name.to_string(), source };
        self.create(spec.request(), spec.name).await.map_err(failed)
    }

    /// Makes a veth pair in one request, so that nothing is ever moved between namespaces, and gives the near end:
    /// its number, and in [`Link::peer`] that of the far end.
    ///
    /// # Errors
    /// [`LinkError`]; [`LinkError::errno`] is `EEXIST` when one of the names is taken, and then nothing was made.
    pub async fn create_veth(&self, spec: &VethSpec<'_>) -> Result<Link, LinkError> {
        let action = "create";
        let failed = |source| LinkError { action, link: format!("{} - {}", spec.name, spec.peer_name), source };
        let create = Request::change(RouteNetlinkMessage::NewLink(spec.message()), NLM_F_CREATE | NLM_F_EXCL);
        self.create(create, spec.name).await.map_err(failed)
    }

    /// Makes a link and looks at it, in one datagram.
    async fn create(&self, request: Request, name: &IfName) -> Result<Link, NetlinkError> {
        let find = Request::get(RouteNetlinkMessage::GetLink(link_named(name)));
        let mut answers = self.batch(vec![request, find]).await.into_iter();
        let (made, found) = (answers.next(), answers.next());
        made.unwrap_or(Err(NetlinkError::Closed))?;
        match found.unwrap_or(Err(NetlinkError::Closed))? {
            Some(RouteNetlinkMessage::NewLink(message)) => decode_link(&message),
            _ => None,
        }
        .ok_or(NetlinkError::Unexpected)
    }

    /// The link of a name; none if there is no such link.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn link_by_name(&self, name: &IfName) -> Result<Option<Link>, LinkError> {
        self.find(link_named(name)).await.map_err(|source| LinkError { action: "find", link: name.to_string(), source })
    }

    /// The link of a number; none if there is no such link.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn link_by_index(&self, index: u32) -> Result<Option<Link>, LinkError> {
        self.find(link_numbered(index)).await.map_err(|source| LinkError {
            action: "find",
            link: format!("#{index}"),
            source,
        })
    }

    /// Links by their names, many in one datagram; those that are not there are left out.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn links_by_name(&self, names: &[IfName]) -> Result<Vec<Link>, LinkError> {
        let mut links = Vec::with_capacity(names.len());
        for names in names.chunks(super::MAX_LINK_BATCH) {
            let requests =
                names.iter().map(|name| Request::get(RouteNetlinkMessage::GetLink(link_named(name)))).collect();
            for (name, answer) in names.iter().zip(self.batch(requests).await) {
                let found = found(answer.and_then(|answer| answer.ok_or(NetlinkError::Unexpected)))
                    .map_err(|source| LinkError { action: "find", link: name.to_string(), source })?;
                links.extend(found);
            }
        }
        Ok(links)
    }

    /// Every link, without statistics. A dump: not for the path of an ADD.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn links(&self) -> Result<Vec<Link>, LinkError> {
        self.list(link_numbered(0)).await
    }

    /// Every link of another namespace, which this socket's namespace knows by a number ([`Self::number_of`]); nobody has
    /// to enter it for that. [`Link::peer_netns`] is by the numbers of this socket's namespace, which then has one for
    /// itself, too.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn links_in(&self, number: i32) -> Result<Vec<Link>, LinkError> {
        self.list(links_in(number)).await
    }

    /// Switches a link on or off, and sets its MTU in bytes.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn set_link(&self, index: u32, up: Option<bool>, mtu: Option<u32>) -> Result<(), LinkError> {
        self.change_link("set", index, set_link(index, up, mtu)).await
    }

    /// Writes a free text to a link, which `ip link` shows as its alias; at most 255 bytes.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn set_alias(&self, index: u32, alias: &str) -> Result<(), LinkError> {
        self.change_link("name", index, LinkUnspec::new_with_index(index).alias(alias).build()).await
    }

    /// Gives a link another name. It must be down on kernels before 6.2.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn rename_link(&self, index: u32, name: &IfName) -> Result<(), LinkError> {
        self.change_link("rename", index, LinkUnspec::new_with_index(index).name(name.as_str()).build()).await
    }

    /// Moves a link to another namespace, where it keeps its name and address and is down.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn move_link(&self, index: u32, to: &Namespace) -> Result<(), LinkError> {
        let message = LinkUnspec::new_with_index(index).setns_by_fd(to.as_fd().as_raw_fd()).build();
        self.change_link("move", index, message).await
    }

    /// Deletes a link, and with it its other end. No such link is success.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn delete_link(&self, index: u32) -> Result<(), LinkError> {
        match self.change(delete_request(index)).await {
            Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(()),
            Err(source) => Err(LinkError { action: "delete", link: format!("#{index}"), source }),
            Ok(()) => Ok(()),
        }
    }

    /// Deletes the link of a name if it is, at this moment, the one that `is_it` accepts; says whether it did. A
    /// name alone tells nothing: its owner may have been replaced.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn delete_link_if(&self, name: &IfName, is_it: impl Fn(&Link) -> bool) -> Result<bool, LinkError> {
        match self.link_by_name(name).await? {
            Some(link) if is_it(&link) => self.delete_link(link.index).await.map(|()| true),
            _ => Ok(false),
        }
    }

    /// The number by which this socket's namespace knows another, as [`Link::peer_netns`] has it; none where it has given
    /// it none, because no link leads there.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn number_of(&self, namespace: &Namespace) -> Result<Option<i32>, NetlinkError> {
        let mut question = NsidMessage::default();
        question.attributes.push(NsidAttribute::Fd(namespace.as_fd().as_raw_fd().cast_unsigned()));
        match self.get(RouteNetlinkMessage::GetNsId(question)).await? {
            RouteNetlinkMessage::NewNsId(answer) => {
                Ok(answer.attributes.iter().find_map(|attribute| match attribute {
                    // `NETNSA_NSID_NOT_ASSIGNED` is -1.
                    NsidAttribute::Id(id) => Some(*id).filter(|id| *id >= 0),
                    _ => None,
                }))
            }
            _ => Err(NetlinkError::Unexpected),
        }
    }

    async fn change_link(&self, action: &'static str, index: u32, message: LinkMessage) -> Result<(), LinkError> {
        self.change(Request::change(RouteNetlinkMessage::SetLink(message), 0)).await.map_err(|source| LinkError {
            action,
            link: format!("#{index}"),
            source,
        })
    }

    async fn list(&self, question: LinkMessage) -> Result<Vec<Link>, LinkError> {
        let answers = self.dump(RouteNetlinkMessage::GetLink(question)).await.map_err(|source| LinkError {
            action: "list",
            link: "all".into(),
            source,
        })?;
        let link = |answer: &RouteNetlinkMessage| match answer {
            RouteNetlinkMessage::NewLink(message) => decode_link(message),
            _ => None,
        };
        Ok(answers.iter().filter_map(link).collect())
    }

    async fn find(&self, question: LinkMessage) -> Result<Option<Link>, NetlinkError> {
        found(self.get(RouteNetlinkMessage::GetLink(question)).await)
    }
}

fn found(answer: Result<RouteNetlinkMessage, NetlinkError>) -> Result<Option<Link>, NetlinkError> {
    match answer {
        Ok(RouteNetlinkMessage::NewLink(message)) => Ok(decode_link(&message)),
        Ok(_) => Err(NetlinkError::Unexpected),
        Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}
