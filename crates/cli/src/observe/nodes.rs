//! Flows of the nodes of a cluster, in the order of their times, or as they come.

use std::io::{self, Write as _};

use prost_types::Timestamp;
use sluice_hubble::json;
use sluice_hubble::observer::get_flows_response::ResponseTypes;
use sluice_hubble::observer::{GetFlowsRequest, GetFlowsResponse};

use super::Options;
use super::print::{Printer, Style, goes_on};

/// Asks the nodes, each of which filters its own.
pub(super) fn ask(options: &Options, request: &GetFlowsRequest, style: Style) -> Result<(), String> {
    let agents = options.reach.agents()?;
    let arguments = arguments(options, request)?;
    let mut printer = Printer::new(style);
    if options.follow {
        let followed = options.reach.follow(&agents, &arguments)?;
        let mut left = agents.len();
        for line in &followed.lines {
            match line {
                Ok(line) => {
                    // A node of another version must not end the others.
                    match json::read::<GetFlowsResponse>(&line) {
                        Ok(response) => {
                            if !goes_on(printer.show(&response))? {
                                return Ok(());
                            }
                        }
                        Err(error) => tell(&format!("{line}: {error}")),
                    }
                }
                Err(end) => {
                    tell(&end);
                    left -= 1;
                    if left == 0 {
                        goes_on(printer.end())?;
                        return Err("flows come from no node any more".to_owned());
                    }
                }
            }
        }
        return goes_on(printer.end()).map(drop);
    }
    let mut all = Vec::new();
    let said = options.reach.ask(&agents, &arguments);
    let mut silent = 0;
    for (agent, said) in agents.iter().zip(said) {
        match said {
            Ok(said) => {
                for line in String::from_utf8_lossy(&said).lines().filter(|line| !line.trim().is_empty()) {
                    match json::read::<GetFlowsResponse>(line) {
                        Ok(response) => all.push(response),
                        Err(error) => tell(&format!("{}: {line}: {error}", agent.node)),
                    }
                }
            }
            Err(why) => {
                silent += 1;
                tell(&format!("{}: {why}", agent.node));
            }
        }
    }
    if silent == agents.len() {
        return Err("no node has answered".to_owned());
    }
    for response in chosen(all, request) {
        if !goes_on(printer.show(&response))? {
            return Ok(());
        }
    }
    goes_on(printer.end()).map(drop)
}

/// All in the order of their times; of flows so many as are asked for.
fn chosen(mut all: Vec<GetFlowsResponse>, request: &GetFlowsRequest) -> Vec<GetFlowsResponse> {
    let time =
        |response: &GetFlowsResponse| response.time.map_or((0, 0), |Timestamp { seconds, nanos }| (seconds, nanos));
    all.sort_by_key(time);
    let number = usize::try_from(request.number).unwrap_or(usize::MAX);
    if number == 0 {
        return all;
    }
    // What was lost is told beside all flows, not beside so many.
    all.retain(|response| matches!(response.response_types, Some(ResponseTypes::Flow(_))));
    if request.first {
        all.truncate(number);
    } else {
        all.drain(..all.len().saturating_sub(number));
    }
    all
}

/// The arguments by which a node is asked for the same.
fn arguments(options: &Options, request: &GetFlowsRequest) -> Result<Vec<String>, String> {
    let mut all: Vec<String> = ["observe", "--output", "jsonpb"].map(str::to_owned).into();
    let mut put = |name: &str, value: String| all.extend([format!("--{name}"), value]);
    for (name, filters) in [("allowlist", &request.whitelist), ("denylist", &request.blacklist)] {
        for filter in filters {
            put(name, json::line(filter).map_err(|error| error.to_string())?);
        }
    }
    if request.number > 0 {
        put(if request.first { "first" } else { "last" }, request.number.to_string());
    }
    for (name, value) in [("since", &options.since), ("until", &options.until)] {
        if let Some(value) = value {
            put(name, value.clone());
        }
    }
    if !options.field_mask.is_empty() {
        put("field-mask", options.field_mask.join(","));
    }
    if options.follow {
        all.extend(["--follow", "--until-stdin-ends"].map(str::to_owned));
    } else if request.number == 0 {
        all.push("--all".to_owned());
    }
    Ok(all)
}

fn tell(text: &str) {
    // A closed standard error is no reason to end.
    let _closed = writeln!(io::stderr().lock(), "sluice observe: {text}");
}

#[cfg(test)]
mod tests {
    use sluice_hubble::flow::Flow;
    use sluice_hubble::flow::LostEvent;

    use super::*;

    fn flow(seconds: i64) -> GetFlowsResponse {
        let response_types = Some(ResponseTypes::Flow(Flow::default()));
        let time = Some(Timestamp { seconds, nanos: 0 });
        GetFlowsResponse { time, response_types, ..GetFlowsResponse::default() }
    }

    #[test]
    fn flows_of_all_nodes_are_in_the_order_of_their_times() {
        let lost =
            GetFlowsResponse { response_types: Some(ResponseTypes::LostEvents(LostEvent::default())), ..flow(2) };
        let all = || vec![flow(5), flow(9), lost.clone(), flow(1), flow(7)];
        let times = |request: &GetFlowsRequest| -> Vec<i64> {
            chosen(all(), request).iter().map(|response| response.time.unwrap().seconds).collect()
        };
        let asked = |number, first| GetFlowsRequest { number, first, ..GetFlowsRequest::default() };
        assert_eq!(times(&asked(0, false)), [1, 2, 5, 7, 9]);
        assert_eq!(times(&asked(2, false)), [7, 9]);
        assert_eq!(times(&asked(2, true)), [1, 5]);
    }
}
