//! LocalStack from PyPI, as a process of this host.
//!
//! `localstack.lock` names every package with its hash; they are installed once into the cache.

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};

use crate::MEND;
use crate::health::{self, NotReady};

const LOCK: &str = include_str!("../localstack.lock");
/// What the packages of the lock file are built for.
const PYTHON: &str = "Python 3.11.";
/// How long LocalStack may take to end by itself.
const END: Duration = Duration::from_secs(10);

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostError {
    #[error("{action}")]
    Io { action: String, source: io::Error },
    #[error("the packages of localstack.lock are for {PYTHON}x, and python3 is {0:?}")]
    Python(String),
    #[error("`{command}` failed: {said}")]
    Install { command: String, said: String },
    #[error("it runs but does not answer; its log ends with:\n{log}\n")]
    NotReady { log: String, source: NotReady },
    #[error("it ended by itself, with {status}; its log ends with:\n{log}\n")]
    Ended { status: String, log: String },
}

fn failed(action: impl Into<String>) -> impl FnOnce(io::Error) -> HostError {
    |source| HostError::Io { action: action.into(), source }
}

/// A process that answers.
#[derive(Debug)]
pub(crate) struct Host {
    process: Child,
    url: String,
    /// What it has written; gone when this value is.
    directory: PathBuf,
}

impl Host {
    pub(crate) async fn start() -> Result<Self, HostError> {
        let python = install(&cache()).await?;
        let directory = std::env::temp_dir().join(format!("sluice-localstack-{}", std::process::id()));
        let result = Self::start_in(&python, &directory).await;
        if result.is_err() {
            remove(&directory);
        }
        result
    }

    async fn start_in(python: &Path, directory: &Path) -> Result<Self, HostError> {
        std::fs::create_dir_all(directory).map_err(failed(format!("creating {}", directory.display())))?;
        let mend = directory.join("sitecustomize.py");
        std::fs::write(&mend, MEND).map_err(failed(format!("writing {}", mend.display())))?;
        let log = directory.join("log");
        let file = File::create(&log).map_err(failed(format!("creating {}", log.display())))?;
        let errors = file.try_clone().map_err(failed("opening the log once more"))?;
        let listen = free_port().map_err(failed("looking for a free port"))?;
        let url = format!("http://{listen}");
        // It is killed with this process, however that ends.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(python)
            .args(["-m", "localstack.runtime.main"])
            // Hypercorn, because the default server listens on every address.
            .envs([("GATEWAY_SERVER", "hypercorn"), ("GATEWAY_LISTEN", &listen), ("LOCALSTACK_HOST", &listen)])
            .envs([("OVERRIDE_IN_DOCKER", "0"), ("SERVICES", "ec2,sts"), ("EAGER_SERVICE_LOADING", "1")])
            .envs([("STRICT_SERVICE_LOADING", "1"), ("DISABLE_EVENTS", "1"), ("SKIP_SSL_CERT_DOWNLOAD", "1")])
            .env("DNS_ADDRESS", "0")
            .env("FILESYSTEM_ROOT", directory)
            .env("PYTHONPATH", directory)
            .env_remove("PYTHONDONTWRITEBYTECODE")
            .env_remove("TMPDIR")
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors)
            .kill_on_drop(true);
        let mut process = command.spawn().map_err(failed("starting setpriv, of util-linux"))?;
        let ready = tokio::select! {
            ready = health::wait(&url, health::LONG) => ready,
            status = process.wait() => {
                let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
                return Err(HostError::Ended { status, log: tail(&log) });
            }
        };
        match ready {
            Ok(()) => Ok(Self { process, url, directory: directory.to_owned() }),
            Err(source) => Err(HostError::NotReady { log: tail(&log), source }),
        }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) async fn stop(mut self) {
        if let Some(id) = self.process.id() {
            // There is no signal but KILL without another package; it has nothing to save.
            if let Err(error) = self.process.start_kill() {
                eprintln!("localstack: process {id} is left behind: {error}");
            }
        }
        if tokio::time::timeout(END, self.process.wait()).await.is_err() {
            eprintln!("localstack: the process does not end");
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        remove(&self.directory);
    }
}

fn remove(directory: &Path) {
    if let Err(error) = std::fs::remove_dir_all(directory)
        && error.kind() != io::ErrorKind::NotFound
    {
        eprintln!("localstack: {} is left behind: {error}", directory.display());
    }
}

/// An address that nobody listens at. Somebody may take it before LocalStack does, which then says so and ends.
fn free_port() -> io::Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(30)..).unwrap_or_default().join("\n")
}

fn cache() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("SLUICE_CACHE").unwrap_or_else(|| set("HOME").unwrap_or_else(std::env::temp_dir).join(".cache/sluice"))
}

/// The Python of an environment that holds what the lock file names. It is made under a lock and marked only when whole,
/// so that runs side by side and runs that are cut off do no harm; and made anew where its Python has gone.
async fn install(cache: &Path) -> Result<PathBuf, HostError> {
    let directory = cache.join("localstack");
    let (python, whole) = (directory.join("bin/python"), directory.join("whole"));
    std::fs::create_dir_all(cache).map_err(failed(format!("creating {}", cache.display())))?;
    let lock = cache.join("localstack.lock");
    let guard = File::create(&lock).map_err(failed(format!("creating {}", lock.display())))?;
    guard.lock().map_err(failed(format!("locking {}", lock.display())))?;
    let is_whole = std::fs::read_to_string(&whole).is_ok_and(|installed| installed == LOCK);
    if is_whole && said(Command::new(&python).arg("--version")).await.is_ok() {
        return Ok(python);
    }
    let version = said(Command::new("python3").arg("--version")).await?;
    if !version.starts_with(PYTHON) {
        return Err(HostError::Python(version.trim().to_owned()));
    }
    if directory.exists() {
        std::fs::remove_dir_all(&directory).map_err(failed(format!("removing {}", directory.display())))?;
    }
    println!("localstack: installing {} from PyPI into {}", crate::VERSION, directory.display());
    said(Command::new("python3").args(["-m", "venv"]).arg(&directory)).await?;
    let wanted = directory.join("requirements.txt");
    std::fs::write(&wanted, LOCK).map_err(failed(format!("writing {}", wanted.display())))?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-compile"])
        .args(["--require-hashes", "--only-binary", ":all:", "-r"])
        .arg(&wanted);
    said(&mut pip).await?;
    std::fs::write(&whole, LOCK).map_err(failed(format!("writing {}", whole.display())))?;
    Ok(python)
}

/// Runs a command to its end, and gives what it said.
async fn said(command: &mut Command) -> Result<String, HostError> {
    let shown = format!("{:?}", command.as_std());
    let output = command.stdin(Stdio::null()).output().await.map_err(failed(format!("running {shown}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().chars().take(2000).collect();
    Err(HostError::Install { command: shown, said })
}
