//! The services that nodes reach at addresses of the link. Their sockets are in the routers' namespaces, and they run
//! there: a caller that blocks its own runtime does not stop them.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddrV4;
use std::sync::{Arc, Mutex, PoisonError};

use sluice_contract::id::VpcId;
use sluice_hostnet::netns::NamespaceThread;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::{Service, WorldError};
use crate::ec2::Ec2;
use crate::fabric::{EC2_ENDPOINT, IMDS};
use crate::imds::Imds;
use crate::live::LiveModel;

/// Both services speak HTTP.
const PORT: u16 = 80;

#[derive(Debug)]
pub(super) struct Services {
    live: LiveModel,
    ec2: Ec2,
    routers: BTreeMap<VpcId, Arc<NamespaceThread>>,
    running: Mutex<Vec<(Service, JoinHandle<()>)>>,
}

impl Services {
    pub(super) fn new(live: LiveModel, routers: BTreeMap<VpcId, Arc<NamespaceThread>>) -> Self {
        Self { ec2: Ec2::new(live.clone()), live, routers, running: Mutex::default() }
    }

    pub(super) async fn start(&self, service: Service) -> Result<(), WorldError> {
        self.stop(service).await;
        for (vpc, router) in &self.routers {
            let failed = |source| WorldError::Service { service, vpc: vpc.clone(), source };
            let started = match service {
                Service::Ec2 => {
                    let ec2 = self.ec2.clone();
                    router.run(move || spawn(EC2_ENDPOINT, |listener| ec2.serve(listener))).await
                }
                Service::Imds => {
                    // A service that was stopped has forgotten its tokens, as one that crashed has.
                    let imds = Imds::of_vpc(self.live.clone(), vpc.clone());
                    router.run(move || spawn(IMDS, |listener| imds.serve(listener))).await
                }
            };
            let task = started.map_err(io::Error::other).and_then(|bound| bound).map_err(failed)?;
            self.tasks().push((service, task));
        }
        Ok(())
    }

    /// Stops a service; its sockets are closed when this returns.
    pub(super) async fn stop(&self, service: Service) {
        let stopped: Vec<_> = self.tasks().extract_if(.., |(of, _)| *of == service).collect();
        for (_, task) in stopped {
            task.abort();
            if let Err(error) = task.await
                && error.is_panic()
            {
                tracing::error!(?service, %error, "a service had panicked");
            }
        }
    }

    fn tasks(&self) -> std::sync::MutexGuard<'_, Vec<(Service, JoinHandle<()>)>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens the service's socket, on a router's thread, and serves there.
async fn spawn<F: Future<Output = ()> + 'static>(
    address: std::net::Ipv4Addr,
    serve: impl FnOnce(TcpListener) -> F,
) -> io::Result<JoinHandle<()>> {
    let listener = TcpListener::bind(SocketAddrV4::new(address, PORT)).await?;
    Ok(tokio::task::spawn_local(serve(listener)))
}
