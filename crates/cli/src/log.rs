//! `sluice log`: what the daemons of this node log, asked for and changed while they run.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use sluice_contract::log::{Answer, CONFIGURED, FILTER_LIMIT};
use sluice_contract::node::RUN_DIR;

use crate::daemons::Daemon;
use crate::exit;

/// How long a daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of an answer.
const LIMIT: u64 = 64 << 10;

/// Options of `sluice log`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The daemon; without one, all are asked.
    daemon: Option<Daemon>,
    /// A level (error, warn, info, debug, trace) or a filter as SLUICE_LOG has it, such as `info,sluice_policyd=debug`. It lasts
    /// until the daemon ends.
    #[arg(requires = "daemon")]
    filter: Option<String>,
    /// Go back to what the daemon was started with.
    #[arg(long, requires = "daemon", conflicts_with = "filter")]
    reset: bool,
    /// The directory of the runtime state.
    #[arg(long, value_name = "DIRECTORY", default_value = RUN_DIR, hide = true)]
    run_dir: PathBuf,
}

/// Asks, or sets.
pub(crate) fn main(options: &Options) -> ExitCode {
    let wanted = if options.reset { CONFIGURED } else { options.filter.as_deref().unwrap_or_default() };
    if wanted.len() > FILTER_LIMIT {
        // A closed standard error is no reason for another status.
        let _closed = writeln!(
            io::stderr().lock(),
            "sluice log: the filter has {} bytes, and may have {FILTER_LIMIT}; name fewer parts",
            wanted.len()
        );
        return ExitCode::from(exit::USAGE);
    }
    let daemons = options.daemon.map_or_else(|| Daemon::ALL.to_vec(), |daemon| vec![daemon]);
    let mut status = ExitCode::SUCCESS;
    let mut text = String::new();
    for daemon in daemons {
        let path = options.run_dir.join(daemon.log_socket());
        let line = match ask(&path, wanted) {
            Ok(Answer { error: Some(error), .. }) => {
                status = ExitCode::from(exit::USAGE);
                error
            }
            Ok(Answer { filter, configured, .. }) if filter == configured => filter,
            Ok(Answer { filter, configured, .. }) => format!("{filter} (it was started with {configured})"),
            Err(error) => {
                // Without a name whatever runs is asked.
                if options.daemon.is_some() {
                    status = ExitCode::from(exit::UNAVAILABLE);
                }
                format!("{} cannot be asked: {error} (as root, on the node)", path.display())
            }
        };
        text.push_str(&format!("{:<16}{line}\n", daemon.name()));
    }
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ => status,
    }
}

fn ask(path: &Path, wanted: &str) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(wanted.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.take(LIMIT).read_to_end(&mut answer)?;
    serde_json::from_slice(&answer).map_err(io::Error::from)
}
