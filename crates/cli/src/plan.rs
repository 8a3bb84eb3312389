//! `sluice plan`: what a node's pool will hold, by the planner that ipamd runs on a model of EC2 in virtual time.

mod print;
mod settings;

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use sluice_ipamd_core::limits::takes_trunk;
use sluice_ipamd_core::plan::Targets;
use sluice_ipamd_sim::node::{Figures, Node, SimError, limits_of};
use sluice_ipamd_sim::vpc_cni::{self, Burst, NoBurst};
use sluice_vpcsim::model::Settings;

use crate::exit;
use crate::paint::Paint;

/// Options of `sluice plan`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("question").required(true).args(["pods", "burst"]))]
pub(crate) struct Options {
    /// The node's instance type, like `m5.4xlarge`.
    #[arg(long, value_name = "TYPE")]
    instance_type: String,
    /// A setting of ipamd, like `WARM_IP_TARGET=5`. May be given more than once.
    #[arg(long = "env", value_name = "NAME=VALUE")]
    settings: Vec<String>,
    /// The same as `--env ENABLE_PREFIX_DELEGATION=true`.
    #[arg(long)]
    prefix_delegation: bool,
    /// Numbers of pods, like `0,26,30,110`: they are added one by one, and the pool is at rest before each.
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    pods: Vec<u32>,
    /// So many pods at once on a pool at rest: how long until all have their addresses, beside the AWS VPC CNI.
    #[arg(long, value_name = "N")]
    burst: Option<u32>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
enum PlanError {
    /// Settings are wrong.
    #[error(transparent)]
    Settings(#[from] settings::SettingsError),
    /// The node cannot be simulated, or cannot hold so many pods.
    #[error(transparent)]
    Sim(#[from] SimError),
    /// More pods than any node takes.
    #[error("--{option} {asked}: a node holds {MOST_PODS} pods at most; ask for fewer")]
    TooMany {
        /// `pods` or `burst`.
        option: &'static str,
        /// What was asked for.
        asked: u32,
    },
}

/// Pods that may be asked for; the largest instance types hold fewer by far (the kubelet's largest maxPods on EKS is 737).
const MOST_PODS: u32 = 1000;

/// The answer.
enum Answer {
    Rows(Vec<Figures>),
    /// The VPC CNI has no pods of both families.
    Burst {
        sluice: Burst,
        vpc_cni: Result<Burst, NoBurst>,
    },
}

/// Plans.
pub(crate) fn main(options: &Options) -> ExitCode {
    let (answer, notes) = match answer(options) {
        Ok(answer) => answer,
        Err(fault) => {
            let mut text = format!("sluice: {fault}");
            let mut cause = std::error::Error::source(&fault);
            while let Some(error) = cause {
                text.push_str(&format!(": {error}"));
                cause = error.source();
            }
            // A closed standard error is no reason for another status.
            let _closed = writeln!(io::stderr().lock(), "{text}");
            let full = matches!(fault, PlanError::Sim(SimError::Full { .. }));
            return ExitCode::from(if full { exit::FAILED } else { exit::DATA });
        }
    };
    for note in notes {
        let _closed = writeln!(io::stderr().lock(), "sluice: {note}");
    }
    let out = io::stdout();
    let paint = Paint { colours: out.is_terminal() };
    let text = match (&answer, options.json) {
        (Answer::Rows(rows), true) => print::rows_json(rows),
        (Answer::Rows(rows), false) => print::rows(rows, paint),
        (Answer::Burst { sluice, vpc_cni }, true) => print::burst_json(sluice, vpc_cni.as_ref().ok()),
        (Answer::Burst { sluice, vpc_cni }, false) => print::burst(sluice, vpc_cni, paint),
    };
    match out.lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

fn answer(options: &Options) -> Result<(Answer, Vec<String>), PlanError> {
    let limits = limits_of(&options.instance_type)?;
    let mut read = settings::read(&options.settings, options.prefix_delegation, options.burst.is_some())?;
    let (networking, cooldown) = (read.networking(), read.config.pool.cooldown);
    let targets = read.config.targets(Some(&limits));
    let most = options.pods.iter().copied().chain(options.burst).max().unwrap_or(0);
    bounded(if options.burst.is_some() { "burst" } else { "pods" }, most)?;
    read.note(&options.instance_type, &limits, &targets, most);
    let node = Node::connected(&options.instance_type, networking, targets.clone(), cooldown, Settings::aws())?;
    let answer = match options.burst {
        Some(pods) => {
            let sluice = burst(node, pods)?;
            read.check_burst(pods, pods - sluice.at_once, sluice.took)?;
            let trunk = targets.trunk && takes_trunk(&options.instance_type, &limits);
            let vpc_cni = vpc_cni::burst(limits, networking, Targets { trunk, ..targets }, cooldown, pods);
            Answer::Burst { sluice, vpc_cni }
        }
        None => Answer::Rows(rows(node, &options.pods)?),
    };
    Ok((answer, read.notes))
}

fn bounded(option: &'static str, asked: u32) -> Result<(), PlanError> {
    if asked > MOST_PODS { Err(PlanError::TooMany { option, asked }) } else { Ok(()) }
}

/// Pods are added one by one, in ascending order whatever order they are asked for in; rows are in the order asked.
fn rows(mut node: Node, asked: &[u32]) -> Result<Vec<Figures>, PlanError> {
    let most = asked.iter().copied().max().unwrap_or(0);
    node.settle()?;
    let mut figures = vec![node.figures()];
    for pod in 0..most {
        node.add(&format!("pod{pod}"))?;
        node.settle()?;
        figures.push(node.figures());
    }
    let row = |pods: &u32| usize::try_from(*pods).ok().and_then(|pods| figures.get(pods).copied());
    Ok(asked.iter().filter_map(row).collect())
}

fn burst(mut node: Node, pods: u32) -> Result<Burst, PlanError> {
    node.settle()?;
    let before = node.figures();
    node.add_all((0..pods).map(|pod| format!("pod{pod}")))?;
    let took = node.serve_all()?;
    let ec2_calls = node.figures().ec2_calls - before.ec2_calls;
    let at_once = node.waits().iter().filter(|wait| **wait == Duration::ZERO).count();
    Ok(Burst { pods, at_once: u32::try_from(at_once).unwrap_or(u32::MAX), took, ec2_calls, all: true })
}
