//! `vpcsim up` and `vpcsim down`: a scene in the foreground, and what a killed one left.

use std::fmt::Write as _;
use std::future::Future;
use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::Args;

use crate::fabric::EC2_ENDPOINT;
use crate::probe::ECHO_PORT;
use crate::scene::{Scene, SceneError};
use crate::world::{Outcome, World, WorldError, down as take_down};

/// What to bring up.
#[derive(Debug, Clone, Args)]
pub struct UpOptions {
    /// The scene: VPCs, gateways, instances and Internet hosts, as YAML.
    #[arg(short = 'f', long = "file", value_name = "SCENE.yaml")]
    scene: PathBuf,
}

/// What to take down.
#[derive(Debug, Clone, Args)]
pub struct DownOptions {
    /// Only the world with this tag, as `vpcsim up` printed it.
    tag: Option<String>,
}

/// Why a world did not come up, or not down.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    /// The scene.
    #[error(transparent)]
    Scene(#[from] SceneError),
    /// The world.
    #[error(transparent)]
    World(#[from] WorldError),
    /// Standard output, or the directory of worlds.
    #[error("cannot print, or read the directory of worlds")]
    Io(#[from] io::Error),
    /// Worlds that do not stop.
    #[error("still running: {}", .0.join(", "))]
    Runs(Vec<String>),
}

/// Brings the scene up, prints what there is and how to get in, and takes it down when `stop` is done.
///
/// # Errors
/// [`UpError`].
pub async fn up(options: &UpOptions, stop: impl Future<Output = ()>) -> Result<(), UpError> {
    let scene = Scene::read(&options.scene)?;
    tokio::pin!(stop);
    let world = tokio::select! {
        world = World::up(&scene) => world?,
        () = &mut stop => return Ok(()),
    };
    let mut out = io::stdout().lock();
    out.write_all(describe(&world, &scene).as_bytes())?;
    out.flush()?;
    drop(out);
    stop.await;
    Ok(())
}

/// Takes worlds down and says which.
///
/// # Errors
/// [`UpError::Runs`] when one does not stop.
pub fn down(options: &DownOptions) -> Result<(), UpError> {
    let mut runs = Vec::new();
    let mut out = io::stdout().lock();
    for (tag, outcome) in take_down(options.tag.as_deref())? {
        match outcome {
            Outcome::Stopped => writeln!(out, "{tag}: stopped")?,
            Outcome::Cleaned { processes } => {
                writeln!(out, "{tag}: its program was gone; {processes} processes ended, its files removed")?;
            }
            Outcome::Runs => runs.push(tag),
        }
    }
    if runs.is_empty() { Ok(()) } else { Err(UpError::Runs(runs)) }
}

fn describe(world: &World, scene: &Scene) -> String {
    let mut rows = vec![["NODE", "INSTANCE", "TYPE", "ADDRESS", "PUBLIC"].map(str::to_owned)];
    for name in world.nodes().keys() {
        let Ok(id) = world.instance(name) else { continue };
        let row = world.look(|model, _| {
            let instance = model.state().instances.get(id)?;
            let eni = model.state().enis.get(&instance.primary_eni)?;
            let public = eni.association.map_or_else(|| "-".to_owned(), |it| it.public_ip.to_string());
            Some([name.clone(), id.to_string(), instance.instance_type.clone(), eni.primary.to_string(), public])
        });
        rows.extend(row);
    }
    let mut text = format!("World {} is up. Ctrl-C takes it down.\n\n{}\n", world.tag(), table(&rows));
    // Writing to a String cannot fail.
    for node in world.nodes().values() {
        let _infallible = writeln!(text, "Enter {}:\n  {}", node.name(), node.enter_hint());
    }
    let _infallible =
        writeln!(text, "\nOn every node: EC2 at http://{EC2_ENDPOINT}, instance metadata at http://169.254.169.254.");
    for host in &scene.internet_hosts {
        let _infallible =
            writeln!(text, "On the Internet: {host}, which tells clients of port {ECHO_PORT} who it sees.");
    }
    text
}

/// Columns padded to their widest cell.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [["A", "B"], ["longer", "x"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "A       B\nlonger  x\n");
    }
}
