//! From the SDK's errors to [`CloudError`]: what there is to do about each, with EC2's own code and words kept.

use std::error::Error;
use std::io;
use std::time::Duration;

use aws_config::imds::client::error::{ImdsError, TokenError};
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ec2::error::{ConnectorError, ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use sluice_ipamd_core::cloud::{Api, CloudError, CloudErrorKind};

/// The longest message that is kept, in characters. An UnauthorizedOperation with its encoded part has about 1,500.
const LONGEST: usize = 2_000;

/// How the SDK's HTTP client calls a connection that did not come about in time.
const CONNECT_TIMEOUT: &str = "HTTP connect timeout";

/// What a call asked for, where that changes what its refusal means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Single addresses.
    Addresses,
    /// /28 prefixes.
    Prefixes,
    /// Neither: a description, or a change without addresses.
    Other,
}

/// A [`CloudError`] whose text is no longer than what is worth a log line.
pub(crate) fn cloud_error(api: Api, kind: CloudErrorKind, code: &str, message: &str) -> CloudError {
    let cut = |text: &str| text.chars().take(LONGEST).collect();
    CloudError { api, kind, code: cut(code), message: cut(message), retry_after: None }
}

/// An answer that says what it must not. After a call that changes something its effect is unknown, which is what a
/// timeout means too.
pub(crate) fn malformed(api: Api, message: &str) -> CloudError {
    let kind = if changes(api) { CloudErrorKind::Timeout } else { CloudErrorKind::Other };
    cloud_error(api, kind, "MalformedAnswer", message)
}

fn changes(api: Api) -> bool {
    match api {
        Api::DescribeInstances
        | Api::DescribeInstanceTypes
        | Api::DescribeNetworkInterfaces
        | Api::DescribeRouteTables
        | Api::DescribeSubnets
        | Api::Imds => false,
        Api::AssignIpv6Addresses
        | Api::AssignPrivateIpAddresses
        | Api::AttachNetworkInterface
        | Api::CreateNetworkInterface
        | Api::CreateTags
        | Api::DeleteNetworkInterface
        | Api::DetachNetworkInterface
        | Api::ModifyNetworkInterfaceAttribute
        | Api::UnassignPrivateIpAddresses => true,
    }
}

/// Translates the failure of an EC2 call.
pub(crate) fn of_ec2<E>(api: Api, asked: Asked, error: &SdkError<E, HttpResponse>) -> CloudError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    match error {
        SdkError::ServiceError(service) => {
            let status = service.raw().status().as_u16();
            let code = service.err().code().unwrap_or_default();
            let message = decoded(api, service.err().message().unwrap_or_default());
            if (200..300).contains(&status) {
                return malformed(api, &format!("the answer cannot be read: {}", causes(error)));
            }
            let kind = kind_of(code, message, status, asked);
            let mut found = if code.is_empty() {
                cloud_error(api, kind, &format!("Http{status}"), "the answer has no error code")
            } else {
                cloud_error(api, kind, code, message)
            };
            found.retry_after = retry_after(service.raw());
            found
        }
        SdkError::ResponseError(response) => {
            let status = response.raw().status().as_u16();
            let message = format!("the answer cannot be read: {}", causes(error));
            if (200..300).contains(&status) {
                return malformed(api, &message);
            }
            let kind = kind_of("", "", status, asked);
            CloudError {
                retry_after: retry_after(response.raw()),
                ..cloud_error(api, kind, &format!("Http{status}"), &message)
            }
        }
        SdkError::TimeoutError(_) => cloud_error(api, CloudErrorKind::Timeout, "Timeout", &causes(error)),
        SdkError::DispatchFailure(_) => unsent(api, error),
        // The request was never made: a bad endpoint, or no region.
        _ => unsent(api, error),
    }
}

/// A failure without any answer.
fn unsent(api: Api, error: &(dyn Error + 'static)) -> CloudError {
    let message = causes(error);
    if let Some(credentials) = find::<CredentialsError>(error) {
        let (kind, code) = of_credentials(credentials);
        return cloud_error(api, kind, code, &message);
    }
    if find::<ConnectorError>(error).is_some_and(ConnectorError::is_timeout) && !message.contains(CONNECT_TIMEOUT) {
        return cloud_error(api, CloudErrorKind::Timeout, "Timeout", &message);
    }
    if never_sent(error) {
        return cloud_error(api, CloudErrorKind::Unavailable, "Unreachable", &message);
    }
    if changes(api) {
        // A connection that broke under the call: nobody knows whether it was carried out.
        cloud_error(api, CloudErrorKind::Timeout, "ConnectionLost", &message)
    } else {
        cloud_error(api, CloudErrorKind::Unavailable, "ConnectionLost", &message)
    }
}

fn of_credentials(error: &CredentialsError) -> (CloudErrorKind, &'static str) {
    match error {
        CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_) => {
            (CloudErrorKind::Denied, "NoCredentials")
        }
        // Nothing was sent to EC2, so nothing can have happened there.
        CredentialsError::ProviderTimedOut(_) => (CloudErrorKind::Unavailable, "CredentialsTimeout"),
        _ => (CloudErrorKind::Unavailable, "CredentialsUnavailable"),
    }
}

/// Whether the request cannot have reached anyone.
fn never_sent(error: &(dyn Error + 'static)) -> bool {
    let refused = chain(error).filter_map(|cause| cause.downcast_ref::<io::Error>()).any(|cause| {
        matches!(
            cause.kind(),
            io::ErrorKind::ConnectionRefused
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::NetworkDown
                | io::ErrorKind::AddrNotAvailable
        )
    });
    // What the HTTP client says of every failure before a connection stands: names, TLS, sockets.
    refused
        || chain(error)
            .map(ToString::to_string)
            .any(|words| words.contains("(Connect)") || words.contains(CONNECT_TIMEOUT))
}

/// What IAM says of a denial in words: who may not do what to which object, and why. What follows is a thousand characters
/// that hide this, and that only a person can have decoded (`aws sts decode-authorization-message`): it is logged.
fn decoded(api: Api, message: &str) -> &str {
    match message.split_once("Encoded authorization failure message:") {
        Some((words, encoded)) => {
            tracing::info!(api = %api, encoded = encoded.trim(), "IAM denies a call, and encodes why");
            words.trim_end()
        }
        None => message,
    }
}

/// What EC2's error codes mean (EC2 API reference, "Error codes"; reference/vpc-cni.md 2.13).
///
/// `status` decides where the code says nothing.
pub(crate) fn kind_of(code: &str, message: &str, status: u16, asked: Asked) -> CloudErrorKind {
    match code {
        "RequestLimitExceeded"
        | "Throttling"
        | "ThrottlingException"
        | "ThrottledException"
        | "EC2ThrottledException"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "TooManyRequestsException"
        | "BandwidthLimitExceeded"
        | "SlowDown"
        | "PriorRequestNotComplete" => CloudErrorKind::Throttled,
        "UnauthorizedOperation"
        | "AccessDenied"
        | "AccessDeniedException"
        | "AuthFailure"
        | "Blocked"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "IncompleteSignature"
        | "InvalidAccessKeyId"
        | "InvalidClientTokenId"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "OptInRequired"
        | "PendingVerification"
        | "RequestExpired"
        | "SignatureDoesNotMatch"
        | "UnrecognizedClientException" => CloudErrorKind::Denied,
        "InsufficientFreeAddressesInSubnet" => CloudErrorKind::InsufficientAddresses,
        "InsufficientCidrBlocks" => CloudErrorKind::InsufficientPrefixes,
        "PrivateIpAddressLimitExceeded" => CloudErrorKind::AddressLimit,
        "AttachmentLimitExceeded" => CloudErrorKind::AttachmentLimit,
        "InvalidParameterValue" => invalid_parameter(message, asked),
        "IncorrectState"
        | "IncorrectInstanceState"
        | "InvalidInstanceState"
        | "InvalidState"
        | "IdempotentParameterMismatch"
        | "InvalidNetworkInterface.InUse"
        | "InvalidNetworkInterfaceId.InUse"
        | "InvalidIPAddress.InUse"
        | "InvalidIpAddress.InUse"
        | "DependencyViolation"
        | "Resource.AlreadyAssigned"
        | "Resource.AlreadyAssociated"
        | "ResourceAlreadyAssigned" => CloudErrorKind::Conflict,
        _ if code.ends_with("NotFound") => CloudErrorKind::NotFound,
        "InternalError"
        | "InternalFailure"
        | "Unavailable"
        | "ServiceUnavailable"
        | "ServerInternal"
        | "RequestTimeout"
        | "RequestTimeoutException" => CloudErrorKind::Unavailable,
        _ => match status {
            401 | 403 => CloudErrorKind::Denied,
            408 | 500..=599 => CloudErrorKind::Unavailable,
            429 => CloudErrorKind::Throttled,
            _ => CloudErrorKind::Other,
        },
    }
}

/// `InvalidParameterValue` is what EC2 answers to a dozen different things; only its words tell them apart.
fn invalid_parameter(message: &str, asked: Asked) -> CloudErrorKind {
    let message = message.to_lowercase();
    let says = |words: &str| message.contains(words);
    if says("sufficient free ipv4 addresses or prefixes") {
        // One sentence for both; what was asked for is what there is too little of.
        if asked == Asked::Addresses {
            CloudErrorKind::InsufficientAddresses
        } else {
            CloudErrorKind::InsufficientPrefixes
        }
    } else if says("device index")
        || says("already has an interface attached")
        || says("not assigned to interface")
        || says("is currently in use")
    {
        CloudErrorKind::Conflict
    } else {
        CloudErrorKind::Other
    }
}

/// When the answer says to come again: `Retry-After` in seconds (RFC 9110, 10.2.3), or `x-amz-retry-after` in
/// milliseconds. An hour at most: no server may switch ipamd off.
fn retry_after(response: &HttpResponse) -> Option<Duration> {
    let number = |name: &str| response.headers().get(name)?.trim().parse::<u64>().ok();
    let wait = number("x-amz-retry-after")
        .map(Duration::from_millis)
        .or_else(|| number("retry-after").map(Duration::from_secs))?;
    Some(wait.min(Duration::from_secs(3600)))
}

/// Translates the failure of a GET of the metadata service.
pub(crate) fn of_imds(key: &str, error: &ImdsError) -> CloudError {
    let (kind, code) = match error {
        ImdsError::ErrorResponse(response) => {
            let status = response.response().status().as_u16();
            let kind = match status {
                404 => CloudErrorKind::NotFound,
                401 | 403 => CloudErrorKind::Denied,
                429 => CloudErrorKind::Throttled,
                500..=599 => CloudErrorKind::Unavailable,
                _ => CloudErrorKind::Other,
            };
            let code = format!("Http{status}");
            // The error's own text is the whole response.
            return cloud_error(Api::Imds, kind, &code, &format!("reading {key}: the metadata service refuses"));
        }
        ImdsError::IoError(_) => (CloudErrorKind::Timeout, "Timeout"),
        ImdsError::FailedToLoadToken(_) => match token_status(error) {
            // The service is switched off for this instance, or for those behind one more hop.
            Some(403) => (CloudErrorKind::Denied, "Http403"),
            Some(_) => (CloudErrorKind::Unavailable, "NoToken"),
            None => (CloudErrorKind::Unavailable, "Unreachable"),
        },
        _ => (CloudErrorKind::Unavailable, "Unreachable"),
    };
    cloud_error(Api::Imds, kind, code, &format!("reading {key}: {}", causes(error)))
}

/// With which status a token was refused.
fn token_status(error: &ImdsError) -> Option<u16> {
    let refused: &SdkError<TokenError, HttpResponse> = error.source()?.downcast_ref()?;
    Some(refused.raw_response()?.status().as_u16())
}

/// The error and all its causes, each once.
fn causes(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut last = String::new();
    for cause in chain(error) {
        let words = cause.to_string();
        if words != last && !text.ends_with(&words) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&words);
        }
        last = words;
    }
    text
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    // No honest chain is longer.
    std::iter::successors(Some(error), |&error| error.source()).take(32)
}

fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    chain(error).find_map(|cause| cause.downcast_ref())
}

#[cfg(test)]
mod tests;
