//! Objects that this node's policyd knows.

use serde_json::Value;

use crate::daemons::{Daemon, is, list, text};

/// What policyd knows.
pub(super) struct Live {
    /// All objects, as manifests.
    pub(super) objects: Vec<Value>,
    /// Whether its setting is that CIDRs of cilium.io rules match managed pods and nodes too.
    pub(super) cidrs_match_managed: bool,
    /// Names with their addresses, `name=address`.
    pub(super) resolve: Vec<String>,
    /// What somebody should know who reads the answer.
    pub(super) notes: Vec<String>,
}

/// Asks it.
pub(super) fn read() -> Result<Live, String> {
    let ask = |page| {
        let hint = "is sluice-policyd running on this node? Objects in files are read with --cluster-dir";
        Daemon::Policyd.page(page).map_err(|why| format!("policyd cannot be asked: {why}; {hint}"))
    };
    let (policy, objects, names) = (ask("/v1/policy")?, ask("/v1/objects")?, ask("/v1/names")?);
    let settings = ask("/v1/settings")?;
    let mut notes = Vec::new();
    let stale = text(&policy, "/stale");
    if !stale.is_empty() {
        notes.push(format!("what policyd knows may be old: {stale}"));
    }
    if !is(&policy, "/synced") {
        notes.push("policyd has not heard of the whole cluster since its start".to_owned());
    }
    let known = list(&names, "/names").iter().flat_map(|name| {
        let of = text(name, "/name").to_owned();
        list(name, "/addresses").iter().filter_map(Value::as_str).map(move |address| format!("{of}={address}"))
    });
    let resolve = known.collect();
    let Value::Array(objects) = objects else { return Err("policyd's list of objects is none".to_owned()) };
    let cidrs_match_managed = is(&settings, "/effective/cilium_cidrs_match_managed");
    Ok(Live { objects, cidrs_match_managed, resolve, notes })
}
