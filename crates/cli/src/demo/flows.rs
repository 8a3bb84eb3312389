//! What both nodes' agents saw of all this, asked by `sluice observe` as an operator asks it.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::Instant;

use super::Progress;
use super::act::{ActError, Stage};
use super::report::FlowAct;

/// What is asked on both nodes, and what one of the answers has to name.
const QUESTIONS: [(&str, &[&str], &str); 3] = [
    (
        "--verdict DROPPED --type drop --last 3",
        &["--verdict", "DROPPED", "--type", "drop", "--last", "3"],
        "NetworkPolicy ",
    ),
    ("--type l7 --protocol http --last 3", &["--type", "l7", "--protocol", "http", "--last", "3"], "HTTP/1.1 "),
    ("--type l7 --protocol dns --last 3", &["--type", "l7", "--protocol", "dns", "--last", "3"], "DNS A "),
];
/// How long a flow may take to show.
const SHOWN: Duration = Duration::from_secs(3);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);

/// Asks both nodes.
pub(crate) async fn play(stage: &Stage<'_>, progress: &Progress) -> Result<Vec<FlowAct>, ActError> {
    let mut acts = Vec::new();
    for (question, arguments, wanted) in QUESTIONS {
        let end = Instant::now() + SHOWN;
        let act = loop {
            let mut lines = Vec::new();
            for node in stage.deployments.keys() {
                let told = observe(stage, node, arguments).await?;
                lines.extend(told.lines().map(|line| format!("{node}: {line}")));
            }
            let named = lines.iter().any(|line| line.contains(wanted));
            if named || Instant::now() >= end {
                break FlowAct { question: question.to_owned(), lines, wanted: wanted.to_owned(), named };
            }
            tokio::time::sleep(LOOK).await;
        };
        acts.push(act);
    }
    progress.done("sluice observe was asked on both nodes");
    Ok(acts)
}

/// What `sluice observe` prints on a node.
async fn observe(stage: &Stage<'_>, node: &str, arguments: &[&str]) -> Result<String, ActError> {
    let this = std::env::current_exe().map_err(ActError::Cluster)?;
    let mut command = Command::new(this);
    command.arg("observe").args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.kill_on_drop(true);
    let child = stage.deployment(node)?.node().spawn(command).await?;
    let output = child.wait_with_output().await.map_err(ActError::Cluster)?;
    if !output.status.success() {
        let what = format!("sluice observe on {node}: {}", String::from_utf8_lossy(&output.stderr).trim());
        return Err(ActError::Policies { what });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
