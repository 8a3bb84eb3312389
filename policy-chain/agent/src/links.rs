//! Tells the daemon's loop which of the host's interfaces are gone.

use std::collections::BTreeMap;
use std::time::Duration;

use sluice_daemon::log::ErrorChain;
use sluice_hostnet::netns::Namespace;
use sluice_hostnet::watch::{Change, Event, Watch, Watched};

use crate::inbox::{Handle, Input};

/// After the watch has failed.
const RETRY: Duration = Duration::from_secs(1);

/// Watches for as long as it is polled.
pub(crate) async fn watch(namespace: Namespace, handle: Handle) {
    loop {
        match Watch::open(&namespace, Watched::LINKS).await {
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
            Some(Event::Lost) | None => return,
            Some(_) => {}
        }
    }
}
