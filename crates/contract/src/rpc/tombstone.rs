//! Tombstones: a DEL that a plugin could not bring to its daemon, left as a file for the daemon to find: in
//! [`crate::node::TOMBSTONE_DIR`] for ipamd, in [`crate::node::POLICY_TOMBSTONE_DIR`] for policyd.
//!
//! The plugin writes one file an attachment, named by [`file_name`], whose content is the JSON of its
//! [`DelRequest`](super::DelRequest) or [`PolicyDel`](super::PolicyDel):
//!
//! 1. create the directory (mode 0700) if it is missing;
//! 2. open [`LOCK_FILE`] in it (create, mode 0600) and lock it exclusively (`flock`);
//! 3. write `NAME.tmp`, then rename it to `NAME`; the same attachment overwrites its older tombstone;
//! 4. close the lock.
//!
//! The daemon takes the same lock while it reads and removes them: at start before it serves, on a timer, and for one
//! attachment before that attachment's ADD. A file that cannot be read is renamed to `NAME.bad` and reported; files of other
//! names are let alone.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha1::{Digest, Sha1};

use super::FrameError;
use crate::id::Attachment;
use crate::node::hex;

/// The file whose `flock` guards the directory.
pub const LOCK_FILE: &str = ".lock";

/// The longest tombstone that a daemon reads, in bytes.
pub const SIZE_LIMIT: u64 = 16 * 1024;

/// What the names of tombstones end in.
const SUFFIX: &str = ".json";

/// The name of an attachment's tombstone: a hash, because ids may be longer than a file name.
#[must_use]
pub fn file_name(attachment: &Attachment) -> String {
    let mut hash = Sha1::new();
    for part in [attachment.container.as_str(), attachment.ifname.as_str(), attachment.network.as_str()] {
        hash.update(part.as_bytes());
        // No id has a NUL in it, so that no two attachments are the same bytes.
        hash.update([0]);
    }
    format!("{}{SUFFIX}", hex(&hash.finalize()))
}

/// Whether a file of the directory is a tombstone, by its name.
#[must_use]
pub fn is_tombstone(name: &Path) -> bool {
    let name = name.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.strip_suffix(SUFFIX).is_some_and(|hash| hash.len() == 40 && hash.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The content of a tombstone.
///
/// # Errors
/// [`FrameError::Json`] when a field cannot be written as JSON.
pub fn to_json<D: Serialize>(request: &D) -> Result<Vec<u8>, FrameError> {
    serde_json::to_vec(request).map_err(FrameError::Json)
}

/// Reads the content of a tombstone.
///
/// # Errors
/// [`FrameError::Json`] when it is not a `D`.
pub fn from_json<D: DeserializeOwned>(content: &[u8]) -> Result<D, FrameError> {
    serde_json::from_slice(content).map_err(FrameError::Json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{ContainerId, IfName, NetworkName, PodRef};
    use crate::rpc::DelRequest;

    fn attachment(container: &str, ifname: &str) -> Attachment {
        Attachment {
            container: ContainerId::new(container).unwrap(),
            ifname: IfName::new(ifname).unwrap(),
            network: NetworkName::new("sluice").unwrap(),
        }
    }

    #[test]
    fn each_attachment_has_a_name_of_its_own_that_is_told_from_other_files() {
        let name = file_name(&attachment("abc", "eth0"));
        assert_ne!(name, file_name(&attachment("abc", "eth1")));
        assert_ne!(file_name(&attachment("a", "beth0")), file_name(&attachment("ab", "eth0")));
        assert!(is_tombstone(Path::new(&name)), "{name}");
        for other in [".lock", "x.json", &format!("{name}.tmp"), &format!("{name}.bad"), ""] {
            assert!(!is_tombstone(Path::new(other)), "{other}");
        }
    }

    #[test]
    fn a_tombstone_reads_as_it_was_written() {
        let request = DelRequest {
            attachment: attachment("abc", "eth0"),
            pod: PodRef { namespace: "default".into(), name: "web-0".into(), uid: None },
            add_failed: true,
        };
        assert_eq!(from_json::<DelRequest>(&to_json(&request).unwrap()).unwrap(), request);
        assert!(from_json::<DelRequest>(b"{\"attachment\":").is_err());
    }
}
