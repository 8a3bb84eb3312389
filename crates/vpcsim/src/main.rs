//! `vpcsim`: a VPC in a box.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sluice_vpcsim::world::Chain;
use sluice_vpcsim::{serve, up};

/// A VPC in a box.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the EC2 API of an empty account on a local address.
    Ec2(serve::Ec2Options),
    /// Bring a scene up, in the foreground.
    Up(up::UpOptions),
    /// Take worlds down, and what killed ones left.
    Down(up::DownOptions),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start the runtime");
            return ExitCode::FAILURE;
        }
    };
    let result: Result<(), Box<dyn std::error::Error>> = runtime.block_on(async {
        match &cli.command {
            Command::Ec2(options) => serve::run(options, interrupted()).await?,
            Command::Up(options) => up::up(options, interrupted()).await?,
            Command::Down(options) => up::down(options)?,
        }
        Ok(())
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to tell it to when standard error is closed.
            let _closed = writeln!(std::io::stderr(), "vpcsim: {}", Chain(&*error));
            ExitCode::FAILURE
        }
    }
}

/// Ends on SIGINT or SIGTERM; where neither can be listened for, never.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(mut interrupt), Ok(mut terminate)) => {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        }
        _ => std::future::pending().await,
    }
}
