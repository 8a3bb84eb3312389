//! In place of containers, where this is built without the feature `container`, and so without testcontainers.

/// Why there is none.
#[derive(Debug, thiserror::Error)]
#[error("this was built without the feature `container`")]
pub(crate) struct ContainerError;

/// There is none.
#[derive(Debug)]
pub(crate) enum Container {}

impl Container {
    pub(crate) async fn start() -> Result<Self, ContainerError> {
        Err(ContainerError)
    }

    pub(crate) fn url(&self) -> &str {
        match *self {}
    }

    pub(crate) async fn stop(self) {
        match self {}
    }
}
