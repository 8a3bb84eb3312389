//! STATUS. A runtime takes its error for "this node is not ready", and in the end its pods are evicted; so it fails
//! only until ipamd has been ready once since the node booted (DESIGN 5). A daemon that is gone later shows as errors
//! of ADD, and everywhere else.

use std::path::Path;

use sluice_contract::cni::{EniConf, ErrorCode, Failure, NetConf};
use sluice_contract::node::IPAMD_READY;

pub(crate) fn run(conf: &NetConf) -> Result<(), Failure> {
    let options = EniConf::of(conf)?;
    let mark = options.run_dir.join(Path::new(IPAMD_READY).file_name().unwrap_or_default());
    match mark.try_exists() {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::new(
            ErrorCode::NotAvailable,
            format!("ipamd has not been ready since this node booted: there is no {}", mark.display()),
        )),
        Err(error) => {
            Err(Failure::new(ErrorCode::NotAvailable, format!("cannot look for {}: {error}", mark.display())))
        }
    }
}
