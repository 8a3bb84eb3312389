//! Runs the benchmarks. `./bench` builds it and calls it.
#![forbid(unsafe_code)]

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use sluice_tests::bench::{ALL, Benchmark};

/// The load average up to which a machine counts as quiet.
const QUIET: f64 = 0.7;

/// Measures what SPECIFICATION promises, beside a peer in the same run.
#[derive(Debug, Parser)]
struct Arguments {
    /// List the benchmarks.
    #[arg(long)]
    list: bool,
    /// End with one line of JSON for each benchmark, and print no tables.
    #[arg(long)]
    json: bool,
    /// Numbers of promises, or names of benchmarks; all of them without.
    #[arg(value_name = "ID", value_parser = find)]
    benchmarks: Vec<Benchmark>,
}

fn find(text: &str) -> Result<Benchmark, String> {
    let named = |benchmark: &&Benchmark| benchmark.name == text || benchmark.id.eq_ignore_ascii_case(text);
    ALL.iter().find(named).copied().ok_or_else(|| "there is no such benchmark; see --list".to_owned())
}

fn say(text: &str) {
    // Progress is for whoever looks on.
    let _nobody = writeln!(std::io::stderr(), "  .. {text}");
}

/// The average number of processes that want to run, over the last minute (proc(5), `loadavg`).
fn load() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                text.push_str(&format!(": {error}"));
                cause = error.source();
            }
            let _nobody = writeln!(std::io::stderr(), "bench: {text}");
            ExitCode::from(2)
        }
    }
}

/// Whether every promise holds.
fn run(arguments: &Arguments) -> Result<bool, Box<dyn Error>> {
    let mut out = std::io::stdout();
    if arguments.list {
        for benchmark in ALL {
            writeln!(out, "{:14} {:14} {}", benchmark.id, benchmark.name, benchmark.about)?;
        }
        return Ok(true);
    }
    if let Some(load) = load().filter(|load| *load > QUIET) {
        say(&format!("the load average is {load}: on a machine that does other things too, times are too long"));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let chosen = if arguments.benchmarks.is_empty() { ALL.to_vec() } else { arguments.benchmarks.clone() };
    let mut holds = true;
    let mut lines = Vec::new();
    for benchmark in chosen {
        say(&format!("{} {}: {}", benchmark.id, benchmark.name, benchmark.about));
        let report = runtime.block_on((benchmark.run)(say))?;
        holds &= report.holds();
        if arguments.json {
            lines.push(report.json());
        } else {
            writeln!(out, "\n{} {}: {}\n\n{}", benchmark.id, benchmark.name, benchmark.about, report.text())?;
        }
    }
    for line in lines {
        writeln!(out, "{line}")?;
    }
    Ok(holds)
}
