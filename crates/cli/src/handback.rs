//! `sluice handback`: gives a node back to the AWS VPC CNI, by writing the file in which that finds its pods.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use sluice_contract::node::nic;
use sluice_ipamd_core::aws_node::{self, AwsNodeError};
use sluice_ipamd_core::checkpoint::{Checkpoint, CheckpointError};
use sluice_ipamd_core::ledger::{AddressState, Ledger, Owner};
use sluice_ipamd_daemon::config::AWS_NODE_CHECKPOINT;

use crate::exit;
use crate::root::within;

/// Where Sluice has its state, below the root of the host.
const RUN_DIR: &str = "run/sluice";

/// Options of `sluice handback`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The host's root, where this runs in a container that has it elsewhere (`kubectl debug node`: /host). Both paths are then the
    /// host's.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Sluice's state.
    #[arg(long, value_name = "DIR", default_value = "/run/sluice")]
    run_dir: PathBuf,
    /// Where the AWS VPC CNI looks for its allocations.
    #[arg(long, value_name = "FILE", default_value = AWS_NODE_CHECKPOINT)]
    to: PathBuf,
    /// Say what would be written, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Hand back although the AWS VPC CNI cannot be told of some pods: it may give their addresses to others.
    #[arg(long)]
    force: bool,
}

/// Why a node is not handed back. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
enum HandbackError {
    /// A daemon of ours runs.
    #[error("sluice-ipamd serves this node at {}: stop it first (take the node out of Sluice's DaemonSet)", .0.display())]
    Running(PathBuf),
    /// A daemon of the VPC CNI runs.
    #[error("the AWS VPC CNI's daemon serves this node at {}: it would not read what is written now; stop it first", .0.display())]
    AwsNodeRuns(PathBuf),
    /// There is no state.
    #[error("{} is not there: this node is not Sluice's", .0.display())]
    NotOurs(PathBuf),
    /// The file would be another than the one that the VPC CNI reads.
    #[error("{} leads to {}, which is not in the root of {}: the AWS VPC CNI would not find it; say {}", to.display(), leads.display(), run_dir.display(), right.display())]
    Elsewhere {
        /// What was said.
        to: PathBuf,
        /// Where that is.
        leads: PathBuf,
        /// Where the state is.
        run_dir: PathBuf,
        /// Where the file has to be.
        right: PathBuf,
    },
    /// It was handed back, and the VPC CNI has gone on from there.
    #[error("this node was handed back before ({}), and {} has changed since: it is the AWS VPC CNI's", state.display(), to.display())]
    Changed {
        /// The state that was put aside.
        state: PathBuf,
        /// The VPC CNI's file.
        to: PathBuf,
    },
    /// The state is damaged.
    #[error("{} cannot be used; start sluice-ipamd once, so that it learns its pods anew", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: CheckpointError,
    },
    /// Pods that the VPC CNI cannot be told of.
    #[error(
        "the AWS VPC CNI cannot be told of {}: {}; delete these pods, or hand back with --force and delete them before it starts",
        if left.len() == 1 { "one address in use".to_owned() } else { format!("{} addresses in use", left.len()) },
        left.join(", ")
    )]
    Left {
        /// Their addresses, with why.
        left: Vec<String>,
    },
    /// The file cannot be made.
    #[error(transparent)]
    Document(#[from] AwsNodeError),
    /// A file cannot be read or written.
    #[error("{action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// Where everything is, seen from here.
#[derive(Debug)]
struct Places {
    run_dir: PathBuf,
    to: PathBuf,
}

/// What was done.
#[derive(Debug)]
struct Handback {
    files: Vec<(PathBuf, Vec<u8>)>,
    pods: usize,
    left: Vec<String>,
    /// Whether it was done before: nothing is to be written then.
    before: bool,
}

/// Runs the command.
pub(crate) fn main(options: &Options) -> ExitCode {
    let done = places(options).and_then(|places| {
        let handback = prepare(&places, options.force)?;
        if !options.dry_run && !handback.before {
            write(&places, &handback)?;
        }
        Ok((places, handback))
    });
    let mut out = io::stdout().lock();
    match done {
        Ok((places, handback)) => {
            let verb = if options.dry_run && !handback.before { "would be" } else { "are" };
            let file = places.to.display();
            // A closed output is no reason for another status.
            let _closed = writeln!(out, "pods that {verb} the AWS VPC CNI's: {} ({file})", handback.pods);
            for left in &handback.left {
                let _closed = writeln!(out, "not told: {left}");
            }
            if !options.dry_run {
                let _closed = writeln!(
                    out,
                    "Start aws-node on this node now. When it is ready, `nft delete table ip sluice` removes what it does not need."
                );
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            let mut text = format!("sluice handback: {error}");
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                text.push_str(": ");
                text.push_str(&cause.to_string());
                source = cause.source();
            }
            let _closed = writeln!(io::stderr(), "{text}");
            let status = match error {
                HandbackError::State { .. } => exit::DATA,
                HandbackError::File { .. } | HandbackError::Document(_) => exit::SOFTWARE,
                _ => exit::FAILED,
            };
            ExitCode::from(status)
        }
    }
}

/// Where everything is. Without a root that is what was said, but for a file that is none of the host whose state it is: in a container
/// an absolute link leads elsewhere (Debian's and Ubuntu's `/var/run`), and what is written there is gone with the container.
fn places(options: &Options) -> Result<Places, HandbackError> {
    let find = |root: &Path, path: &Path| within(root, path).map_err(failed("finding", path));
    if let Some(root) = &options.root {
        return Ok(Places { run_dir: find(root, &options.run_dir)?, to: find(root, &options.to)? });
    }
    let (run_dir, to) = (options.run_dir.clone(), options.to.clone());
    let seen = |path: &Path| {
        std::path::absolute(path).map_err(failed("finding", path)).and_then(|path| find(Path::new("/"), &path))
    };
    let state = seen(&run_dir)?;
    // Another directory says nothing of where the root is.
    let root = if state.ends_with(RUN_DIR) { state.ancestors().nth(2) } else { None };
    if let Some(root) = root {
        let leads = seen(&to)?;
        if !leads.starts_with(root) {
            let right = find(root, to.strip_prefix(root).unwrap_or(&to))?;
            return Err(HandbackError::Elsewhere { to, leads, run_dir, right });
        }
    }
    Ok(Places { run_dir, to })
}

/// What is to be written, if the node can be handed back.
fn prepare(places: &Places, force: bool) -> Result<Handback, HandbackError> {
    let (ours, theirs) = (places.run_dir.join("ipamd.sock"), places.to.with_file_name("ipamd.sock"));
    if UnixStream::connect(&ours).is_ok() {
        return Err(HandbackError::Running(ours));
    }
    if UnixStream::connect(&theirs).is_ok() {
        return Err(HandbackError::AwsNodeRuns(theirs));
    }
    let own = places.run_dir.join("ipam.json");
    let aside = own.with_extension("json.handed-back");
    let before = !own.exists() && aside.exists();
    let path = if before { aside } else { own };
    let document = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(HandbackError::NotOurs(path)),
        read => read.map_err(failed("reading", &path))?,
    };
    let state = Checkpoint::from_json(&document).and_then(|checkpoint| {
        // As it was written, whatever the clock says now: the same files come of it each time.
        let written = checkpoint.written();
        checkpoint.into_state(written)
    });
    let state = match state {
        Ok(state) => state,
        Err(source) => return Err(HandbackError::State { path, source }),
    };
    let left = untold(state.ledger());
    if !left.is_empty() && !force && !before {
        return Err(HandbackError::Left { left });
    }
    let files = aws_node::write(state.ledger())?.into_iter().map(|(card, document)| {
        let path =
            if card == 0 { places.to.clone() } else { places.to.with_file_name(format!("ipam-nic-{card}.json")) };
        (path, document)
    });
    let files: Vec<(PathBuf, Vec<u8>)> = files.collect();
    if before && files.iter().any(|(path, document)| fs::read(path).ok().as_ref() != Some(document)) {
        return Err(HandbackError::Changed { state: path, to: places.to.clone() });
    }
    let states = state.ledger().enis().flat_map(|eni| eni.blocks.values()).flat_map(|block| block.addresses.values());
    // A pod counts by its first interface.
    let is_pods = |owner: &Owner| !owner.pod.name.is_empty() && nic::index(&owner.attachment.ifname) == 0;
    let is_told = |state: &&AddressState| matches!(state, AddressState::Assigned { owner, .. } if is_pods(owner));
    let pods = states.filter(is_told).count();
    Ok(Handback { files, pods, left, before })
}

/// Addresses in use that the VPC CNI would not know of, and why.
fn untold(ledger: &Ledger) -> Vec<String> {
    let blocks = ledger.enis().flat_map(|eni| eni.blocks.values());
    let mut left: Vec<String> = blocks
        .flat_map(|block| &block.addresses)
        .filter_map(|(address, state)| match state {
            AddressState::Assigned { owner, .. } if owner.pod.name.is_empty() => {
                Some(format!("{address} (of {}, whose pod's name is not known)", owner.attachment))
            }
            AddressState::Quarantined { .. } => Some(format!("{address} (of a pod that nobody knows)")),
            _ => None,
        })
        .collect();
    left.extend(ledger.strays().iter().map(|address| format!("{address} (on no known ENI)")));
    left
}

/// Writes the VPC CNI's files, each whole or not at all, and puts our state aside, so that it is never believed again.
fn write(places: &Places, handback: &Handback) -> Result<(), HandbackError> {
    for (path, document) in &handback.files {
        if let Some(directory) = path.parent() {
            let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(directory);
            made.map_err(failed("making", directory))?;
        }
        let temporary = path.with_extension("json.tmp");
        let mut file = OpenOptions::new();
        let file = file.write(true).create(true).truncate(true).mode(0o644).open(&temporary);
        let mut file = file.map_err(failed("opening", &temporary))?;
        file.write_all(document).map_err(failed("writing", &temporary))?;
        file.sync_all().map_err(failed("syncing", &temporary))?;
        fs::rename(&temporary, path).map_err(failed("renaming", &temporary))?;
    }
    let state = places.run_dir.join("ipam.json");
    fs::rename(&state, state.with_extension("json.handed-back")).map_err(failed("renaming", &state))?;
    match fs::remove_file(places.run_dir.join("ready")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("removing", &places.run_dir.join("ready"))(error))
        }
        _ => Ok(()),
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HandbackError {
    move |source| HandbackError::File { action, path: path.to_owned(), source }
}
