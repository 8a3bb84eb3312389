//! `sluice-ipamd`: the node daemon. It joins the parts and holds no logic of its own: configuration, logs, the cloud on
//! the AWS SDK, the kernel of this host, and the signals that end it.
//!
//! It ends with 0 when it was told to (SIGTERM, SIGINT), with 64 when its configuration is wrong (`EX_USAGE` of
//! `sysexits.h`; every fault is printed), and with 1 when it cannot start.
#![forbid(unsafe_code)]

use std::fmt::Display;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use sluice_contract::node::LOG_SOCKETS;
use sluice_ipamd_daemon::cluster::Nowhere;
use sluice_ipamd_daemon::cluster::directory::Directory;
use sluice_ipamd_daemon::cluster::objects::Naming;
use sluice_ipamd_daemon::config::EniConfigNaming;
use sluice_ipamd_daemon::kernel::host::HostKernel;
use sluice_ipamd_daemon::log::{self, ErrorChain};
use sluice_ipamd_daemon::{Config, run};
use sluice_ipamd_ec2::{Ec2Cloud, Settings};
use sluice_ipamd_kube::{Kubernetes, Settings as KubeSettings};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The Sluice node daemon: keeps a pool of VPC addresses and hands them to pods. It is configured by environment
/// variables: those of the AWS VPC CNI, and SLUICE_* (docs/configuration.md).
#[derive(Debug, Parser)]
#[command(name = "sluice-ipamd", version)]
struct Arguments {
    /// Read the cluster's objects from the YAML and JSON files of this directory, and not from the Kubernetes API; goes
    /// before SLUICE_CLUSTER_DIR.
    #[arg(long, value_name = "DIR")]
    cluster_dir: Option<PathBuf>,
}

/// Exit status for a configuration that cannot be used.
const BAD_CONFIGURATION: u8 = 64;

/// Threads that run tasks. The work is waiting; two keep a long computation from holding up the socket.
const WORKERS: usize = 2;
/// Threads that wait for files and names, at most.
const BLOCKING: usize = 8;
/// How long a thread without work stays.
const IDLE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let Arguments { cluster_dir } = Arguments::parse();
    let mut config = match Config::from_environment() {
        Ok(config) => config,
        Err(faults) => return refuse(&faults, BAD_CONFIGURATION),
    };
    config.cluster_dir = cluster_dir.or(config.cluster_dir);
    let settings = match Settings::from_environment(config.call_timeout) {
        Ok(settings) => settings,
        Err(fault) => return refuse(&fault, BAD_CONFIGURATION),
    };
    if let Err(fault) = log::start(&config.log_filter, config.log_format) {
        return refuse(&ErrorChain(&fault), BAD_CONFIGURATION);
    }
    let cloud = match Ec2Cloud::new(settings) {
        Ok(cloud) => cloud,
        Err(fault) => return refuse(&fault, BAD_CONFIGURATION),
    };
    match runtime() {
        Ok(runtime) => runtime.block_on(serve(config, cloud)),
        Err(error) => refuse(&format_args!("the runtime cannot start: {error}"), 1),
    }
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING)
        .thread_keep_alive(IDLE)
        .thread_name("sluice-ipamd")
        .enable_all()
        .build()
}

async fn serve(config: Config, cloud: Ec2Cloud) -> ExitCode {
    let (terminate, interrupt) = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
        (Err(error), _) | (_, Err(error)) => {
            return refuse(&format_args!("signals cannot be watched: {error}"), 1);
        }
    };
    let kernel = match HostKernel::current() {
        Ok(kernel) => kernel,
        Err(error) => return refuse(&format_args!("netlink cannot be used: {}", ErrorChain(&error)), 1),
    };
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "sluice-ipamd");
    let levels = config.run_dir.join(LOG_SOCKETS[0]);
    let _ends_with_the_runtime = tokio::spawn(async move { log::levels::serve(&levels).await });
    // What the cluster has set says how it is read, too.
    let config = config.restored();
    let stop = stopped(terminate, interrupt);
    let ended = match source(&config).await {
        Source::Nowhere => Box::pin(run(config, cloud, kernel, Nowhere, stop)).await,
        Source::Directory(cluster) => Box::pin(run(config, cloud, kernel, cluster, stop)).await,
        Source::Kubernetes(cluster) => Box::pin(run(config, cloud, kernel, *cluster, stop)).await,
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %ErrorChain(&error), "ipamd cannot run");
            ExitCode::FAILURE
        }
    }
}

/// Where the cluster's objects are read.
enum Source {
    Nowhere,
    Directory(Directory),
    Kubernetes(Box<Kubernetes>),
}

/// The source that the settings name. Without an API server there is none: pods are given addresses all the same.
async fn source(config: &Config) -> Source {
    let naming = config.pool.custom_networking.clone();
    let naming = naming.map(|EniConfigNaming { annotation, label }| Naming { annotation, label });
    let Some(node) = config.node_name.clone() else { return Source::Nowhere };
    if let Some(directory) = config.cluster_dir.clone() {
        let claims = config.network.pod_eni.is_some();
        return Source::Directory(Directory::new(directory, node, naming).with_claims(claims));
    }
    let settings = KubeSettings::new(node, config.namespace.clone(), naming, seed());
    let (routes, claims) = (config.network.exclude_snat_routes, config.network.pod_eni.is_some());
    let settings = KubeSettings { routes, claims, ..settings };
    match Kubernetes::connect(settings, config.cluster_endpoint.as_deref()).await {
        Ok(kubernetes) => Source::Kubernetes(Box::new(kubernetes)),
        Err(error) => {
            tracing::warn!(error = %ErrorChain(&error), "ipamd goes on without the cluster");
            Source::Nowhere
        }
    }
}

/// A number that no other process has: the standard library seeds its hash maps from the kernel's random numbers.
fn seed() -> u64 {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.finish()
}

/// Resolves at the first signal to end.
async fn stopped(mut terminate: Signal, mut interrupt: Signal) {
    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!(signal = name, "ending");
}

/// Says why there is nothing to run. Logs are not there yet, or nobody may read them.
fn refuse(why: &dyn Display, status: u8) -> ExitCode {
    // If the standard error is closed there is nobody to tell.
    let _told = writeln!(io::stderr(), "sluice-ipamd: {why}");
    ExitCode::from(status)
}
