//! STATUS: is policy in force on this node? A runtime takes the error for "this node is not ready", and in the end its
//! pods are evicted; so it fails only until policyd has been ready once since the node booted (DESIGN 5). A daemon that is
//! gone later leaves the verdicts in force, and shows as errors of ADD.

use sluice_contract::cni::{ErrorCode, Failure, NetConf, PolicyConf};
use sluice_contract::node::POLICYD_READY;

use crate::del::below;

pub(crate) fn run(conf: &NetConf) -> Result<(), Failure> {
    let options = PolicyConf::of(conf)?;
    let mark = below(&options.run_dir, POLICYD_READY);
    match mark.try_exists() {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::new(
            ErrorCode::NotAvailable,
            format!("policy has not been in force since this node booted: there is no {}", mark.display()),
        )),
        Err(error) => {
            Err(Failure::new(ErrorCode::NotAvailable, format!("cannot look for {}: {error}", mark.display())))
        }
    }
}
