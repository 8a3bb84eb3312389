//! Messages as JSON, with the names of the protocol's fields: what Hubble's `-o jsonpb` prints and its `--input-file` reads.

use std::sync::LazyLock;

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde_json::Value;

use crate::{flow, observer, peer};

/// What `proto/` says, for those who look at messages without knowing their types.
static DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| DescriptorPool::decode(DESCRIPTORS).unwrap_or_default());

/// Why a message is not shown, or not read.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// The message is not of the protocol.
    #[error("{0} is no message of the protocol")]
    Unknown(&'static str),
    /// It is not the message that its type says.
    #[error("the message does not fit its type")]
    Decode(#[from] prost::DecodeError),
    /// The JSON is not that of such a message.
    #[error("it is not the JSON of such a message")]
    Json(#[from] serde_json::Error),
}

/// A message with its name in the protocol.
pub trait Named: Message + Default {
    /// The name, with its package.
    const NAME: &'static str;
}

macro_rules! named {
    ($($message:ty, $name:literal;)*) => {
        $(impl Named for $message {
            const NAME: &'static str = $name;
        })*
    };
}

named! {
    flow::Flow, "flow.Flow";
    flow::FlowFilter, "flow.FlowFilter";
    observer::GetFlowsRequest, "observer.GetFlowsRequest";
    observer::GetFlowsResponse, "observer.GetFlowsResponse";
    observer::GetNodesResponse, "observer.GetNodesResponse";
    observer::GetNamespacesResponse, "observer.GetNamespacesResponse";
    observer::ServerStatusResponse, "observer.ServerStatusResponse";
    peer::ChangeNotification, "peer.ChangeNotification";
}

pub(crate) fn descriptor<M: Named>() -> Result<MessageDescriptor, JsonError> {
    POOL.get_message_by_name(M::NAME).ok_or(JsonError::Unknown(M::NAME))
}

pub(crate) fn dynamic<M: Named>(message: &M) -> Result<DynamicMessage, JsonError> {
    Ok(DynamicMessage::decode(descriptor::<M>()?, message.encode_to_vec().as_slice())?)
}

/// The message as JSON; what is not set is left out.
///
/// # Errors
/// [`JsonError`].
pub fn value<M: Named>(message: &M) -> Result<Value, JsonError> {
    let options = SerializeOptions::new().use_proto_field_name(true);
    Ok(dynamic(message)?.serialize_with_options(serde_json::value::Serializer, &options)?)
}

/// The message on one line, without the line's end.
///
/// # Errors
/// [`JsonError`].
pub fn line<M: Named>(message: &M) -> Result<String, JsonError> {
    let options = SerializeOptions::new().use_proto_field_name(true);
    let mut text = Vec::with_capacity(1024);
    dynamic(message)?.serialize_with_options(&mut serde_json::Serializer::new(&mut text), &options)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Reads a message from JSON. What the protocol has not is passed over: flows of a later version have more to say.
///
/// # Errors
/// [`JsonError`].
pub fn read<M: Named>(text: &str) -> Result<M, JsonError> {
    read_with(text, false)
}

/// Reads a message from JSON all of which has to be understood: of a filter nothing may be passed over.
///
/// # Errors
/// [`JsonError`].
pub fn read_exactly<M: Named>(text: &str) -> Result<M, JsonError> {
    read_with(text, true)
}

fn read_with<M: Named>(text: &str, exactly: bool) -> Result<M, JsonError> {
    let options = prost_reflect::DeserializeOptions::new().deny_unknown_fields(exactly);
    let mut from = serde_json::Deserializer::from_str(text);
    let message = DynamicMessage::deserialize_with_options(descriptor::<M>()?, &mut from, &options)?;
    from.end()?;
    Ok(M::decode(message.encode_to_vec().as_slice())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Endpoint, Flow, Ip, Layer4, Tcp, TcpFlags, Verdict, layer4};
    use crate::observer::get_flows_response::ResponseTypes;

    /// The names and forms are those that Hubble's CLI prints for the same message.
    #[test]
    fn a_flow_is_shown_with_hubbles_names_and_read_again() {
        let tcp =
            Tcp { source_port: 40000, destination_port: 80, flags: Some(TcpFlags { syn: true, ..Default::default() }) };
        let flow = Flow {
            time: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 5_000_000 }),
            verdict: Verdict::Dropped.into(),
            drop_reason_desc: flow::DropReason::PolicyDenied.into(),
            ip: Some(Ip {
                source: "10.0.0.1".into(),
                destination: "10.0.0.2".into(),
                ip_version: flow::IpVersion::IPv4.into(),
                ..Default::default()
            }),
            l4: Some(Layer4 { protocol: Some(layer4::Protocol::Tcp(tcp)) }),
            source: Some(Endpoint { id: 7, pod_name: "web".into(), ..Default::default() }),
            r#type: flow::FlowType::L3L4.into(),
            is_reply: Some(false),
            egress_denied_by: vec![flow::Policy { name: "db".into(), ..Default::default() }],
            ..Default::default()
        };
        let response = observer::GetFlowsResponse {
            node_name: "node-a".into(),
            time: flow.time,
            response_types: Some(ResponseTypes::Flow(flow)),
        };
        let expected = serde_json::json!({
            "flow": {
                "time": "2023-11-14T22:13:20.005Z",
                "verdict": "DROPPED",
                "drop_reason_desc": "POLICY_DENIED",
                "IP": {"source": "10.0.0.1", "destination": "10.0.0.2", "ipVersion": "IPv4"},
                "l4": {"TCP": {"source_port": 40000, "destination_port": 80, "flags": {"SYN": true}}},
                "source": {"ID": 7, "pod_name": "web"},
                "Type": "L3_L4",
                "is_reply": false,
                "egress_denied_by": [{"name": "db"}],
            },
            "node_name": "node-a",
            "time": "2023-11-14T22:13:20.005Z",
        });
        assert_eq!(value(&response).unwrap(), expected);
        let text = line(&response).unwrap();
        assert_eq!(read::<observer::GetFlowsResponse>(&text).unwrap(), response);
        for later in ["{\"verdict\": \"LOST\"}", "{\"of_a_later_version\": 1}"] {
            assert_eq!(read::<Flow>(later).unwrap(), Flow::default());
            assert!(read_exactly::<Flow>(later).is_err());
        }
        assert!(read::<Flow>("{\"verdict\": }").is_err());
    }
}
