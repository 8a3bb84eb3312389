//! Flows in a file, one JSON object a line, as `hubble observe -o jsonpb` prints them.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use sluice_daemon::rotated::RotatedFile;
use sluice_hubble::filter::Filters;
use sluice_hubble::flow::FlowFilter;
use sluice_hubble::json;
use sluice_hubble::mask::Mask;
use sluice_hubble::observer::GetFlowsResponse;
use sluice_hubble::observer::get_flows_response::ResponseTypes;

use super::{Flows, Node};

/// How often what is new is written.
const EVERY: Duration = Duration::from_millis(500);

/// Records that are written in one go.
const AT_ONCE: usize = 4096;

/// Which flows are written, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Export {
    /// `SLUICE_FLOWS_FILE`.
    pub path: PathBuf,
    /// `SLUICE_FLOWS_FILE_MIB`, in bytes.
    pub limit: u64,
    /// `SLUICE_FLOWS_FILE_ALLOW`: filters, one JSON object a line; none: all flows.
    pub allow: Vec<String>,
    /// `SLUICE_FLOWS_FILE_DENY`.
    pub deny: Vec<String>,
    /// `SLUICE_FLOWS_FILE_FIELDS`; none: all fields.
    pub fields: Vec<String>,
}

impl Export {
    /// What of it cannot be used: the variable, its value, and the rule.
    pub(crate) fn faults(&self) -> Vec<(&'static str, String, String)> {
        let mut faults = Vec::new();
        for (variable, list) in [("SLUICE_FLOWS_FILE_ALLOW", &self.allow), ("SLUICE_FLOWS_FILE_DENY", &self.deny)] {
            if let Err(rule) =
                read(list).and_then(|filters| Filters::new(&filters, &[]).map_err(|error| error.to_string()))
            {
                faults.push((variable, list.join("\n"), rule));
            }
        }
        if let Err(error) = Mask::new(self.fields.iter().map(String::as_str)) {
            faults.push(("SLUICE_FLOWS_FILE_FIELDS", self.fields.join(","), error.to_string()));
        }
        faults
    }
}

fn read(list: &[String]) -> Result<Vec<FlowFilter>, String> {
    list.iter().map(|text| json::read_exactly(text).map_err(|error| error.to_string())).collect()
}

/// Writes what comes for as long as it is polled.
pub(crate) async fn export(export: Export, flows: Flows, node: Node) {
    let Some(mut writer) = Writer::new(export, node) else { return };
    let mut changed = flows.watch();
    loop {
        changed.mark_unchanged();
        writer.write_new(&flows);
        if changed.changed().await.is_err() {
            return;
        }
        // More comes with it.
        tokio::time::sleep(EVERY).await;
    }
}

pub(super) struct Writer {
    file: RotatedFile,
    filters: Filters,
    mask: Option<Mask>,
    node: Node,
    last: u64,
    failed: bool,
    /// Flows that could not be written, and are not told of yet.
    lost: u64,
}

impl Writer {
    /// None, with a word in the log: the configuration does not hold.
    pub(super) fn new(export: Export, node: Node) -> Option<Self> {
        let Export { path, limit, allow, deny, fields } = export;
        let filters = read(&allow).and_then(|allow| {
            let deny = read(&deny)?;
            Filters::new(&allow, &deny).map_err(|error| error.to_string())
        });
        let mask = (!fields.is_empty()).then(|| Mask::new(fields.iter().map(String::as_str))).transpose();
        match (filters, mask) {
            (Ok(filters), Ok(mask)) => {
                Some(Self { file: RotatedFile::new(path, limit), filters, mask, node, last: 0, failed: false, lost: 0 })
            }
            (filters, mask) => {
                tracing::error!(filters = ?filters.err(), mask = ?mask.err(), "flows are not written to a file");
                None
            }
        }
    }

    /// Writes what has come since the last time. What is gone meanwhile is told by a line of its own.
    pub(super) fn write_new(&mut self, flows: &Flows) {
        loop {
            let (records, gone) = flows.after(self.last, AT_ONCE);
            let Some(newest) = records.last() else { return };
            // Half a line may have been left by what failed.
            let mut text = String::from(if self.failed { "\n" } else { "" });
            let missed = gone.saturating_add(self.lost);
            let mut add = |response: &GetFlowsResponse| match json::line(response) {
                Ok(line) => {
                    text.push_str(&line);
                    text.push('\n');
                }
                Err(error) => tracing::error!(error = %error, "a flow has no JSON"),
            };
            if missed > 0 {
                add(&self.node.missed(missed, newest.time));
            }
            for record in &records {
                let mut response = self.node.response(record);
                if let Some(ResponseTypes::Flow(flow)) = &mut response.response_types {
                    if !self.filters.passes(flow) {
                        continue;
                    }
                    if let Some(mask) = &self.mask {
                        match mask.apply(flow) {
                            Ok(masked) => *flow = masked,
                            Err(_) => continue,
                        }
                    }
                }
                add(&response);
            }
            self.last = newest.number;
            let written = self.file.write(text.as_bytes());
            let count = u64::try_from(records.len()).unwrap_or(u64::MAX);
            self.lost = if written.is_err() { missed.saturating_add(count) } else { 0 };
            match written {
                Ok(()) => self.failed = false,
                Err(error) if !std::mem::replace(&mut self.failed, true) => {
                    tracing::error!(path = %self.file.path().display(), error = %error, "flows could not be written");
                }
                Err(_) => {}
            }
        }
    }
}
