//! Calls that fail: once each, and what is said of them.

use std::time::Duration;

use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use sluice_contract::id::AttachmentId;
use sluice_ipamd_core::cloud::{AddressCount, Api, CloudError, CloudErrorKind};
use sluice_ipamd_daemon::cloud::Cloud;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use super::answers::{ENI, id};
use super::server::{Answer, Server};
use super::{cloud, settings};
use crate::{Ec2Cloud, Settings};

fn attachment() -> AttachmentId {
    "eni-attach-0123456789abcdef0".parse().unwrap()
}

#[tokio::test]
async fn a_refusal_keeps_its_code_its_words_and_its_time_and_is_not_repeated() {
    let refusal = Answer::error(503, "RequestLimitExceeded", "Request limit exceeded.").with("Retry-After", "7");
    let server = Server::start(move |_| Some(refusal.clone())).await;
    let error = cloud(&server).assign(&id(ENI), AddressCount::Secondary(1)).await.unwrap_err();
    let expected = CloudError {
        api: Api::AssignPrivateIpAddresses,
        kind: CloudErrorKind::Throttled,
        code: "RequestLimitExceeded".into(),
        message: "Request limit exceeded.".into(),
        retry_after: Some(Duration::from_secs(7)),
    };
    assert_eq!(error, expected);
    assert_eq!(server.asked().len(), 1, "the SDK's retries are off");
}

#[tokio::test]
async fn a_denial_says_who_may_not_do_what_to_which_object() {
    let words = "You are not authorized to perform this operation. User: arn:aws:sts::123456789012:assumed-role/node/i-0 is \
                 not authorized to perform: ec2:AssignPrivateIpAddresses on resource: \
                 arn:aws:ec2:eu-west-1:123456789012:network-interface/eni-0123456789abcdef0 because no identity-based policy \
                 allows the ec2:AssignPrivateIpAddresses action.";
    let encoded = format!("{words} Encoded authorization failure message: {}", "Zz9_-".repeat(300));
    for message in [words, &encoded] {
        let server = Server::answering([Answer::error(403, "UnauthorizedOperation", message)]).await;
        let error = cloud(&server).assign(&id(ENI), AddressCount::Secondary(1)).await.unwrap_err();
        assert_eq!((error.kind, error.message.as_str()), (CloudErrorKind::Denied, words));
        assert_eq!(server.asked().len(), 1);
    }
}

#[tokio::test]
async fn answers_that_are_no_ec2_are_judged_by_their_status() {
    for (status, body, kind, code) in [
        (502, "<html><body>Bad Gateway</body></html>", CloudErrorKind::Unavailable, "Http502"),
        (503, "", CloudErrorKind::Unavailable, "Http503"),
        (429, "slow down", CloudErrorKind::Throttled, "Http429"),
        (403, "", CloudErrorKind::Denied, "Http403"),
        // It says yes, and to what cannot be known.
        (200, "<html>", CloudErrorKind::Timeout, "MalformedAnswer"),
        (200, "\u{0}\u{1}", CloudErrorKind::Timeout, "MalformedAnswer"),
    ] {
        let server = Server::answering([Answer::new(status, body)]).await;
        let error = cloud(&server).assign(&id(ENI), AddressCount::Secondary(1)).await.unwrap_err();
        assert_eq!((error.kind, error.code.as_str()), (kind, code), "{status} {body:?}: {error}");
        assert_eq!(server.asked().len(), 1);
    }
}

#[tokio::test]
async fn no_answer_in_time_is_a_timeout() {
    let server = Server::start(|_| None).await;
    let hasty = Settings { call_timeout: Duration::from_millis(150), ..settings(&server.url()) };
    let error = Ec2Cloud::new(hasty).unwrap().detach_eni(&attachment()).await.unwrap_err();
    assert_eq!((error.kind, error.code.as_str()), (CloudErrorKind::Timeout, "Timeout"), "{error}");
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn an_endpoint_that_refuses_is_unavailable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let cloud = Ec2Cloud::new(settings(&url)).unwrap();
    let error = cloud.detach_eni(&attachment()).await.unwrap_err();
    assert_eq!((error.kind, error.code.as_str()), (CloudErrorKind::Unavailable, "Unreachable"), "{error}");
    let error = cloud.vpc_cidrs().await.unwrap_err();
    assert_eq!((error.api, error.kind), (Api::Imds, CloudErrorKind::Unavailable), "{error}");
    assert!(error.message.starts_with("reading mac: "), "{error}");
}

#[tokio::test]
async fn a_name_that_is_none_is_unavailable() {
    let cloud = Ec2Cloud::new(settings("http://ec2.invalid:1")).unwrap();
    let error = cloud.detach_eni(&attachment()).await.unwrap_err();
    assert_eq!((error.kind, error.code.as_str()), (CloudErrorKind::Unavailable, "Unreachable"), "{error}");
}

#[tokio::test]
async fn a_connection_that_breaks_leaves_open_what_was_done() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            let _read = connection.read(&mut [0; 64]).await;
        }
    });
    let cloud = Ec2Cloud::new(settings(&url)).unwrap();
    let error = cloud.detach_eni(&attachment()).await.unwrap_err();
    assert_eq!((error.kind, error.code.as_str()), (CloudErrorKind::Timeout, "ConnectionLost"), "{error}");
    let error = cloud.describe_enis(&[id(ENI)]).await.unwrap_err();
    assert_eq!((error.kind, error.code.as_str()), (CloudErrorKind::Unavailable, "ConnectionLost"), "{error}");
    server.abort();
}

#[derive(Debug)]
struct Failing(fn() -> CredentialsError);

impl ProvideCredentials for Failing {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::ready(Err((self.0)()))
    }
}

#[tokio::test]
async fn without_credentials_nothing_is_sent() {
    let server = Server::answering([]).await;
    for (fails, kind, code) in [
        (Failing(|| CredentialsError::not_loaded("no role")), CloudErrorKind::Denied, "NoCredentials"),
        (
            Failing(|| CredentialsError::provider_error("STS answers 503")),
            CloudErrorKind::Unavailable,
            "CredentialsUnavailable",
        ),
        (
            Failing(|| CredentialsError::provider_timed_out(Duration::from_secs(5))),
            CloudErrorKind::Unavailable,
            "CredentialsTimeout",
        ),
    ] {
        let poor = Settings { credentials: Some(SharedCredentialsProvider::new(fails)), ..settings(&server.url()) };
        let error = Ec2Cloud::new(poor).unwrap().detach_eni(&attachment()).await.unwrap_err();
        assert_eq!((error.kind, error.code.as_str()), (kind, code), "{error}");
    }
    assert!(server.asked().is_empty());
}
