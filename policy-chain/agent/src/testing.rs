//! What several tests need.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use sluice_contract::id::{Attachment, ContainerId, IfName, NetworkName, PodRef};
use sluice_contract::rpc::{GateInterface, PolicyAdd};

/// A directory of one test, removed with it.
#[derive(Debug)]
pub(crate) struct TestDir(PathBuf);

impl TestDir {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("sluice-policyd-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        let _removed = std::fs::remove_dir_all(&self.0);
    }
}

/// The attachment of eth0 of a container.
pub(crate) fn attachment(container: &str) -> Attachment {
    Attachment {
        container: ContainerId::new(container).unwrap(),
        ifname: IfName::new("eth0").unwrap(),
        network: NetworkName::new("sluice").unwrap(),
    }
}

/// The ADD of a container of the pod `web/POD` with the UID `u-POD`, at the host's interface `index`, which is named by it;
/// its address is `10.0.0.INDEX`.
pub(crate) fn add(container: &str, pod: &str, index: u32) -> PolicyAdd {
    PolicyAdd {
        attachment: attachment(container),
        pod: PodRef { namespace: "web".into(), name: pod.into(), uid: Some(format!("u-{pod}")) },
        netns: format!("/run/netns/{container}"),
        interfaces: vec![GateInterface {
            host: IfName::new(format!("eni{index}")).unwrap(),
            host_index: index,
            container: IfName::new("eth0").unwrap(),
            addresses: vec![std::net::IpAddr::from([10, 0, 0, u8::try_from(index % 250).unwrap()])],
        }],
    }
}
