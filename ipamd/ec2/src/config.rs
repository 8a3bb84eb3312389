//! What the AWS clients are told from outside, beside what the SDK reads by itself (`AWS_ENDPOINT_URL_EC2`,
//! `AWS_EC2_METADATA_SERVICE_ENDPOINT`, `AWS_REGION`, credentials).

use std::time::Duration;

use aws_credential_types::provider::SharedCredentialsProvider;

/// VPC CNI's name for the EC2 endpoint. The SDK's own name goes before it.
pub const EC2_ENDPOINT: &str = "AWS_EC2_ENDPOINT";
/// The SDK's name for the EC2 endpoint.
const SDK_EC2_ENDPOINT: &str = "AWS_ENDPOINT_URL_EC2";

/// How the clients are set up.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long one call of EC2 may take, credentials and connection included (`HTTP_TIMEOUT`).
    pub call_timeout: Duration,
    /// EC2's endpoint; none leaves it to the SDK.
    pub ec2_endpoint: Option<String>,
    /// The metadata service's endpoint; none leaves it to the SDK.
    pub imds_endpoint: Option<String>,
    /// The region; none takes the environment's, the profile's, else that of the instance.
    pub region: Option<String>,
    /// Where credentials come from; none leaves it to the SDK's default chain.
    pub credentials: Option<SharedCredentialsProvider>,
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}={value:?} cannot be used: it must be a URL such as https://ec2.eu-west-1.amazonaws.com")]
pub struct InvalidSetting {
    /// The variable.
    pub name: &'static str,
    /// Its value, cut to 200 characters.
    pub value: String,
}

impl InvalidSetting {
    pub(crate) fn new(name: &'static str, value: &str) -> Self {
        Self { name, value: value.chars().take(200).collect() }
    }
}

impl Settings {
    /// What the environment says.
    ///
    /// # Errors
    /// [`InvalidSetting`] when `AWS_EC2_ENDPOINT` is no HTTP URL.
    #[expect(clippy::disallowed_methods, reason = "config.rs is where the environment is read")]
    pub fn from_environment(call_timeout: Duration) -> Result<Self, InvalidSetting> {
        Self::load(call_timeout, &|name| std::env::var(name).ok())
    }

    /// Reads variables from `source`; an empty value is an unset one.
    ///
    /// # Errors
    /// [`InvalidSetting`] when `AWS_EC2_ENDPOINT` is no HTTP URL.
    pub fn load(call_timeout: Duration, source: &dyn Fn(&str) -> Option<String>) -> Result<Self, InvalidSetting> {
        let set = |name: &str| source(name).filter(|value| !value.is_empty());
        let ec2_endpoint = match (set(SDK_EC2_ENDPOINT), set(EC2_ENDPOINT)) {
            // The SDK reads its own.
            (Some(_), _) | (None, None) => None,
            (None, Some(url)) => Some(http_url(EC2_ENDPOINT, url)?),
        };
        Ok(Self { call_timeout, ec2_endpoint, imds_endpoint: None, region: None, credentials: None })
    }
}

fn http_url(name: &'static str, value: String) -> Result<String, InvalidSetting> {
    let host = value.strip_prefix("http://").or_else(|| value.strip_prefix("https://"));
    match host {
        Some(host) if !host.is_empty() && !host.starts_with('/') && !value.contains(char::is_whitespace) => Ok(value),
        _ => Err(InvalidSetting::new(name, &value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(variables: &[(&str, &str)]) -> Result<Settings, InvalidSetting> {
        let find = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        Settings::load(Duration::from_secs(10), &find)
    }

    #[test]
    fn the_sdks_endpoint_goes_before_vpc_cnis() {
        assert_eq!(load(&[]).unwrap().ec2_endpoint, None);
        assert_eq!(load(&[("AWS_EC2_ENDPOINT", "")]).unwrap().ec2_endpoint, None);
        let only = load(&[("AWS_EC2_ENDPOINT", "http://127.0.0.1:4566")]).unwrap();
        assert_eq!(only.ec2_endpoint.as_deref(), Some("http://127.0.0.1:4566"));
        let both = load(&[("AWS_EC2_ENDPOINT", "http://a"), ("AWS_ENDPOINT_URL_EC2", "http://b")]).unwrap();
        assert_eq!(both.ec2_endpoint, None);
    }

    #[test]
    fn an_endpoint_that_is_no_url_is_refused_with_its_name() {
        for bad in ["ec2", "ftp://x", "http://", "https:///path", "http://a b"] {
            let error = load(&[("AWS_EC2_ENDPOINT", bad)]).unwrap_err();
            assert!(error.to_string().starts_with(&format!("AWS_EC2_ENDPOINT={bad:?} cannot be used")), "{error}");
        }
    }
}
