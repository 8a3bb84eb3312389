//! The calls of the Kubernetes container runtime interface (CRI, `runtime.v1`) that a test needs.
//!
//! gRPC is one HTTP/2 stream a call (h2), and the messages are declared here with the field numbers of
//! `k8s.io/cri-api/pkg/apis/runtime/v1/api.proto`; fields that no test sets or reads are left out, as protobuf allows.
//! Generated clients would need protoc on every machine that builds the workspace.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use prost::Message;
use tokio::task::JoinHandle;

/// How long a call may take: the kubelet gives a sandbox four minutes, a test needs less patience.
const CALL_LIMIT: Duration = Duration::from_secs(120);
/// The largest answer that is read, in bytes.
const ANSWER_LIMIT: usize = 1 << 20;
/// Flag and length before each message (gRPC over HTTP/2, "Length-Prefixed-Message").
const PREFIX: usize = 5;

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum CriError {
    /// The connection could not be set up or broke.
    #[error("{method}: the connection to the runtime broke")]
    Connection {
        /// The call.
        method: &'static str,
        /// The reason.
        #[source]
        source: h2::Error,
    },
    /// The socket could not be used.
    #[error("the runtime's socket cannot be used")]
    Socket(#[source] std::io::Error),
    /// The runtime did not answer in time.
    #[error("{method}: no answer within {} s", CALL_LIMIT.as_secs())]
    Late {
        /// The call.
        method: &'static str,
    },
    /// The runtime refused.
    #[error("{method}: {message} (gRPC status {code})")]
    Refused {
        /// The call.
        method: &'static str,
        /// gRPC's status code.
        code: u32,
        /// The runtime's reason.
        message: String,
    },
    /// The answer is not what the interface says.
    #[error("{method}: the answer is malformed: {reason}")]
    Malformed {
        /// The call.
        method: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// A connection to a container runtime.
#[derive(Debug)]
pub(super) struct CriClient {
    requests: SendRequest<Bytes>,
    connection: JoinHandle<()>,
}

impl Drop for CriClient {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl CriClient {
    /// Speaks over `stream`, a connected socket of the runtime.
    ///
    /// # Errors
    /// [`CriError::Socket`] and [`CriError::Connection`].
    pub(super) async fn new(stream: UnixStream) -> Result<Self, CriError> {
        stream.set_nonblocking(true).map_err(CriError::Socket)?;
        let stream = tokio::net::UnixStream::from_std(stream).map_err(CriError::Socket)?;
        let (requests, connection) = h2::client::handshake(stream)
            .await
            .map_err(|source| CriError::Connection { method: "handshake", source })?;
        // A broken connection is seen by the call that uses it.
        let connection = tokio::spawn(async move { drop(connection.await) });
        Ok(Self { requests, connection })
    }

    pub(super) async fn call<Q: Message, A: Message + Default>(
        &self,
        method: &'static str,
        request: &Q,
    ) -> Result<A, CriError> {
        tokio::time::timeout(CALL_LIMIT, self.exchange(method, request)).await.unwrap_or(Err(CriError::Late { method }))
    }

    async fn exchange<Q: Message, A: Message + Default>(
        &self,
        method: &'static str,
        request: &Q,
    ) -> Result<A, CriError> {
        let broken = |source| CriError::Connection { method, source };
        let malformed = |reason: String| CriError::Malformed { method, reason };
        let head = http::Request::post(format!("http://localhost/runtime.v1.{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .map_err(|error| malformed(error.to_string()))?;
        let mut requests = self.requests.clone().ready().await.map_err(broken)?;
        let (response, mut stream) = requests.send_request(head, false).map_err(broken)?;
        stream.send_data(frame(request), true).map_err(broken)?;
        let response = response.await.map_err(broken)?;
        let (head, mut body) = response.into_parts();
        // A refusal may come as headers alone.
        refusal(method, &head.headers)?;
        let mut answer = BytesMut::new();
        while let Some(chunk) = body.data().await {
            let chunk = chunk.map_err(broken)?;
            body.flow_control().release_capacity(chunk.len()).map_err(broken)?;
            if answer.len() + chunk.len() > ANSWER_LIMIT {
                return Err(malformed(format!("it is longer than {ANSWER_LIMIT} bytes")));
            }
            answer.extend_from_slice(&chunk);
        }
        if let Some(trailers) = body.trailers().await.map_err(broken)? {
            refusal(method, &trailers)?;
        }
        message(&mut answer.freeze())
            .ok_or_else(|| malformed("no whole message".into()))
            .and_then(|bytes| A::decode(bytes).map_err(|error| malformed(error.to_string())))
    }
}

fn frame(message: &impl Message) -> Bytes {
    let body = message.encode_to_vec();
    let mut frame = BytesMut::with_capacity(PREFIX + body.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(body.len()).unwrap_or(u32::MAX));
    frame.extend_from_slice(&body);
    frame.freeze()
}

/// The one message of an answer, if it is whole and not compressed.
fn message(answer: &mut Bytes) -> Option<Bytes> {
    if answer.len() < PREFIX || answer.get_u8() != 0 {
        return None;
    }
    let length = usize::try_from(answer.get_u32()).ok()?;
    (answer.len() == length).then(|| answer.clone())
}

fn refusal(method: &'static str, headers: &http::HeaderMap) -> Result<(), CriError> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match text("grpc-status").parse() {
        Ok(0) | Err(_) => Ok(()),
        Ok(code) => Err(CriError::Refused { method, code, message: percent_decoded(text("grpc-message")) }),
    }
}

/// gRPC's messages carry all but printable ASCII as `%XX`.
fn percent_decoded(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        let ahead: Vec<u8> = bytes.clone().take(2).collect();
        let code = std::str::from_utf8(&ahead).ok().filter(|code| code.len() == 2);
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()).filter(|_| byte == b'%') {
            Some(value) => {
                decoded.push(value);
                bytes.nth(1);
            }
            None => decoded.push(byte),
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct PodSandboxMetadata {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) uid: String,
    #[prost(string, tag = "3")]
    pub(super) namespace: String,
    #[prost(uint32, tag = "4")]
    pub(super) attempt: u32,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct LinuxPodSandboxConfig {
    #[prost(string, tag = "1")]
    pub(super) cgroup_parent: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct PodSandboxConfig {
    #[prost(message, optional, tag = "1")]
    pub(super) metadata: Option<PodSandboxMetadata>,
    #[prost(string, tag = "2")]
    pub(super) hostname: String,
    #[prost(btree_map = "string, string", tag = "7")]
    pub(super) annotations: BTreeMap<String, String>,
    #[prost(message, optional, tag = "8")]
    pub(super) linux: Option<LinuxPodSandboxConfig>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct RunPodSandboxRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct RunPodSandboxResponse {
    #[prost(string, tag = "1")]
    pub(super) pod_sandbox_id: String,
}

/// Of StopPodSandbox, RemovePodSandbox and PodSandboxStatus, which all begin with the sandbox's id.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct PodSandboxRequest {
    #[prost(string, tag = "1")]
    pub(super) pod_sandbox_id: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct PodIp {
    #[prost(string, tag = "1")]
    pub(super) ip: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct PodSandboxNetworkStatus {
    #[prost(string, tag = "1")]
    pub(super) ip: String,
    #[prost(message, repeated, tag = "2")]
    pub(super) additional_ips: Vec<PodIp>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct PodSandboxStatus {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    /// 0 is SANDBOX_READY.
    #[prost(int32, tag = "3")]
    pub(super) state: i32,
    #[prost(message, optional, tag = "5")]
    pub(super) network: Option<PodSandboxNetworkStatus>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct PodSandboxStatusResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) status: Option<PodSandboxStatus>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct PodSandbox {
    #[prost(string, tag = "1")]
    pub(super) id: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct ListPodSandboxResponse {
    #[prost(message, repeated, tag = "1")]
    pub(super) items: Vec<PodSandbox>,
}

/// A request or an answer of which no field is used.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(super) struct Empty {}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct RuntimeCondition {
    #[prost(string, tag = "1")]
    pub(super) kind: String,
    #[prost(bool, tag = "2")]
    pub(super) status: bool,
    #[prost(string, tag = "4")]
    pub(super) message: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct RuntimeStatus {
    #[prost(message, repeated, tag = "1")]
    pub(super) conditions: Vec<RuntimeCondition>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) status: Option<RuntimeStatus>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct ImageSpec {
    #[prost(string, tag = "1")]
    pub(super) image: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct ImageStatusRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) image: Option<ImageSpec>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct ImageStatusResponse {
    /// The image; what is known of it does not matter here.
    #[prost(message, optional, tag = "1")]
    pub(super) image: Option<Empty>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct ContainerMetadata {
    #[prost(string, tag = "1")]
    pub(super) name: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    pub(super) metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    pub(super) image: Option<ImageSpec>,
    #[prost(string, repeated, tag = "3")]
    pub(super) command: Vec<String>,
    /// Must be there, or containerd 1.6 fails on it.
    #[prost(message, optional, tag = "15")]
    pub(super) linux: Option<Empty>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct CreateContainerRequest {
    #[prost(string, tag = "1")]
    pub(super) pod_sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    pub(super) config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    pub(super) sandbox_config: Option<PodSandboxConfig>,
}

/// The answer to CreateContainer and the request of StartContainer.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct ContainerId {
    #[prost(string, tag = "1")]
    pub(super) container_id: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct ExecSyncRequest {
    #[prost(string, tag = "1")]
    pub(super) container_id: String,
    #[prost(string, repeated, tag = "2")]
    pub(super) cmd: Vec<String>,
    /// Seconds.
    #[prost(int64, tag = "3")]
    pub(super) timeout: i64,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct ExecSyncResponse {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) stdout: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) stderr: Vec<u8>,
    #[prost(int32, tag = "3")]
    pub(super) exit_code: i32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_travels_with_its_flag_and_length() {
        let request = PodSandboxRequest { pod_sandbox_id: "abc".into() };
        let mut framed = frame(&request);
        assert_eq!(&framed[..], b"\x00\x00\x00\x00\x05\x0a\x03abc");
        assert_eq!(PodSandboxRequest::decode(message(&mut framed).unwrap()).unwrap(), request);
        for broken in [&b""[..], b"\x00\x00", b"\x01\x00\x00\x00\x00", b"\x00\x00\x00\x00\x02a"] {
            assert_eq!(message(&mut Bytes::copy_from_slice(broken)), None, "{broken:?}");
        }
    }

    #[test]
    fn refusals_are_readable() {
        let mut headers = http::HeaderMap::new();
        refusal("M", &headers).unwrap();
        headers.insert("grpc-status", "2".parse().unwrap());
        headers.insert("grpc-message", "no 100%25 luck: %C3%A9 %zz %".parse().unwrap());
        assert_eq!(refusal("M", &headers).unwrap_err().to_string(), "M: no 100% luck: é %zz % (gRPC status 2)");
    }
}
