//! Makes Rust of Hubble's protocol: messages, client and server, and the descriptors by which messages are shown as JSON. The
//! compiler is a library, so that nothing has to be installed.

use std::error::Error;
use std::path::{Path, PathBuf};

use prost::Message as _;

const FILES: [&str; 4] = ["flow/flow.proto", "relay/relay.proto", "peer/peer.proto", "observer/observer.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let set = protox::compile(FILES, [Path::new("proto")])?;
    #[expect(clippy::disallowed_methods, reason = "where cargo wants what is made")]
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), set.encode_to_vec())?;
    tonic_prost_build::configure().out_dir(out).compile_fds(set)?;
    Ok(())
}
