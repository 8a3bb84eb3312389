//! Requests to the API server: deadlines, bounds, and why they failed.

use std::fmt;
use std::time::Duration;

use ::kube::client::Body;
use ::kube::{Client, Config};
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, RETRY_AFTER};
use http::{Method, Request};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tokio::time::timeout;

use crate::list::ListError;

/// Bytes of the answer to a question about one object, or of an error.
const MAX_ANSWER: usize = 4 * 1024 * 1024;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The server said no.
    #[error("the API server answers {code} {reason}: {message}")]
    Refused {
        /// The status of HTTP.
        code: u16,
        /// `reason` of the answer.
        reason: String,
        /// `message` of the answer.
        message: String,
        /// When it may be asked again, if it says so.
        retry_after: Option<Duration>,
    },
    /// There was no answer.
    #[error("the API server cannot be reached")]
    Unreachable(#[source] Box<::kube::Error>),
    /// It did not begin, or not go on, in time.
    #[error("the API server did not answer within {0:?}")]
    Slow(Duration),
    /// The connection ended within the answer.
    #[error("the answer broke off")]
    Broken(#[source] Box<::kube::Error>),
    /// The answer is longer than it may be.
    #[error("the answer has more than {0} bytes")]
    TooLarge(usize),
    /// It is no JSON, or other JSON than asked for.
    #[error("the answer is not what was asked for")]
    Garbled(#[source] serde_json::Error),
    /// It is no list.
    #[error("the answer is not what was asked for")]
    NoList(#[from] ListError),
    /// Something that must not be.
    #[error("{0}")]
    Odd(&'static str),
    /// A path or a header that HTTP does not allow.
    #[error("the request cannot be made")]
    Unmade(#[from] http::Error),
}

impl CallError {
    /// The status of HTTP, if the server answered.
    #[must_use]
    pub const fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// When the server wants to be asked again.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether trying again may help without anybody doing something.
    #[must_use]
    pub const fn passes(&self) -> bool {
        match self.code() {
            Some(code) => code == 429 || code >= 500,
            None => true,
        }
    }
}

/// The API server cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// There is neither a kubeconfig nor a service account.
    #[error(
        "no API server is configured: set KUBECONFIG, or run in a pod with a service account, or use --cluster-dir"
    )]
    Unconfigured(#[source] Box<::kube::config::InferConfigError>),
    /// The address that goes before the configured one cannot be used.
    #[error("{url:?} is no URL of an API server")]
    Endpoint {
        /// What was said.
        url: String,
        /// What is wrong with it.
        #[source]
        source: http::uri::InvalidUri,
    },
    /// What is configured cannot be used.
    #[error("the client of the API server cannot be made")]
    Client(#[source] Box<::kube::Error>),
}

/// A client for the API server that KUBECONFIG or the pod's service account names; or, with `endpoint`, for the one at that
/// URL, with the service account's token and certificate authority all the same. It does not retry by itself: attempts and
/// their pauses are ours.
///
/// # Errors
/// There is none, or its configuration cannot be used.
pub async fn connect(endpoint: Option<&str>) -> Result<Client, ConnectError> {
    let found = Config::infer().await.map_err(|error| ConnectError::Unconfigured(Box::new(error)))?;
    Client::try_from(ours(found, endpoint)?).map_err(|error| ConnectError::Client(Box::new(error)))
}

/// The configuration that was found, as we use it.
fn ours(found: Config, endpoint: Option<&str>) -> Result<Config, ConnectError> {
    let mut config = found;
    if let Some(url) = endpoint {
        config.cluster_url = url.parse().map_err(|source| ConnectError::Endpoint { url: url.to_owned(), source })?;
    }
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(10));
    Ok(config)
}

/// What a list or an object is asked for as.
pub const JSON: &str = "application/json";

/// Only the metadata of each object.
pub(crate) const METADATA_ONLY: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";

/// The API server, as it is asked.
#[derive(Clone)]
pub struct Api {
    /// The client; it should not retry by itself.
    pub client: Client,
    /// How long it may take to begin an answer, and over each further part of it.
    pub patience: Duration,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").field("patience", &self.patience).finish_non_exhaustive()
    }
}

impl Api {
    /// Sends a GET. The answer has begun, and is no refusal.
    pub(crate) async fn get(&self, path: &str, accept: &str) -> Result<Body, CallError> {
        self.send(Request::get(path).header(ACCEPT, accept), Body::empty()).await
    }

    /// What a GET answers, whole.
    ///
    /// # Errors
    /// The server refuses it, does not answer in time, or answers with more than 4 MiB.
    pub async fn object(&self, path: &str) -> Result<Vec<u8>, CallError> {
        self.read(self.get(path, JSON).await?).await
    }

    /// Sends a JSON body of the media type `form`. What the server answers, whole.
    ///
    /// # Errors
    /// As [`Self::object`].
    pub async fn write(&self, method: Method, path: &str, form: &str, body: &Value) -> Result<Vec<u8>, CallError> {
        let request = Request::builder().method(method).uri(path).header(ACCEPT, JSON).header(CONTENT_TYPE, form);
        let answer = self.send(request, Body::from(body.to_string().into_bytes())).await?;
        // Read to its end, so that the connection can be used again.
        self.read(answer).await
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
pub(crate) async fn part(body: &mut Body, patience: Duration) -> Result<Option<bytes::Bytes>, CallError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn service_account() -> Config {
        let mut config = Config::new(http::Uri::from_static("https://10.100.0.1"));
        config.root_cert = Some(vec![vec![1, 2, 3]]);
        config.auth_info.token_file = Some("/token".to_owned());
        config
    }

    #[test]
    fn an_endpoint_goes_before_the_address_and_leaves_token_and_authority() {
        for (endpoint, url) in [(None, "https://10.100.0.1/"), (Some("https://api:6443/base"), "https://api:6443/base")]
        {
            let config = ours(service_account(), endpoint).unwrap();
            assert_eq!(config.cluster_url.to_string(), url);
            assert_eq!(config.root_cert, service_account().root_cert);
            assert_eq!(config.auth_info.token_file.as_deref(), Some("/token"));
            assert!(!config.default_retry);
        }
        let error = ours(service_account(), Some("api server")).unwrap_err();
        assert_eq!(error.to_string(), "\"api server\" is no URL of an API server");
    }
}
