//! `sluice-proxy`: the proxy of a node. It joins the parts and holds no logic of its own: configuration, logs, and the signals
//! that end it.
//!
//! It ends with 0 when it was told to (SIGTERM, SIGINT), with 64 when its configuration is wrong (`EX_USAGE` of
//! `sysexits.h`; every fault is printed), and with 1 when it cannot start or a part of it has ended.
#![forbid(unsafe_code)]

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use sluice_contract::node::LOG_SOCKETS;
use sluice_daemon::log::{self, ErrorChain};
use sluice_proxy::config::Config;
use sluice_proxy::net::place;
use sluice_proxy::run::run;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The Sluice proxy: judges HTTP, TLS server names and DNS of the flows that the node's gates send it. It is configured by
/// environment variables: SLUICE_* (docs/sluice-proxy.md).
#[derive(Debug, Parser)]
#[command(name = "sluice-proxy", version)]
struct Arguments {
    /// Make the namespaces in which the proxy's sockets live, where they are not there yet, and end. They outlive the process
    /// that makes them only if its mounts reach the host, which takes a privileged container; what then runs needs less.
    #[arg(long)]
    make_namespaces: bool,
}

/// Exit status for a configuration that cannot be used.
const BAD_CONFIGURATION: u8 = 64;

fn main() -> ExitCode {
    let Arguments { make_namespaces } = Arguments::parse();
    let config = match Config::from_environment() {
        Ok(config) => config,
        Err(faults) => return refuse(&faults, BAD_CONFIGURATION),
    };
    if make_namespaces {
        return match place::make(&config.namespaces()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => refuse(&ErrorChain(&error), 1),
        };
    }
    if let Err(fault) = log::start(&config.log_filter, config.log_format) {
        return refuse(&ErrorChain(&fault), BAD_CONFIGURATION);
    }
    match runtime() {
        Ok(runtime) => runtime.block_on(serve(config)),
        Err(error) => refuse(&format_args!("the runtime cannot start: {error}"), 1),
    }
}

/// For what is not flows: policyd's stream, records, pages. Flows have threads of their own.
fn runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(4)
        .thread_name("sluice-proxy")
        .enable_all()
        .build()
}

async fn serve(config: Config) -> ExitCode {
    let (terminate, interrupt) = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
        (Err(error), _) | (_, Err(error)) => {
            return refuse(&format_args!("signals cannot be watched: {error}"), 1);
        }
    };
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "sluice-proxy");
    let levels = config.run_dir.join(LOG_SOCKETS[2]);
    let _ends_with_the_runtime = tokio::spawn(async move { log::levels::serve(&levels).await });
    match Box::pin(run(config, stopped(terminate, interrupt))).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %ErrorChain(&error), "the proxy cannot run");
            ExitCode::FAILURE
        }
    }
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
    let _told = writeln!(io::stderr(), "sluice-proxy: {why}");
    ExitCode::from(status)
}
