//! `sluice-policyd`: the policy agent. It joins the parts and holds no logic of its own: configuration, logs, the source of
//! the cluster's objects, the gates in this host's kernel, and the signals that end it.
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
use sluice_policyd::cluster::directory::Directory;
use sluice_policyd::cluster::kube::{Kube, Options, Timing};
use sluice_policyd::datapath::gate::{Behaviour, GateDatapath};
use sluice_policyd::log::{self, ErrorChain};
use sluice_policyd::{Config, run};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The Sluice policy agent: keeps a gate at every pod of the node as the cluster's policies want it. It is configured by
/// environment variables: MY_NODE_NAME, and SLUICE_* (docs/policyd.md).
#[derive(Debug, Parser)]
#[command(name = "sluice-policyd", version)]
struct Arguments {
    /// Read the cluster's objects from the YAML and JSON files of this directory, and not from the Kubernetes API.
    #[arg(long, value_name = "DIR")]
    cluster_dir: Option<PathBuf>,
}

/// Exit status for a configuration that cannot be used.
const BAD_CONFIGURATION: u8 = 64;

/// Threads that run tasks: one compiles and writes, one serves meanwhile.
const WORKERS: usize = 2;
/// Threads that wait for files and names, at most.
const BLOCKING: usize = 8;
/// How long a thread without work stays.
const IDLE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = match Config::from_environment() {
        Ok(config) => config,
        Err(faults) => return refuse(&faults, BAD_CONFIGURATION),
    };
    if let Err(fault) = log::start(&config.log_filter, config.log_format) {
        return refuse(&ErrorChain(&fault), BAD_CONFIGURATION);
    }
    match runtime() {
        Ok(runtime) => runtime.block_on(serve(config, arguments)),
        Err(error) => refuse(&format_args!("the runtime cannot start: {error}"), 1),
    }
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING)
        .thread_keep_alive(IDLE)
        .thread_name("sluice-policyd")
        .enable_all()
        .build()
}

async fn serve(config: Config, arguments: Arguments) -> ExitCode {
    let (terminate, interrupt) = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
        (Err(error), _) | (_, Err(error)) => {
            return refuse(&format_args!("signals cannot be watched: {error}"), 1);
        }
    };
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node = config.node, "sluice-policyd");
    let levels = config.run_dir.join(LOG_SOCKETS[1]);
    let _ends_with_the_runtime = tokio::spawn(async move { log::levels::serve(&levels).await });
    let stop = stopped(terminate, interrupt);
    let behaviour = Behaviour { keep_established: config.keep_established, tell_events: config.flows > 0 };
    let open = || GateDatapath::open(behaviour);
    let ended = match arguments.cluster_dir {
        Some(directory) => Box::pin(run(config, Directory::new(directory), open, stop)).await,
        None => {
            let options = Options { node: config.node.clone(), seed: seed(), timing: Timing::default() };
            match Kube::connect(options, config.cluster_endpoint.as_deref()).await {
                Ok(kube) => Box::pin(run(config, kube, open, stop)).await,
                Err(error) => return refuse(&ErrorChain(&error), BAD_CONFIGURATION),
            }
        }
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %ErrorChain(&error), "policyd cannot run");
            ExitCode::FAILURE
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
    let _told = writeln!(io::stderr(), "sluice-policyd: {why}");
    ExitCode::from(status)
}
