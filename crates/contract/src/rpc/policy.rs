//! The messages between the chained plugin and policyd.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::GcRequest;
use crate::id::{Attachment, IfName, PodRef};

/// The questions that policyd answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "snake_case")]
pub enum PolicyCall {
    /// Put the pod's policy in force on its interfaces. It is answered when that is done; asked again for the same
    /// attachment, it is done for the interfaces of the newer question.
    Add(PolicyAdd),
    /// The attachment is gone: its endpoint drops everything from now on; a waiting ADD of it is cancelled. An
    /// attachment that is not known is success (CNI spec 1.1.0, DEL).
    Del(PolicyDel),
    /// Is the policy in force on these interfaces?
    Check(PolicyCheck),
    /// Is policy in force on this node?
    Status,
    /// What [`Self::Del`] does, for all attachments of the network that are not listed.
    Gc(GcRequest),
}

/// [`PolicyCall::Add`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyAdd {
    /// The attachment that the chain is run for.
    pub attachment: Attachment,
    /// The pod behind it; without a name where the runtime knows no Kubernetes.
    pub pod: PodRef,
    /// Path of the sandbox's network namespace, as the runtime gave it.
    pub netns: String,
    /// The attachment's interfaces, in the order of `prevResult`; at least one. The plugin has found each of them in the
    /// kernel a moment before. For the pod's own network (`eth0`) those that `prevResult` does not name come after them.
    pub interfaces: Vec<GateInterface>,
}

/// One interface of a sandbox, and the host's interface at which its gate stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateInterface {
    /// The host's interface.
    pub host: IfName,
    /// Its number: what is attached goes by that, because a name may be another's a moment later.
    pub host_index: u32,
    /// The interface in the sandbox.
    pub container: IfName,
    /// The addresses that the pod may send from by this interface.
    pub addresses: Vec<IpAddr>,
}

/// [`PolicyCall::Del`], and the content of a tombstone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyDel {
    /// What is gone.
    pub attachment: Attachment,
    /// The pod behind it, where the runtime still knows it.
    #[serde(default)]
    pub pod: PodRef,
}

/// [`PolicyCall::Check`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyCheck {
    /// What to look at.
    pub attachment: Attachment,
    /// Those of the attachment's interfaces that `prevResult` names, as the plugin has found them now. An ADD may have
    /// told of more.
    pub interfaces: Vec<GateInterface>,
}

/// The answers to the calls of the same names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "snake_case")]
pub enum PolicyOutcome {
    /// [`PolicyCall::Add`]: the policy is in force.
    Add(PolicyAddReply),
    /// [`PolicyCall::Del`].
    Del,
    /// [`PolicyCall::Check`].
    Check(PolicyCheckReply),
    /// [`PolicyCall::Gc`].
    Gc,
    /// [`PolicyCall::Status`].
    Status(PolicyStatusReply),
}

/// The answer to [`PolicyCall::Add`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyAddReply {
    /// The revision of the node's policy that is in force on the pod's interfaces.
    pub revision: u64,
}

/// The answer to [`PolicyCall::Check`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyCheckReply {
    /// What is not as it should be, a line each; empty when the policy is in force.
    pub differences: Vec<String>,
    /// The revision of the node's policy that is in force.
    pub revision: u64,
}

/// The answer to [`PolicyCall::Status`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyStatusReply {
    /// The host interfaces that have a gate.
    pub endpoints: u32,
    /// Whether all that the cluster says has come.
    pub synced: bool,
    /// The revision of the node's policy that is in force.
    #[serde(default)]
    pub revision: u64,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::id::{ContainerId, NetworkName};
    use crate::rpc::{Call, Refusal, RefusalCode, Reply, Request};

    fn attachment() -> Attachment {
        Attachment {
            container: ContainerId::new("abc").unwrap(),
            ifname: IfName::new("eth0").unwrap(),
            network: NetworkName::new("sluice").unwrap(),
        }
    }

    #[test]
    fn a_request_reads_as_it_is_documented() {
        let request = Request {
            deadline_ms: 10_000,
            call: PolicyCall::Add(PolicyAdd {
                attachment: attachment(),
                pod: PodRef { namespace: "default".into(), name: "web-0".into(), uid: Some("u-1".into()) },
                netns: "/run/netns/x".into(),
                interfaces: vec![GateInterface {
                    host: IfName::new("enicc21c2d7785").unwrap(),
                    host_index: 12,
                    container: IfName::new("eth0").unwrap(),
                    addresses: vec!["10.0.1.7".parse().unwrap(), "2001:db8::7".parse().unwrap()],
                }],
            }),
        };
        let json = serde_json::to_value(&request).unwrap();
        assert_eq!(
            json,
            json!({"deadline_ms": 10000, "call": "add",
                "attachment": {"container": "abc", "ifname": "eth0", "network": "sluice"},
                "pod": {"namespace": "default", "name": "web-0", "uid": "u-1"}, "netns": "/run/netns/x",
                "interfaces": [{"host": "enicc21c2d7785", "host_index": 12, "container": "eth0",
                    "addresses": ["10.0.1.7", "2001:db8::7"]}]})
        );
        assert_eq!(serde_json::from_value::<Request<PolicyCall>>(json).unwrap(), request);
    }

    #[test]
    fn what_is_asked_at_the_wrong_socket_is_not_understood() {
        let check = json!({"deadline_ms": 1, "call": "check",
            "attachment": {"container": "abc", "ifname": "eth0", "network": "sluice"}});
        assert!(serde_json::from_value::<Request<Call>>(check.clone()).is_ok());
        assert!(serde_json::from_value::<Request<PolicyCall>>(check).is_err());
    }

    #[test]
    fn every_reply_comes_back_as_it_was() {
        let replies = [
            Reply::Done(PolicyOutcome::Add(PolicyAddReply { revision: 7 })),
            Reply::Done(PolicyOutcome::Del),
            Reply::Done(PolicyOutcome::Check(PolicyCheckReply { differences: vec!["no filter".into()], revision: 7 })),
            Reply::Done(PolicyOutcome::Gc),
            Reply::Done(PolicyOutcome::Status(PolicyStatusReply { endpoints: 3, synced: true, revision: 7 })),
            Reply::Refused(Refusal::new(RefusalCode::PolicyNotReady, "default/web-0 is not known yet")),
        ];
        for reply in replies {
            let json = serde_json::to_vec(&reply).unwrap();
            assert_eq!(serde_json::from_slice::<Reply<PolicyOutcome>>(&json).unwrap(), reply);
        }
    }
}
