//! ADD: the result of the plugins before this one, once the policy is in force.

use std::path::Path;
use std::time::Instant;

use serde_json::Value;
use sluice_contract::cni::{AddResult, ErrorCode, Failure, NetConf, PolicyConf, SpecVersion, chain};
use sluice_contract::id::{Attachment, ContainerId, IfName, PodRef};
use sluice_contract::node::veth::POD_IFNAME;
use sluice_contract::rpc::PolicyAdd;
use sluice_hostnet::plugin::{on_runtime, sandbox};

use crate::find::{Whose, find};
use crate::policyd::Policyd;

pub(crate) fn run(
    conf: &NetConf,
    container: ContainerId,
    netns_path: &Path,
    ifname: IfName,
    pod: PodRef,
) -> Result<Value, Failure> {
    let started = Instant::now();
    let options = PolicyConf::of(conf)?;
    let (Some(raw), Some(result)) = (&conf.raw_prev_result, conf.prev_result()?) else {
        let text = "the configuration of an ADD has no prevResult: sluice-policy must follow the plugin that makes the \
                    pod's interfaces in its list";
        return Err(Failure::new(ErrorCode::InvalidConfig, text));
    };
    let netns = sandbox(netns_path)?;
    let attachment = Attachment { container, ifname, network: conf.name.clone() };
    // A further network of a pod comes after its first, whose interfaces are not its own.
    let whose = if attachment.ifname.as_str() == POD_IFNAME { Whose::All } else { Whose::Reported };
    let found = on_runtime(find(&result, &attachment.ifname, &netns, netns_path, whose))?;
    let interfaces = found.map_err(|error| {
        Failure::new(error.code(), format!("cannot find the interfaces of {attachment}: {}", chain(&error)))
    })?;
    // A policyd that is gone is waited for as long as one that is slow: the pod cannot start without it.
    let policyd = Policyd { socket: &options.policyd_socket, deadline: started + options.wait, patience: options.wait };
    let netns = netns_path.to_string_lossy().into_owned();
    policyd.add(PolicyAdd { attachment, pod, netns, interfaces })?;
    Ok(handed_on(raw, &result, conf.version))
}

/// The result as it came, down to what no specification knows. Only where a plugin answered in another version than
/// the list's, or in none, is it put into the list's.
fn handed_on(raw: &Value, result: &AddResult, version: SpecVersion) -> Value {
    match raw.get("cniVersion").filter(|own| !own.is_null()) {
        Some(own) if own.as_str() != Some(version.as_str()) => result.to_value(version),
        Some(_) => raw.clone(),
        None => {
            let mut raw = raw.clone();
            if let Value::Object(fields) = &mut raw {
                fields.insert("cniVersion".to_owned(), version.as_str().into());
            }
            raw
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn hand_on(raw: &Value, version: SpecVersion) -> Value {
        handed_on(raw, &AddResult::from_value(version, raw).unwrap(), version)
    }

    #[test]
    fn a_result_is_handed_on_as_it_came() {
        let mut raw = json!({
            "cniVersion": "0.4.0",
            "interfaces": [{"name": "eni1"}, {"name": "eth0", "mac": "2", "sandbox": "/n", "vendor": {"x": [1, null]}}],
            "ips": [{"version": "4", "interface": 1, "address": "10.0.1.60/32"}],
            "routes": null, "dns": {}, "ours.example/key": 7, "other": true,
        });
        assert_eq!(hand_on(&raw, SpecVersion::V0_4_0), raw);
        let fields = raw.as_object_mut().unwrap();
        let version = fields.remove("cniVersion").unwrap();
        let handed = hand_on(&raw, SpecVersion::V0_4_0);
        raw["cniVersion"] = version;
        assert_eq!(handed, raw);
    }

    #[test]
    fn a_result_of_another_version_is_put_into_that_of_the_list() {
        let old = json!({"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.0.1.60/32"}]});
        let new = json!({"cniVersion": "1.1.0", "ips": [{"address": "10.0.1.60/32"}]});
        assert_eq!(hand_on(&old, SpecVersion::V1_1_0), new);
        assert_eq!(hand_on(&new, SpecVersion::V0_4_0), old);
        assert_eq!(hand_on(&json!({"cniVersion": null}), SpecVersion::V1_0_0), json!({"cniVersion": "1.0.0"}));
    }
}
