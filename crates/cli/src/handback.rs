//! `sluice handback`: gives a node back to the AWS VPC CNI, by writing the file in which that finds its pods.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use sluice_contract::node::nic;
use sluice_ipamd_core::aws_node::{self, AwsNodeError};
use sluice_ipamd_core::checkpoint::{Checkpoint, CheckpointError};
use sluice_ipamd_core::ledger::{AddressState, Ledger, Owner};
use sluice_ipamd_core::time::Timestamp;
use sluice_ipamd_daemon::config::AWS_NODE_CHECKPOINT;

use crate::exit;

/// Options of `sluice handback`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
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

/// What was done.
#[derive(Debug)]
struct Handback {
    files: Vec<(PathBuf, Vec<u8>)>,
    pods: usize,
    left: Vec<String>,
}

/// Runs the command.
pub(crate) fn main(options: &Options) -> ExitCode {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    let now = Timestamp::from_millis(u64::try_from(now).unwrap_or(u64::MAX));
    let done = prepare(options, now).and_then(|handback| {
        if !options.dry_run {
            write(options, &handback)?;
        }
        Ok(handback)
    });
    let mut out = io::stdout().lock();
    match done {
        Ok(handback) => {
            let verb = if options.dry_run { "would be" } else { "are" };
            let file = options.to.display();
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

/// What is to be written, if the node can be handed back.
fn prepare(options: &Options, now: Timestamp) -> Result<Handback, HandbackError> {
    let (ours, theirs) = (options.run_dir.join("ipamd.sock"), options.to.with_file_name("ipamd.sock"));
    if UnixStream::connect(&ours).is_ok() {
        return Err(HandbackError::Running(ours));
    }
    if UnixStream::connect(&theirs).is_ok() {
        return Err(HandbackError::AwsNodeRuns(theirs));
    }
    let path = options.run_dir.join("ipam.json");
    let document = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(HandbackError::NotOurs(path)),
        read => read.map_err(failed("reading", &path))?,
    };
    let state = Checkpoint::from_json(&document).and_then(|checkpoint| checkpoint.into_state(now));
    let state = state.map_err(|source| HandbackError::State { path, source })?;
    let left = untold(state.ledger());
    if !left.is_empty() && !options.force {
        return Err(HandbackError::Left { left });
    }
    let files = aws_node::write(state.ledger())?.into_iter().map(|(card, document)| {
        let path =
            if card == 0 { options.to.clone() } else { options.to.with_file_name(format!("ipam-nic-{card}.json")) };
        (path, document)
    });
    let states = state.ledger().enis().flat_map(|eni| eni.blocks.values()).flat_map(|block| block.addresses.values());
    // A pod counts by its first interface.
    let is_pods = |owner: &Owner| !owner.pod.name.is_empty() && nic::index(&owner.attachment.ifname) == 0;
    let is_told = |state: &&AddressState| matches!(state, AddressState::Assigned { owner, .. } if is_pods(owner));
    let pods = states.filter(is_told).count();
    Ok(Handback { files: files.collect(), pods, left })
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
fn write(options: &Options, handback: &Handback) -> Result<(), HandbackError> {
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
    let state = options.run_dir.join("ipam.json");
    fs::rename(&state, state.with_extension("json.handed-back")).map_err(failed("renaming", &state))?;
    match fs::remove_file(options.run_dir.join("ready")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("removing", &options.run_dir.join("ready"))(error))
        }
        _ => Ok(()),
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HandbackError {
    move |source| HandbackError::File { action, path: path.to_owned(), source }
}
