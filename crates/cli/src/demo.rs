//! `sluice demo`: the product at work in a VPC in a box, with its production binaries and real packets.

mod act;
mod cluster;
mod flows;
mod matrix;
mod policy;
mod report;
mod requests;
mod tables;

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_vpcsim::deployment::{Binaries, Deployment, GateBinaries};
use sluice_vpcsim::world::World;
use tokio::signal::unix::{SignalKind, signal};

use act::{ActError, Stage};
use cluster::Cluster;
use report::Report;

use crate::exit;
use crate::paint::Paint;

/// Options of `sluice demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Leave everything up, with hints for a look around, until Ctrl-C.
    #[arg(long)]
    keep: bool,
    /// Print the findings as JSON; progress goes to standard error.
    #[arg(long)]
    json: bool,
}

/// Shows what is being done, on standard error, so that standard output holds the findings only.
#[derive(Debug)]
pub(crate) struct Progress {
    paint: Paint,
    begun: Instant,
}

impl Progress {
    /// A step that has been done.
    pub(crate) fn done(&self, what: &str) {
        let at = self.paint.dim(&format!("{:5.1} s", self.begun.elapsed().as_secs_f64()));
        self.line(&format!("{at}  {} {what}", self.paint.good("✓")));
    }

    /// A step that takes a while.
    pub(crate) fn begin(&self, what: &str) {
        let at = self.paint.dim(&format!("{:5.1} s", self.begun.elapsed().as_secs_f64()));
        self.line(&format!("{at}  {}", self.paint.dim(&format!("… {what}"))));
    }

    fn line(&self, text: &str) {
        // A closed standard error is no reason to stop.
        let _closed = writeln!(std::io::stderr().lock(), "{text}");
    }

    fn seconds(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }
}

/// Runs the demo; the exit code says whether every cell of the matrix is as it has to be.
pub(crate) fn main(options: &Options) -> ExitCode {
    let paint = |terminal: bool| Paint { colours: terminal };
    let progress = Progress { paint: paint(std::io::stderr().is_terminal()), begun: Instant::now() };
    let out = paint(std::io::stdout().is_terminal() && !options.json);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&progress, &error),
    };
    // A world that is being taken down may have threads that do not end at once: they must not keep the command.
    let code = runtime.block_on(run(options, &progress, out));
    runtime.shutdown_timeout(Duration::from_secs(5));
    code
}

async fn run(options: &Options, progress: &Progress, out: Paint) -> ExitCode {
    let mut interrupt = match interrupts() {
        Ok(interrupt) => interrupt,
        Err(error) => return failed(progress, &error),
    };
    let mut world = None;
    // Their daemons end before the world does, and not while it is kept for a look around.
    let mut running = Vec::new();
    let mut cluster = None;
    let outcome = tokio::select! {
        outcome = play(&mut world, &mut running, &mut cluster, options, progress, out) => outcome,
        () = interrupt.wait() => {
            progress.line("interrupted: taking everything down");
            down(running, world).await;
            return ExitCode::from(exit::INTERRUPTED);
        }
    };
    let code = match outcome {
        Ok(report) => {
            let told = if options.json {
                match serde_json::to_string_pretty(&report) {
                    Ok(text) => print(&format!("{text}\n")),
                    Err(error) => Err(error.into()),
                }
            } else {
                print(&format!("{}\n", tables::verdict(&report, out)))
            };
            match told {
                Ok(()) => ExitCode::from(u8::from(!report.faults().is_empty())),
                Err(error) => failed(progress, &error),
            }
        }
        Err(error) => failed(progress, &error),
    };
    if options.keep
        && let Some(world) = &world
    {
        hints(world, progress);
        interrupt.wait().await;
    }
    down(running, world).await;
    code
}

async fn play(
    world: &mut Option<World>,
    running: &mut Vec<Arc<Deployment>>,
    cluster: &mut Option<Cluster>,
    options: &Options,
    progress: &Progress,
    out: Paint,
) -> Result<Report, ActError> {
    let (binaries, gate) = (Binaries::beside_this_program()?, GateBinaries::beside_this_program()?);
    let proxy = Binaries::find("sluice-proxy")?;
    let world = world.insert(act::raise().await?);
    progress.done("a VPC with two m5.large nodes and a host on the Internet");
    let show = |text: String| {
        if !options.json {
            // What cannot be printed is said at the end, when the verdict cannot either.
            let _told = print(&format!("\n{text}"));
        }
    };
    let mut report = Report::default();
    let cluster = cluster.insert(Cluster::new(world.tag()).map_err(ActError::Cluster)?);
    let mut stage = Stage::set(world, (&binaries, &gate, &proxy), cluster, running, progress).await?;
    stage.pods(cluster, progress).await?;
    report.nodes = stage.node_rows().await?;
    show(tables::nodes(&report.nodes, out));
    report.pods = stage.pod_rows().await?;
    show(tables::pods(&report.pods, out));
    report.matrix = matrix::probe(&stage).await?;
    show(tables::matrix(&report.matrix, out));
    report.policies = policy::play(&stage, cluster, progress).await?;
    show(tables::policies(&report.policies, out));
    report.requests = requests::play(&stage, cluster, progress).await?;
    show(tables::requests(&report.requests, out));
    report.flows = flows::play(&stage, progress).await?;
    show(tables::flows(&report.flows, out));
    let (burst, extra) = stage.burst(progress).await?;
    show(tables::burst(&burst, out));
    report.burst = Some(burst);
    let give_back = stage.delete(extra, progress).await?;
    show(tables::give_back(&give_back, out));
    report.give_back = Some(give_back);
    show(String::new());
    report.seconds = progress.seconds();
    Ok(report)
}

async fn down(running: Vec<Arc<Deployment>>, world: Option<World>) {
    for deployment in &running {
        deployment.end().await;
    }
    drop(running);
    // Namespaces and processes are waited for: not on a thread that others need.
    drop(tokio::task::spawn_blocking(move || drop(world)).await);
}

fn hints(world: &World, progress: &Progress) {
    progress.line("\nEverything stays up until Ctrl-C. To look around, in another terminal:");
    for node in world.nodes().values() {
        progress.line(&format!("  {}:  {}", node.name(), node.enter_hint()));
    }
    progress.line(
        "  there: sluice status; sluice observe -f; ip rule; ip route show table 2; nft list ruleset; ip netns; curl 127.0.0.1:61679/v1/pool\n  \
         ipamd's log is beside the node's directory:",
    );
    for node in world.nodes().values() {
        progress.line(&format!("  {}", node.log("ipamd").display()));
    }
}

struct Interrupt {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    /// The terminal is closed.
    hangup: tokio::signal::unix::Signal,
}

impl Interrupt {
    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

fn interrupts() -> std::io::Result<Interrupt> {
    Ok(Interrupt {
        terminate: signal(SignalKind::terminate())?,
        interrupt: signal(SignalKind::interrupt())?,
        hangup: signal(SignalKind::hangup())?,
    })
}

fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // A reader that has gone away has seen what it wanted.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

fn failed(progress: &Progress, error: &dyn std::error::Error) -> ExitCode {
    let mut text = format!("{} {error}", progress.paint.bad("sluice demo:"));
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str("\n  because: ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    progress.line(&text);
    ExitCode::from(exit::SOFTWARE)
}
