//! `sluice explain`: may one reach another, and which rules say so. By the compiler that the nodes use, on objects in files,
//! or on those that this node's policyd knows.

mod directory;
mod live;
mod print;
mod question;

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use sluice_policy_core::compile::engine::Engine;
use sluice_policy_core::oracle::explain::{Matching, matching};
use sluice_policy_core::settings::Settings;
use sluice_policy_core::vector::probe::{Fate, Leg, Probe, enforced, fate, recorded};
use sluice_policy_core::vector::schema::{Expected, Fixture, Mode, Row};
use sluice_policy_core::vector::world::World;

use crate::config::Meaning;
use crate::exit;
use crate::paint::Paint;

/// Options of `sluice explain`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// A folder of YAML and JSON files with the cluster's objects: Namespaces, Pods, Nodes, Services, EndpointSlices and
    /// policies. Folders in it are read too. Without it, what this node's policyd knows.
    #[arg(long, value_name = "DIR")]
    cluster_dir: Option<PathBuf>,
    /// Who: `namespace/pod`, an IP address, or the name of a node.
    #[arg(long, value_name = "FROM")]
    from: String,
    /// Whom: `namespace/pod`, `namespace/service`, an IP address, the name of a node, or a domain name.
    #[arg(long, value_name = "TO")]
    to: String,
    /// On which port: `80/TCP`, `53/UDP`, `80` (TCP), `ICMP`, `ICMPv6`, `ICMP/13`.
    #[arg(long, value_name = "PORT")]
    port: String,
    /// With this HTTP request: `GET /path`.
    #[arg(long, value_name = "REQUEST", conflicts_with_all = ["dns", "server_name"])]
    http: Option<String>,
    /// The request's host.
    #[arg(long, value_name = "HOST", requires = "http")]
    host: Option<String>,
    /// With this question to a DNS server.
    #[arg(long, value_name = "NAME", conflicts_with = "server_name")]
    dns: Option<String>,
    /// With this server name in a TLS handshake.
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
    /// A name that has resolved: `example.com=203.0.113.7`. May be given more than once.
    #[arg(long, value_name = "NAME=ADDRESS")]
    resolve: Vec<String>,
    #[command(flatten)]
    meaning: Meaning,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The answer.
struct Answer {
    row: Row,
    ways: Vec<Way>,
    notes: Vec<String>,
}

/// One way to the destination: there are more where it is a Service, one for each backend.
struct Way {
    legs: Vec<(Leg, Vec<Matching>)>,
    fate: Fate,
    /// What is recorded, if dry runs make it another.
    recorded: Option<Expected>,
}

/// Answers.
pub(crate) fn main(options: &Options) -> ExitCode {
    let answer = match answer(options) {
        Ok(answer) => answer,
        Err(fault) => {
            // A closed standard error is no reason for another status.
            let _closed = writeln!(io::stderr().lock(), "sluice: {fault}");
            return ExitCode::from(exit::DATA);
        }
    };
    let out = io::stdout();
    let paint = Paint { colours: out.is_terminal() };
    let text = if options.json { print::json(&answer) } else { print::text(&answer, paint) };
    match out.lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

fn answer(options: &Options) -> Result<Answer, String> {
    let mut notes = Vec::new();
    let mut resolve = options.resolve.clone();
    let (objects, settings) = match &options.cluster_dir {
        Some(folder) => {
            let (objects, left_out) = directory::read(folder)?;
            notes.extend(left_out);
            (objects, options.meaning.settings()?)
        }
        None => {
            let live = live::read()?;
            notes.extend(live.notes);
            resolve.extend(live.resolve);
            (live.objects, options.meaning.settings_beside(live.cidrs_match_managed))
        }
    };
    let mut world = World::new(&Fixture::default());
    let question = question::Question::read(options, &resolve, &objects)?;
    world.step(&question.step).map_err(|fault| fault.to_string())?;
    notes.extend(question.notes);
    notes.extend(world.issues().iter().map(|(object, issue)| format!("{object}: {issue}")));
    let events = world.take_events();
    let mut row = question.row;
    let judge = |node: Option<&_>, query: &_| {
        let mut engine = Engine::new(Settings { node: node.cloned(), ..settings.clone() });
        for event in &events {
            engine.apply(event.clone());
        }
        engine.commit();
        engine.judge(query)
    };
    let mut found = Err("nothing is asked".to_owned());
    let mut first = None;
    // IPv4 first; where one of the two has none, IPv6.
    for family in question.families {
        row.family = family;
        let (Some(from), Some(to)) = (row.from.endpoints.first(), row.to.endpoints.first()) else { break };
        let probe = Probe { row: &row, from, to, mode: Mode::PodIp };
        found = probe.legs(&world, &mut |node, query| judge(node, query)).map_err(|fault| fault.message);
        match &found {
            Ok(_) => break,
            Err(why) => first = first.or_else(|| Some(why.clone())),
        }
    }
    // Of two families that lead nowhere, why the first one does.
    let ways = found.map_err(|last| first.unwrap_or(last))?.into_iter().map(|legs| {
        let decided = fate(&legs, row.request.as_ref(), enforced);
        let record = fate(&legs, row.request.as_ref(), recorded);
        let recorded = Some(record.verdict).filter(|verdict| *verdict != decided.verdict);
        let matched = |leg: Leg| {
            let settings = Settings { node: leg.node.clone(), ..settings.clone() };
            // A Service's address is judged by its backends: the rules are told there.
            let rules = if leg.frontend { Vec::new() } else { matching(world.cluster(), &settings, &leg.query) };
            (leg, rules)
        };
        Way { legs: legs.into_iter().map(matched).collect(), fate: decided, recorded }
    });
    let ways = ways.collect();
    Ok(Answer { row, ways, notes })
}
