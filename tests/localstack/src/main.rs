//! Runs a command beside a LocalStack, whose address the command finds in `LOCALSTACK_ENDPOINT`.
//!
//! ```text
//! localstack [--way endpoint|docker|host] -- cargo test -p sluice-ipamd-ec2 --test conformance
//! ```
//!
//! The LocalStack is, in this order: the one whose address `LOCALSTACK_ENDPOINT` holds already; one in a container, where
//! there is a Docker engine; one that is installed from PyPI into the cache (`SLUICE_CACHE`) and started on this host.
//! The last two end with the command. The exit status is the command's.

#[cfg(feature = "container")]
mod container;
#[cfg(not(feature = "container"))]
#[path = "no_container.rs"]
mod container;
mod health;
mod host;

use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use container::{Container, ContainerError};
use health::NotReady;
use host::{Host, HostError};

/// The variable that tells an endpoint, to this program and to the command.
const ENDPOINT: &str = "LOCALSTACK_ENDPOINT";

/// The version that is started, in a container and on the host.
const VERSION: &str = "4.13.1";

/// What makes LocalStack's MAC addresses ones: its engine writes `02:00:00:{...}` by a format string that fails. Python
/// reads a module of this name from `PYTHONPATH` at its start.
const MEND: &str = include_str!("../sitecustomize.py");

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Way {
    /// The one at `LOCALSTACK_ENDPOINT`
    Endpoint,
    /// A container
    Docker,
    /// From PyPI, on this host
    Host,
}

/// Runs a command beside a LocalStack.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only this way, instead of the first that there is
    #[arg(long)]
    way: Option<Way>,
    /// A LocalStack that runs already, such as http://127.0.0.1:4566
    #[arg(long, env = ENDPOINT)]
    endpoint: Option<String>,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true)]
    command: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{ENDPOINT} is not set; set it to the address of a LocalStack, such as http://127.0.0.1:4566")]
    NoEndpoint,
    #[error("there is no Docker engine: DOCKER_HOST is not set, and /var/run/docker.sock does not exist")]
    NoEngine,
    #[error("the LocalStack at {0} is of no use")]
    Endpoint(String, #[source] NotReady),
    #[error("LocalStack did not start in a container")]
    Docker(#[from] ContainerError),
    #[error("LocalStack did not start on this host")]
    Host(#[from] HostError),
    #[error("{0:?} could not be run")]
    Command(String, #[source] std::io::Error),
}

/// A LocalStack that answers.
#[derive(Debug)]
enum LocalStack {
    Given(String),
    Container(Box<Container>),
    Host(Box<Host>),
}

impl LocalStack {
    async fn start(way: Way, endpoint: Option<&str>) -> Result<Self, Failure> {
        match way {
            Way::Endpoint => {
                let url = endpoint.filter(|url| !url.is_empty()).ok_or(Failure::NoEndpoint)?.to_owned();
                health::wait(&url, health::SHORT).await.map_err(|error| Failure::Endpoint(url.clone(), error))?;
                Ok(Self::Given(url))
            }
            Way::Docker if is_engine_there() => Ok(Self::Container(Box::new(Container::start().await?))),
            Way::Docker => Err(Failure::NoEngine),
            Way::Host => Ok(Self::Host(Box::new(Host::start().await?))),
        }
    }

    /// The first way that there is. An endpoint that is told and of no use ends it; an engine that cannot start the image,
    /// because it has no way to the registry, does not.
    async fn first(endpoint: Option<&str>) -> Result<Self, Failure> {
        match Self::start(Way::Endpoint, endpoint).await {
            Err(Failure::NoEndpoint) => {}
            given => return given,
        }
        match Self::start(Way::Docker, None).await {
            Ok(started) => return Ok(started),
            Err(error) => println!("localstack: {}", chain(&error)),
        }
        Self::start(Way::Host, None).await
    }

    fn url(&self) -> &str {
        match self {
            Self::Given(url) => url,
            Self::Container(container) => container.url(),
            Self::Host(host) => host.url(),
        }
    }

    fn kind(&self) -> String {
        match self {
            Self::Given(_) => format!("{ENDPOINT} was set"),
            Self::Container(_) => format!("{VERSION} in a container"),
            Self::Host(_) => format!("{VERSION} from PyPI, on this host"),
        }
    }

    async fn stop(self) {
        match self {
            Self::Given(_) => {}
            Self::Container(container) => container.stop().await,
            Self::Host(host) => host.stop().await,
        }
    }
}

/// Whether somebody may be listening where Docker's clients look.
fn is_engine_there() -> bool {
    std::env::var_os("DOCKER_HOST").is_some_and(|host| !host.is_empty()) || Path::new("/var/run/docker.sock").exists()
}

/// The error and those of its causes that it does not tell itself, cut to what a terminal shows.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = String::new();
    for cause in std::iter::successors(Some(error), |error| error.source()).take(16) {
        let words: String = cause.to_string().chars().take(4000).collect();
        if text.contains(&words) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&words);
    }
    text
}

/// Runs the command to its end, or until this process is told to go: then the command is killed, so that what was
/// started beside it can be stopped.
async fn run(command: &[String], url: &str) -> Result<ExitCode, Failure> {
    let (program, arguments) = command.split_first().map_or(("", command), |(first, rest)| (first.as_str(), rest));
    let failed = |error| Failure::Command(program.to_owned(), error);
    let mut stop = signal(SignalKind::terminate()).map_err(failed)?;
    let mut child =
        Command::new(program).args(arguments).env(ENDPOINT, url).kill_on_drop(true).spawn().map_err(failed)?;
    let status = tokio::select! {
        status = child.wait() => status.map_err(failed)?,
        _ = stop.recv() => return Ok(ExitCode::from(143)),
        _ = tokio::signal::ctrl_c() => return Ok(ExitCode::from(130)),
    };
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

async fn all(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let started = match arguments.way {
        Some(way) => LocalStack::start(way, arguments.endpoint.as_deref()).await?,
        None => LocalStack::first(arguments.endpoint.as_deref()).await?,
    };
    println!("localstack: {} at {}", started.kind(), started.url());
    let status = run(&arguments.command, started.url()).await;
    started.stop().await;
    status
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match all(&Arguments::parse()).await {
        Ok(status) => status,
        Err(error) => {
            eprintln!("localstack: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}
