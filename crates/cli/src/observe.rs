//! `sluice observe`: flows of a node, as `hubble observe` shows them, with the rule that decided.

mod ask;
mod filters;
mod nodes;
mod print;
mod time;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::ValueEnum;
use sluice_hubble::filter::Filters as Compiled;
use sluice_hubble::json;
use sluice_hubble::mask::Mask;
use sluice_hubble::observer::get_flows_response::ResponseTypes;
use sluice_hubble::observer::{GetFlowsRequest, GetFlowsResponse};

use self::filters::{Filters, Lists};
use self::print::{Format, Printer, Style, goes_on};
use crate::exit;
use crate::kubectl::Reach;
use crate::paint::Paint;

pub(crate) use self::filters::split_not;

/// Flows that are shown where nothing else is asked for.
const USUAL: u64 = 20;

/// Options of `sluice observe`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Where flows are told: `unix:PATH`, or HOST:PORT of a Hubble observer.
    #[arg(long, value_name = "SERVER", default_value = concat!("unix:", "/run/sluice/hubble.sock"))]
    server: String,
    #[command(flatten)]
    tls: ask::Tls,
    /// Show flows of this file, one a line as `-o jsonpb` prints them, and ask nobody; `-`: standard input.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["follow", "cluster", "on"])]
    input_file: Option<String>,
    /// Go on with flows as they come.
    #[arg(short, long, conflicts_with = "first")]
    follow: bool,
    /// End when standard input does: with the connection over which this was started.
    #[arg(long, requires = "follow", hide = true)]
    until_stdin_ends: bool,
    /// Show all flows that are kept.
    #[arg(long, conflicts_with_all = ["first", "last"])]
    all: bool,
    /// Show the last so many (20, where nothing else is asked for).
    #[arg(long, value_name = "NUMBER", conflicts_with = "first")]
    last: Option<u64>,
    /// Show the first so many of those that are kept.
    #[arg(long, value_name = "NUMBER")]
    first: Option<u64>,
    /// Show flows from then on: `30s`, `5m`, `2h` ago, or a time such as 2026-01-31T23:59:59Z.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Show flows until then.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    #[command(flatten)]
    reach: Reach,
    #[command(flatten)]
    filters: Filters,
    #[command(flatten)]
    lists: Lists,
    /// How flows are shown.
    #[arg(short, long, value_name = "FORMAT", default_value = "compact")]
    output: Format,
    /// With JSON: these fields only, such as `time,verdict,source.pod_name`.
    #[arg(long, value_name = "FIELDS", value_delimiter = ',')]
    field_mask: Vec<String>,
    /// How times are shown, in UTC.
    #[arg(long, value_name = "FORMAT", default_value = "stamp-milli")]
    time_format: time::TimeFormat,
    /// Colours: on a terminal, always, or never.
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    color: When,
    /// Show addresses in place of names.
    #[arg(long)]
    numeric: bool,
    /// Show the node of each flow.
    #[arg(long)]
    print_node_name: bool,
    /// Show the policies that decided at the end of each line, as Hubble does; the rule stands in the summary anyhow.
    #[arg(long)]
    print_policy_names: bool,
    /// Show the filters that would be sent, as JSON, and ask nobody.
    #[arg(long)]
    print_raw_filters: bool,
}

/// Whether output is coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum When {
    Auto,
    Always,
    Never,
}

/// Shows flows. `denied` is what stood behind each `--not`.
pub(crate) fn main(options: &Options, denied: &[Vec<OsString>]) -> ExitCode {
    let fault = |text: &str, status: u8| {
        // A closed standard error is no reason for another status.
        let _closed = writeln!(io::stderr().lock(), "sluice observe: {text}");
        ExitCode::from(status)
    };
    let request = match request(options, denied) {
        Ok(request) => request,
        Err(text) => return fault(&text, exit::USAGE),
    };
    if options.print_raw_filters {
        return match raw(&request) {
            Ok(text) => show(&text),
            Err(text) => fault(&text, exit::SOFTWARE),
        };
    }
    let colours = match options.color {
        When::Auto => io::stdout().is_terminal(),
        When::Always => true,
        When::Never => false,
    };
    let far = options.reach.is_far();
    let style = Style {
        format: options.output,
        paint: Paint { colours },
        time: options.time_format,
        numeric: options.numeric,
        node: options.print_node_name || far,
        policies: options.print_policy_names,
        follow: options.follow,
    };
    let shown = match &options.input_file {
        Some(path) => read_file(path, &request, style),
        None if far => nodes::ask(options, &request, style),
        None => ask::ask(options, request, style),
    };
    match shown {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => fault(&text, exit::UNAVAILABLE),
    }
}

fn show(text: &str) -> ExitCode {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

fn request(options: &Options, denied: &[Vec<OsString>]) -> Result<GetFlowsRequest, String> {
    let now = std::time::SystemTime::now();
    let at = |name: &str, text: &Option<String>| {
        let read = |text: &String| time::read(text, now).map_err(|rule| format!("--{name} {text:?}: {rule}"));
        text.as_ref().map(read).transpose()
    };
    let (since, until) = (at("since", &options.since)?, at("until", &options.until)?);
    let usual = !options.all && !options.follow && since.is_none() && until.is_none() && options.input_file.is_none();
    let number = match (options.first, options.last) {
        (Some(number), _) | (None, Some(number)) => number,
        (None, None) if usual => USUAL,
        (None, None) => 0,
    };
    let mut whitelist = options.filters.read()?;
    whitelist.extend(options.lists.allow()?);
    let mut blacklist = options.lists.deny()?;
    for arguments in denied {
        blacklist.extend(filters::denied(arguments)?);
    }
    let paths: Vec<String> = options.field_mask.clone();
    if !paths.is_empty() && !matches!(options.output, Format::Json | Format::Jsonpb) {
        return Err("--field-mask needs -o json or -o jsonpb".to_owned());
    }
    Mask::new(paths.iter().map(String::as_str)).map_err(|error| format!("--field-mask: {error}"))?;
    // What the server would refuse is refused here, with the same words.
    Compiled::new(&whitelist, &blacklist).map_err(|error| error.to_string())?;
    Ok(GetFlowsRequest {
        number,
        first: options.first.is_some(),
        follow: options.follow,
        blacklist,
        whitelist,
        since: since.map(Into::into),
        until: until.map(Into::into),
        field_mask: (!paths.is_empty()).then_some(prost_types::FieldMask { paths }),
        ..GetFlowsRequest::default()
    })
}

fn raw(request: &GetFlowsRequest) -> Result<String, String> {
    let mut text = String::new();
    for (title, list) in [("allowlist", &request.whitelist), ("denylist", &request.blacklist)] {
        if list.is_empty() {
            continue;
        }
        text.push_str(title);
        text.push_str(":\n");
        for filter in list {
            text.push_str("    - '");
            text.push_str(&json::line(filter).map_err(|error| error.to_string())?);
            text.push_str("'\n");
        }
    }
    Ok(text)
}

/// Shows flows of a file.
fn read_file(path: &str, request: &GetFlowsRequest, style: Style) -> Result<(), String> {
    let lines: Box<dyn BufRead> = if path == "-" {
        Box::new(BufReader::new(io::stdin()))
    } else {
        Box::new(BufReader::new(File::open(path).map_err(|error| format!("{path}: {error}"))?))
    };
    let filters = Compiled::new(&request.whitelist, &request.blacklist).map_err(|error| error.to_string())?;
    let paths = request.field_mask.as_ref().map(|mask| mask.paths.clone()).unwrap_or_default();
    let mask = (!paths.is_empty()).then(|| Mask::new(paths.iter().map(String::as_str))).transpose();
    let mask = mask.map_err(|error| error.to_string())?;
    let bound = |stamp: Option<prost_types::Timestamp>| stamp.map(|stamp| (stamp.seconds, stamp.nanos));
    let (since, until) = (bound(request.since), bound(request.until));
    let mut kept = std::collections::VecDeque::new();
    let number = usize::try_from(request.number).unwrap_or(usize::MAX);
    let mut printer = Printer::new(style);
    for (index, line) in lines.lines().enumerate() {
        let line = line.map_err(|error| format!("{path}: {error}"))?;
        if line.trim().is_empty() {
            continue;
        }
        let read = json::read::<GetFlowsResponse>(&line);
        let mut response = read.map_err(|error| format!("{path}, line {}: {error}", index + 1))?;
        let at = bound(response.time);
        let in_time = since.is_none_or(|since| at >= Some(since)) && until.is_none_or(|until| at <= Some(until));
        if let Some(ResponseTypes::Flow(flow)) = &mut response.response_types {
            if !in_time || !filters.passes(flow) {
                continue;
            }
            if let Some(mask) = &mask {
                *flow = mask.apply(flow).map_err(|error| error.to_string())?;
            }
        }
        let is_flow = matches!(response.response_types, Some(ResponseTypes::Flow(_)));
        if number == 0 {
            if !goes_on(printer.show(&response))? {
                return Ok(());
            }
            continue;
        }
        // What was lost is told beside all flows, not beside so many.
        if !is_flow {
            continue;
        }
        kept.push_back(response);
        if kept.len() > number {
            if request.first {
                kept.pop_back();
                break;
            }
            kept.pop_front();
        }
    }
    for response in &kept {
        if !goes_on(printer.show(response))? {
            return Ok(());
        }
    }
    goes_on(printer.end()).map(drop)
}
