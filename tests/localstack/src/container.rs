//! LocalStack in a container, by testcontainers.

use std::time::Duration;

use testcontainers::core::{IntoContainerPort, WaitFor};
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, GenericImage, ImageExt, TestcontainersError};

use crate::health::{self, NotReady};
use crate::{MEND, VERSION};

const IMAGE: &str = "localstack/localstack";
const PORT: u16 = 4566;
/// Where the mend lies in the container.
const MENDS: &str = "/opt/sluice/sitecustomize.py";
/// The image has to be pulled the first time.
const START: Duration = Duration::from_secs(180);

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContainerError {
    #[error("the Docker engine does not run {IMAGE}:{VERSION}")]
    Engine(#[from] TestcontainersError),
    #[error("the container runs, but")]
    NotReady(#[from] NotReady),
}

/// A container that runs.
#[derive(Debug)]
pub(crate) struct Container {
    container: ContainerAsync<GenericImage>,
    url: String,
}

impl Container {
    pub(crate) async fn start() -> Result<Self, ContainerError> {
        let request = GenericImage::new(IMAGE, VERSION)
            .with_exposed_port(PORT.tcp())
            .with_wait_for(WaitFor::message_on_either_std("Ready."))
            .with_env_var("SERVICES", "ec2,sts")
            .with_env_var("EAGER_SERVICE_LOADING", "1")
            .with_env_var("DISABLE_EVENTS", "1")
            .with_env_var("SKIP_SSL_CERT_DOWNLOAD", "1")
            .with_env_var("PYTHONPATH", "/opt/sluice")
            .with_copy_to(MENDS, MEND.as_bytes().to_vec())
            .with_startup_timeout(START);
        let container = request.start().await?;
        let host = container.get_host().await?;
        let port = container.get_host_port_ipv4(PORT).await?;
        let url = format!("http://{host}:{port}");
        health::wait(&url, health::LONG).await?;
        Ok(Self { container, url })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) async fn stop(self) {
        if let Err(error) = self.container.rm().await {
            eprintln!("localstack: the container is left behind: {error}");
        }
    }
}
