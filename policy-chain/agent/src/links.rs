//! Tells the daemon's loop which of the host's interfaces are gone, which may have lost their gate, and when there are others
//! to leave by.

use std::collections::BTreeMap;
use std::time::Duration;

use sluice_contract::node::branch::vlan_of_link;
use sluice_daemon::log::ErrorChain;
use sluice_hostnet::netns::Namespace;
use sluice_hostnet::state::{Address, Link, LinkKind, RtScope};
use sluice_hostnet::watch::{Change, Event, Watch, Watched};

use crate::inbox::{Handle, Input};

/// After the watch has failed.
const RETRY: Duration = Duration::from_secs(1);

/// Watches for as long as it is polled.
pub(crate) async fn watch(namespace: Namespace, handle: Handle) {
    loop {
        match Watch::open(&namespace, Watched { addresses: true, hooks: true, ..Watched::LINKS }).await {
            Ok(watch) => follow(watch, &handle).await,
            Err(error) => tracing::error!(error = %ErrorChain(&error), "the host's links cannot be watched"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Until events were lost, or the socket has failed: then all links have to be read again.
async fn follow(mut watch: Watch, handle: &Handle) {
    let links: BTreeMap<u32, String> =
        watch.links().iter().map(|link| (link.index, link.name.as_str().to_owned())).collect();
    handle.send(Input::Links(links)).await;
    loop {
        match watch.next().await {
            Some(Event::Link(Change::Gone, link)) => handle.send(Input::LinkGone(link.index)).await,
            Some(Event::Link(Change::New, link)) if may_be_uplink(&link) => {
                let of_pod = vlan_of_link(&link.name).is_some();
                handle.send(Input::NetworkChanged { of_pod }).await;
            }
            // It may be a further one of a pod that was there before.
            Some(Event::Link(Change::New, link)) if link.kind == LinkKind::Veth => {
                handle.send(Input::VethChanged).await;
            }
            Some(Event::Address(Change::New, address)) if is_of_subnet(&address) => {
                handle.send(Input::NetworkChanged { of_pod: false }).await;
            }
            Some(Event::Hooks(index)) => handle.send(Input::HooksChanged(index)).await,
            Some(Event::Lost) | None => return,
            Some(_) => {}
        }
    }
}

/// Whether a link is one by itself. A pod's is not, and pods come by the dozen.
fn may_be_uplink(link: &Link) -> bool {
    match &link.kind {
        LinkKind::Physical => true,
        LinkKind::Other(kind) => kind == "vlan",
        LinkKind::Loopback | LinkKind::Veth => false,
    }
}

/// Whether an address makes its link one.
fn is_of_subnet(address: &Address) -> bool {
    address.scope == RtScope::Global && address.net.prefix_len() < address.net.max_prefix_len()
}
