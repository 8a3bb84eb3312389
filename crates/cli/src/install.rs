//! `sluice install` and `sluice uninstall`: what of Sluice is on a node for its container runtime, put there and taken away.
//!
//! Plugins first, then the daemons (whoever runs them), then the conflist, which makes the runtime use them. So the conflist is
//! written when both daemons have been ready, and is the last thing that `uninstall` takes away.

mod conflist;
mod files;
mod ready;
mod remove;
mod seccomp;

use std::error::Error;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;
use sluice_contract::node;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep};

use self::conflist::{ConflistError, Wanted};
use self::files::FileError;
use crate::daemons::Daemon;
use crate::exit;

/// How often it is looked whether the daemons are ready.
const LOOK: Duration = Duration::from_millis(200);
/// How often a conflist that is kept is compared with what it should be.
const COMPARE: Duration = Duration::from_secs(5);

/// Where things are on the node.
#[derive(Debug, Clone, clap::Args)]
struct Places {
    /// Where the runtime has its plugins.
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    bin_dir: PathBuf,
    /// Where the runtime reads conflists.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    net_dir: PathBuf,
    /// The daemons' runtime state.
    #[arg(long, value_name = "DIR", default_value = node::RUN_DIR)]
    run_dir: PathBuf,
    /// Where the kubelet has seccomp profiles.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet/seccomp")]
    seccomp_dir: PathBuf,
}

impl Places {
    fn conflist(&self) -> PathBuf {
        let name = Path::new(node::CONFLIST).file_name().unwrap_or_default();
        self.net_dir.join(name)
    }
}

/// Options of `sluice install`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// What to install: the plugins, the conflist once the daemons are ready, or one after the other; or the seccomp profiles of the
    /// daemons' containers.
    #[arg(value_enum, default_value = "all")]
    what: What,
    #[command(flatten)]
    places: Places,
    /// Where the plugins are copied from; the directory of this program if not given.
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// Pods get addresses and no gates: `sluice-policy` is not in the conflist, and policyd is not waited for.
    #[arg(long)]
    without_policy: bool,
    /// A plugin that follows ours, as a JSON object with a `type`. May be given more than once.
    #[arg(long = "plugin", value_name = "JSON", value_parser = conflist::parse_plugin)]
    plugins: Vec<Value>,
    /// A daemon whose seccomp profile is put in place; may be given more than once. All if not given.
    #[arg(long = "profile", value_enum, value_name = "DAEMON")]
    profiles: Vec<Daemon>,
    /// Seconds to wait for the daemons; for as long as it takes with --stay.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    wait: u64,
    /// Stay, and put the conflist back when somebody takes it away or changes what is ours in it.
    #[arg(long)]
    stay: bool,
}

/// A part of the installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// Plugins, then the conflist.
    All,
    /// The plugins.
    Plugins,
    /// The conflist.
    Conflist,
    /// The seccomp profiles of the daemons' containers, below the kubelet's directory.
    Seccomp,
}

/// Options of `sluice uninstall`.
#[derive(Debug, clap::Args)]
pub(crate) struct UninstallOptions {
    #[command(flatten)]
    places: Places,
    /// Take everything away although pods of the node have addresses of Sluice; they lose them.
    #[arg(long)]
    force: bool,
    /// Do nothing, and stay: what a DaemonSet runs on a node that is done.
    #[arg(long)]
    stay: bool,
}

/// Why something is not installed, or not taken away.
#[derive(Debug, thiserror::Error)]
enum InstallError {
    /// A file could not be put in place.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is no conflist that could be written.
    #[error(transparent)]
    Conflist(#[from] ConflistError),
    /// The daemons were not ready in time.
    #[error("after {seconds} s still {what}")]
    Late {
        /// How long.
        seconds: u64,
        /// What was waited for.
        what: String,
    },
    /// This process cannot be set up.
    #[error("cannot {0}")]
    Here(&'static str, #[source] io::Error),
    /// Something could not be taken away.
    #[error(transparent)]
    Remove(#[from] Box<remove::RemoveError>),
}

/// Installs.
pub(crate) fn install(options: &Options) -> ExitCode {
    ended(run(|| async {
        if matches!(options.what, What::All | What::Plugins) {
            plugins(options)?;
        }
        if matches!(options.what, What::All | What::Conflist) {
            conflist(options).await?;
        }
        if options.what == What::Seccomp {
            let all = Daemon::ALL;
            let daemons = if options.profiles.is_empty() { all.as_slice() } else { options.profiles.as_slice() };
            for daemon in daemons {
                seccomp::write(&options.places.seccomp_dir, *daemon, &say)?;
            }
        }
        Ok(())
    }))
}

/// Takes away.
pub(crate) fn uninstall(options: &UninstallOptions) -> ExitCode {
    ended(run(|| async {
        if options.stay {
            return stopped().await;
        }
        Ok(remove::everything(&options.places, options.force, &say).await.map_err(Box::new)?)
    }))
}

fn run<F: Future<Output = Result<(), InstallError>>>(work: impl FnOnce() -> F) -> Result<(), InstallError> {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| InstallError::Here("start a runtime", error))?.block_on(work())
}

/// Resolves when the process is told to end. The first process of a container gets no signal that it does not ask for.
async fn stopped() -> Result<(), InstallError> {
    let failed = |error| InstallError::Here("watch signals", error);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    tokio::select! {
        _told = terminate.recv() => {}
        _told = interrupt.recv() => {}
    }
    Ok(())
}

/// Copies the plugins, each in one step.
fn plugins(options: &Options) -> Result<(), InstallError> {
    let from = match &options.from {
        Some(from) => from.clone(),
        None => {
            let program =
                std::env::current_exe().map_err(|error| InstallError::Here("tell where this program is", error))?;
            program.parent().unwrap_or(Path::new("/")).to_owned()
        }
    };
    for name in conflist::OURS {
        let to = options.places.bin_dir.join(name);
        let changed = files::copy(&from.join(name), &to)?;
        say(&format!("{} {}", to.display(), if changed { "is in place" } else { "is as it should be" }));
    }
    Ok(())
}

/// Waits for the daemons, writes the conflist, and stays if it is to.
async fn conflist(options: &Options) -> Result<(), InstallError> {
    let places = &options.places;
    let path = places.conflist();
    if ready::is_fresh_boot(&places.run_dir) && path.exists() && !conflist::has_other(&places.net_dir, &path)? {
        // A runtime that does not know STATUS takes the file for a node that can start pods.
        files::remove(&path)?;
        say(&format!("{} is taken away until the daemons are ready: the node has booted", path.display()));
    }
    let end = (!options.stay).then(|| Instant::now() + Duration::from_secs(options.wait));
    let mut stop = Box::pin(stopped());
    let mut said = String::new();
    while let Some(what) = ready::missing(&places.run_dir, !options.without_policy).await {
        if what != said {
            say(&format!("waiting: {what}"));
            said.clone_from(&what);
        }
        if end.is_some_and(|end| Instant::now() >= end) {
            return Err(InstallError::Late { seconds: options.wait, what });
        }
        tokio::select! {
            () = sleep(LOOK) => {}
            stopped = &mut stop => return stopped,
        }
    }
    let wanted = Wanted { policy: !options.without_policy, extra: options.plugins.clone() };
    let mut again = false;
    loop {
        match conflist::write(places, &wanted) {
            Ok(true) => say(&format!("{} is {}", path.display(), if again { "put back" } else { "in place" })),
            Ok(false) if !again => say(&format!("{} is as it should be", path.display())),
            Ok(false) => {}
            // What cannot be used may be somebody's half-written file.
            Err(error) if options.stay && again => say(&format!("{}", ErrorChain(&error))),
            Err(error) => return Err(error.into()),
        }
        if !options.stay {
            return Ok(());
        }
        again = true;
        tokio::select! {
            () = sleep(COMPARE) => {}
            stopped = &mut stop => return stopped,
        }
    }
}

/// Tells a person.
fn say(text: &str) {
    // A closed output is no reason to leave a node half installed.
    let _closed = writeln!(io::stdout().lock(), "{text}");
}

/// An error with its causes.
struct ErrorChain<'a>(&'a dyn Error);

impl std::fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

fn ended(result: Result<(), InstallError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _closed = writeln!(io::stderr().lock(), "sluice: {}", ErrorChain(&error));
            ExitCode::from(exit::FAILED)
        }
    }
}
