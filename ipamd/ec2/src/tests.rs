//! The clients against a server of one's own words: what is sent, what is read, and what is made of bad answers.

mod answers;
mod failures;
mod fuzz;
mod imds;
mod requests;
mod server;
mod vpcsim;

use std::time::Duration;

use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_ec2::config::Credentials;
use server::Server;

use crate::{Ec2Cloud, Settings};

/// A cloud that talks to `server` and to nobody else.
fn cloud(server: &Server) -> Ec2Cloud {
    Ec2Cloud::new(settings(&server.url())).unwrap()
}

fn settings(url: &str) -> Settings {
    let credentials = Credentials::new("AKIDEXAMPLE", "secret", None, None, "tests");
    Settings {
        call_timeout: Duration::from_secs(10),
        ec2_endpoint: Some(url.to_owned()),
        imds_endpoint: Some(url.to_owned()),
        region: Some("eu-west-1".into()),
        credentials: Some(SharedCredentialsProvider::new(credentials)),
    }
}
