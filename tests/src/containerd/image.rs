//! A container image, written by hand: an OCI image layout in a tar file, as `ctr images import` reads it
//! (OCI image specification 1.0, "Image Layout"). Its one layer holds a static busybox.

use std::io;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sluice_contract::node::hex;

/// Sizes in a tar file are multiples of this many bytes.
const BLOCK: usize = 512;
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// The image called `name` as a tar file: `/bin/busybox`, a copy of `busybox`, which sleeps for ever.
///
/// # Errors
/// When `busybox` cannot be read, or does not fit a tar file.
pub(super) fn busybox_image(name: &str, busybox: &Path) -> io::Result<Vec<u8>> {
    let program = std::fs::read(busybox)?;
    let mut layer = Tar::default();
    layer.directory("bin/")?;
    layer.file("bin/busybox", 0o755, &program)?;
    Ok(layout(name, &layer.finish())?.finish())
}

fn layout(name: &str, layer: &[u8]) -> io::Result<Tar> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": { "Entrypoint": ["/bin/busybox", "sleep", "2147483647"] },
        "rootfs": { "type": "layers", "diff_ids": [digest(layer)] },
    })
    .to_string();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": descriptor("application/vnd.oci.image.config.v1+json", config.as_bytes()),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
    })
    .to_string();
    let mut listed = descriptor(MANIFEST_TYPE, manifest.as_bytes());
    if let Some(fields) = listed.as_object_mut() {
        fields.insert("annotations".into(), json!({ "io.containerd.image.name": name }));
    }
    let index = json!({ "schemaVersion": 2, "manifests": [listed] }).to_string();

    let mut tar = Tar::default();
    tar.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    tar.file("index.json", 0o644, index.as_bytes())?;
    for blob in [manifest.as_bytes(), config.as_bytes(), layer] {
        tar.file(&format!("blobs/sha256/{}", sha256(blob)), 0o644, blob)?;
    }
    Ok(tar)
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(blob), "size": blob.len() })
}

fn digest(blob: &[u8]) -> String {
    format!("sha256:{}", sha256(blob))
}

fn sha256(blob: &[u8]) -> String {
    hex(&Sha256::digest(blob))
}

/// A tar file in the making (POSIX.1-1988, "ustar"). Everything in it belongs to root and has no date, so that the
/// same content gives the same bytes.
#[derive(Debug, Default)]
struct Tar {
    bytes: Vec<u8>,
}

impl Tar {
    fn directory(&mut self, path: &str) -> io::Result<()> {
        self.header(path, 0o755, b'5', 0)
    }

    fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.header(path, mode, b'0', content.len())?;
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
        Ok(())
    }

    fn header(&mut self, path: &str, mode: u32, kind: u8, size: usize) -> io::Result<()> {
        // Name, mode, owner, group, size, date, checksum, kind; then magic and version, and the rest empty.
        let mut header = Vec::with_capacity(BLOCK);
        for (text, width) in [
            (path.to_owned(), 100),
            (format!("{mode:07o}"), 8),
            ("0000000".to_owned(), 8),
            ("0000000".to_owned(), 8),
            (format!("{size:011o}"), 12),
            ("00000000000".to_owned(), 12),
            ("        ".to_owned(), 8),
        ] {
            if text.len() > width {
                let reason = format!("{text} does not fit a tar header");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
            }
            let end = header.len() + width;
            header.extend_from_slice(text.as_bytes());
            header.resize(end, 0);
        }
        header.push(kind);
        header.resize(257, 0);
        header.extend_from_slice(b"ustar\x0000");
        header.resize(BLOCK, 0);
        // The sum is taken with its own field full of spaces, as it stands now.
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header.splice(148..156, format!("{sum:06o}\0 ").into_bytes());
        self.bytes.append(&mut header);
        Ok(())
    }

    fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK, 0);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    /// A reader that we did not write agrees with the tar file.
    #[test]
    fn tar_reads_the_layout() {
        let tar = layout("example.test/pause:1", b"a layer").unwrap().finish();
        let mut reader = Command::new("tar")
            .args(["--list", "--verbose", "--file", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        reader.stdin.take().unwrap().write_all(&tar).unwrap();
        let output = reader.wait_with_output().unwrap();
        assert!(output.status.success());
        let listed = String::from_utf8(output.stdout).unwrap();
        assert!(listed.contains(" oci-layout\n") && listed.contains(" index.json\n"), "{listed}");
        assert!(listed.contains(&format!(" 7 1970-01-01 00:00 blobs/sha256/{}\n", sha256(b"a layer"))), "{listed}");
    }

    #[test]
    fn digests_are_those_of_the_standard() {
        assert_eq!(digest(b"abc"), "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
