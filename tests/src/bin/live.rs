//! Runs a file of policy vectors with packets: see `./test live --help`.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use serde_json::json;
use sluice_policy_core::vector;
use sluice_policy_core::vector::schema::{Family, Mode};
use sluice_tests::live::place::{in_v6, placed};
use sluice_tests::live::publish::SourceKind;
use sluice_tests::live::run::{Tell, Told, run};
use sluice_tests::live::stage::Options;
use sluice_tests::live::town::{Plan, conflist};
use sluice_tests::service_proxy::Backend;
use sluice_vpcsim::deployment::Binaries;
use sluice_vpcsim::world::Chain;

/// Runs a file of policy vectors with real packets, against the real agent, plugins and programs, in network namespaces.
#[derive(Debug, Parser)]
#[command(name = "live", version)]
struct Arguments {
    /// The file of vectors (docs/policy-vectors.md); more of them are run one after the other
    #[arg(long, required = true)]
    vectors: Vec<PathBuf>,
    /// Only vectors whose id has this in it
    #[arg(long)]
    only: Option<String>,
    /// How pods are reached; unless given, as each vector says
    #[arg(long)]
    mode: Option<ModeName>,
    /// The family of rows that do not ask for one
    #[arg(long, default_value = "v4")]
    family: FamilyName,
    /// Where agents have the cluster from: a directory of files, or a (fake) API server
    #[arg(long, default_value = "dir")]
    source: SourceName,
    /// What carries the rules of Services
    #[arg(long, default_value = "nftables")]
    proxy: ProxyName,
    /// Without gates: every probe has to be answered, whatever the file expects
    #[arg(long)]
    ungated: bool,
    /// Clusters at once, one at least
    #[arg(long, default_value = "4", value_parser = clap::value_parser!(u8).range(1..=64))]
    at_once: u8,
    /// An object a line: failures, and last the counts
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ModeName {
    PodIp,
    ClusterIp,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FamilyName {
    V4,
    V6,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SourceName {
    Dir,
    Api,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ProxyName {
    Nftables,
    IptablesNft,
    IptablesLegacy,
}

fn options(arguments: &Arguments) -> Result<Options, Box<dyn std::error::Error>> {
    let mut plugins = vec![("sluice-eni".to_owned(), Binaries::find("sluice-eni")?)];
    let (chain, policyd, sluice_proxy) = if arguments.ungated {
        (json!([{"type": "sluice-eni"}]), None, None)
    } else {
        plugins.push(("sluice-policy".to_owned(), Binaries::find("sluice-policy")?));
        (
            json!([{"type": "sluice-eni", "gated": true}, {"type": "sluice-policy"}]),
            Some(Binaries::find("sluice-policyd")?),
            Some(Binaries::find("sluice-proxy")?),
        )
    };
    Ok(Options {
        only: arguments.only.clone(),
        mode: arguments.mode.map(|mode| match mode {
            ModeName::PodIp => Mode::PodIp,
            ModeName::ClusterIp => Mode::ServiceIp,
        }),
        family: match arguments.family {
            FamilyName::V4 => Family::V4,
            FamilyName::V6 => Family::V6,
        },
        plan: Plan {
            conflist: conflist(&chain),
            plugins,
            proxy: match arguments.proxy {
                ProxyName::Nftables => Backend::Nftables,
                ProxyName::IptablesNft => Backend::IptablesNft,
                ProxyName::IptablesLegacy => Backend::IptablesLegacy,
            },
        },
        source: match arguments.source {
            SourceName::Dir => SourceKind::Directory,
            SourceName::Api => SourceKind::Api,
        },
        policyd,
        at_once: arguments.at_once.into(),
        sluice_proxy,
    })
}

async fn all(arguments: &Arguments) -> Result<bool, Box<dyn std::error::Error>> {
    let options = options(arguments)?;
    let mut right = true;
    for path in &arguments.vectors {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let suite = vector::read(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        if let Some(faulty) = suite.faulty.first() {
            let why: Vec<String> = faulty.issues.iter().map(ToString::to_string).collect();
            return Err(format!("{}: {}: {}", path.display(), faulty.vector, why.join("; ")).into());
        }
        let suite = placed(suite);
        let suite = if options.family == Family::V6 { in_v6(suite) } else { suite };
        let begun = Instant::now();
        let json = arguments.json;
        let tell: Tell = Arc::new(move |told: Told<'_>| {
            // Whoever closed our output does not want to know.
            let _closed = match told {
                Told::Failure(failure) if json => writeln!(std::io::stdout(), "{}", failure.json()),
                Told::Failure(failure) => writeln!(std::io::stdout(), "{failure}"),
                Told::Fixture { name, took, pods } => {
                    writeln!(std::io::stderr(), "== {name}: {pods} pods up in {} ms", took.as_millis())
                }
                Told::Vector { id, mode, took } => {
                    writeln!(std::io::stderr(), "   {id} ({}): {} ms", mode.as_str(), took.as_millis())
                }
            };
        });
        // It lives as long as the clusters that are made of it: as long as this process.
        let report = run(Box::leak(Box::new(suite)), &options, &tell).await?;
        let _closed = if json {
            writeln!(std::io::stdout(), "{}", report.json())
        } else {
            writeln!(std::io::stdout(), "{}: {report} ({} s)", path.display(), begun.elapsed().as_secs())
        };
        right &= report.counts.failed == 0;
    }
    Ok(right)
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match all(&arguments).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _closed = writeln!(std::io::stderr(), "live: {}", Chain(&*error));
            ExitCode::from(2)
        }
    }
}
