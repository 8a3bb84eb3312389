//! The sandboxes whose interfaces have gates: one file an attachment, so that a restart knows whose interface is whose.
//!
//! A file is written before its interfaces are bound and removed after they are unbound.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sluice_contract::id::Attachment;
use sluice_contract::rpc::{GateInterface, PolicyAdd, tombstone};
use sluice_policy_core::cluster::PodKey;

use crate::store::{self, StoreError};
use sluice_daemon::log::ErrorChain;

/// Files that are read at a start; a node holds some hundred pods.
const MAX_FILES: usize = 20_000;

/// Bytes of one file.
const SIZE_LIMIT: u64 = 64 * 1024;

/// An attachment whose interfaces have gates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Binding {
    /// What the plugin said.
    #[serde(flatten)]
    pub(crate) add: PolicyAdd,
    /// Bindings made later have greater numbers: of two sandboxes of a pod the younger one counts.
    pub(crate) number: u64,
}

impl Binding {
    pub(crate) fn key(&self) -> PodKey {
        key_of(&self.add)
    }

    /// Whether it is a sandbox of the pod.
    pub(crate) fn is_for(&self, pod: &PodKey) -> bool {
        self.add.pod.namespace == *pod.namespace && self.add.pod.name == *pod.name
    }

    pub(crate) fn interfaces(&self) -> &[GateInterface] {
        &self.add.interfaces
    }
}

/// The pod of a request.
pub(crate) fn key_of(add: &PolicyAdd) -> PodKey {
    PodKey { namespace: add.pod.namespace.as_str().into(), name: add.pod.name.as_str().into() }
}

/// The directory of the files.
#[derive(Debug, Clone)]
pub(crate) struct Registry {
    directory: PathBuf,
}

impl Registry {
    pub(crate) const fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    fn path(&self, attachment: &Attachment) -> PathBuf {
        self.directory.join(tombstone::file_name(attachment))
    }

    /// What is there. A file that cannot be read is put aside and reported: its pod's interfaces are then found by nobody
    /// and drop.
    pub(crate) fn read(&self) -> Result<BTreeMap<Attachment, Binding>, StoreError> {
        store::make_directory(&self.directory)?;
        let mut bindings = BTreeMap::new();
        let entries = fs::read_dir(&self.directory).map_err(store::failed("reading", &self.directory))?;
        for entry in entries.take(MAX_FILES) {
            let path = entry.map_err(store::failed("reading", &self.directory))?.path();
            if path.extension() != Some(OsStr::new("json")) {
                continue;
            }
            match read_one(&path) {
                Ok(Some(binding)) => {
                    bindings.insert(binding.add.attachment.clone(), binding);
                }
                Ok(None) => {}
                Err(why) => {
                    tracing::error!(path = %path.display(), reason = why, "an endpoint's file cannot be read and is put aside");
                    if let Err(error) = fs::rename(&path, path.with_extension("json.bad")) {
                        tracing::error!(path = %path.display(), error = %error, "it could not be put aside");
                    }
                }
            }
        }
        Ok(bindings)
    }

    pub(crate) fn write(&self, binding: &Binding) -> Result<(), StoreError> {
        let path = self.path(&binding.add.attachment);
        let content = serde_json::to_vec(binding).map_err(|error| store::failed("writing", &path)(error.into()))?;
        store::write(&path, &content)
    }

    pub(crate) fn remove(&self, attachment: &Attachment) {
        if let Err(error) = store::remove(&self.path(attachment)) {
            // Found again by a restart, whose link watch finds its interface gone.
            tracing::error!(error = %ErrorChain(&error), "an endpoint's file could not be removed");
        }
    }
}

fn read_one(path: &Path) -> Result<Option<Binding>, String> {
    let content = store::read(path, SIZE_LIMIT).map_err(|error| ErrorChain(&error).to_string())?;
    let parse =
        |content: Vec<u8>| serde_json::from_slice(&content).map_err(|error: serde_json::Error| error.to_string());
    content.map(parse).transpose()
}

/// The names of network interfaces by index, as the kernel shows them now.
///
/// # Errors
/// The kernel's answer.
pub(crate) fn links() -> io::Result<BTreeMap<u32, String>> {
    let mut links = BTreeMap::new();
    for entry in nix::net::if_::if_nameindex()?.iter() {
        links.insert(entry.index(), entry.name().to_string_lossy().into_owned());
    }
    Ok(links)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TestDir, add};

    #[test]
    fn bindings_are_found_again() {
        let dir = TestDir::new();
        let registry = Registry::new(dir.path().join("endpoints"));
        assert!(registry.read().unwrap().is_empty());
        let binding = |name: &str, number| Binding { add: add(name, name, 7), number };
        registry.write(&binding("a", 1)).unwrap();
        registry.write(&binding("a", 2)).unwrap();
        registry.write(&binding("b", 3)).unwrap();
        let read = registry.read().unwrap();
        assert_eq!(read.values().cloned().collect::<Vec<_>>(), [binding("a", 2), binding("b", 3)]);
        registry.remove(&read.keys().next().unwrap().clone());
        registry.remove(&binding("zzz", 1).add.attachment);
        assert_eq!(registry.read().unwrap().len(), 1);
    }

    #[test]
    fn garbage_is_put_aside() {
        let dir = TestDir::new();
        let registry = Registry::new(dir.path().to_owned());
        fs::write(dir.path().join("x.json"), "{").unwrap();
        assert!(registry.read().unwrap().is_empty());
        assert!(dir.path().join("x.json.bad").exists());
    }

    #[test]
    fn the_loopback_link_is_there() {
        assert!(links().unwrap().values().any(|name| name == "lo"));
    }
}
