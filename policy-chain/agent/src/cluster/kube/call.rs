//! Requests to the API server: deadlines, bounds, and why they failed.

use std::fmt;
use std::time::Duration;

use ::kube::Client;
use ::kube::client::Body;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, RETRY_AFTER};
use http::{Method, Request};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tokio::time::timeout;

use super::list::ListError;
use crate::cluster::ClusterError;

/// Bytes of the answer to a question about one object, or of an error.
const MAX_ANSWER: usize = 4 * 1024 * 1024;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// The server said no.
    #[error("the API server answers {code} {reason}: {message}")]
    Refused { code: u16, reason: String, message: String, retry_after: Option<Duration> },
    /// There was no answer.
    #[error("the API server cannot be reached")]
    Unreachable(#[source] Box<::kube::Error>),
    #[error("the API server did not answer within {0:?}")]
    Slow(Duration),
    #[error("the answer broke off")]
    Broken(#[source] Box<::kube::Error>),
    #[error("the answer has more than {0} bytes")]
    TooLarge(usize),
    #[error("the answer is not what was asked for")]
    Garbled(#[source] serde_json::Error),
    #[error("the answer is not what was asked for")]
    NoList(#[from] ListError),
    #[error("{0}")]
    Odd(&'static str),
    #[error("the request cannot be made")]
    Unmade(#[from] http::Error),
}

impl CallError {
    pub(super) const fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    pub(super) const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether trying again may help without anybody doing something.
    pub(super) const fn passes(&self) -> bool {
        match self.code() {
            Some(code) => code == 429 || code >= 500,
            None => true,
        }
    }

    /// As the seam has it.
    pub(super) fn into_cluster(self, action: String) -> ClusterError {
        match self.code() {
            Some(401 | 403) => ClusterError::Denied { action, source: self.into() },
            _ => ClusterError::Unavailable { action, source: self.into() },
        }
    }
}

/// What a list or an object is asked for as.
pub(super) const JSON: &str = "application/json";

/// Only the metadata of each object.
pub(super) const METADATA_ONLY: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";

/// The API server, as it is asked.
#[derive(Clone)]
pub(super) struct Api {
    pub(super) client: Client,
    /// How long it may take to begin an answer, and over each further part of it.
    pub(super) patience: Duration,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").field("patience", &self.patience).finish_non_exhaustive()
    }
}

impl Api {
    /// Sends a GET. The answer has begun, and is no refusal.
    pub(super) async fn get(&self, path: &str, accept: &str) -> Result<Body, CallError> {
        self.send(Request::get(path).header(ACCEPT, accept), Body::empty()).await
    }

    /// What a GET answers, whole.
    pub(super) async fn object(&self, path: &str) -> Result<Vec<u8>, CallError> {
        self.read(self.get(path, JSON).await?).await
    }

    /// Sends a JSON body.
    pub(super) async fn write(&self, method: Method, path: &str, form: &str, body: &Value) -> Result<(), CallError> {
        let request = Request::builder().method(method).uri(path).header(ACCEPT, JSON).header(CONTENT_TYPE, form);
        let answer = self.send(request, Body::from(body.to_string().into_bytes())).await?;
        // Read to its end, so that the connection can be used again.
        self.read(answer).await.map(drop)
    }

    async fn send(&self, request: http::request::Builder, body: Body) -> Result<Body, CallError> {
        // A watch that is compressed comes in blocks, and late.
        let request = request.header(ACCEPT_ENCODING, "identity").body(body)?;
        let sent = timeout(self.patience, self.client.send(request)).await;
        let sent = sent.map_err(|_elapsed| CallError::Slow(self.patience))?;
        let response = sent.map_err(|error| CallError::Unreachable(Box::new(error)))?;
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        let code = response.status().as_u16();
        let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let body = self.read(response.into_body()).await.unwrap_or_default();
        let status: Value = serde_json::from_slice(&body).unwrap_or_default();
        let text = |name: &str| {
            let text = status.get(name).and_then(Value::as_str).unwrap_or_default();
            text.chars().take(300).collect::<String>()
        };
        Err(CallError::Refused {
            code,
            reason: text("reason"),
            message: text("message"),
            retry_after: seconds.map(Duration::from_secs),
        })
    }

    /// A whole answer, bounded.
    async fn read(&self, mut body: Body) -> Result<Vec<u8>, CallError> {
        let mut bytes = Vec::new();
        while let Some(data) = part(&mut body, self.patience).await? {
            if bytes.len() + data.len() > MAX_ANSWER {
                return Err(CallError::TooLarge(MAX_ANSWER));
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes)
    }
}

/// The next part of an answer; none at its end.
pub(super) async fn part(body: &mut Body, patience: Duration) -> Result<Option<bytes::Bytes>, CallError> {
    loop {
        let frame = timeout(patience, body.frame()).await.map_err(|_elapsed| CallError::Slow(patience))?;
        match frame {
            None => return Ok(None),
            Some(Err(error)) => return Err(CallError::Broken(Box::new(error))),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}
