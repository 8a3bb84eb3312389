//! Logs: to the standard error, as text for people or as one JSON object a line.

use std::io::{self, IsTerminal};

use sluice_policyd::config::LogFormat;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

/// Why there are no logs.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogsError {
    /// The filter is not one.
    #[error("SLUICE_LOG={filter:?} is no log filter; an example: info,sluice_policyd=debug")]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        #[source]
        source: ParseError,
    },
    /// Something has set up logs before.
    #[error("logs cannot be set up")]
    Init(#[source] TryInitError),
}

/// Sets up logs for the whole process.
pub(crate) fn start(filter: &str, format: LogFormat) -> Result<(), LogsError> {
    let directives = directives(filter);
    let parsed =
        EnvFilter::try_new(&directives).map_err(|source| LogsError::Filter { filter: filter.to_owned(), source })?;
    let builder = tracing_subscriber::fmt().with_env_filter(parsed).with_writer(io::stderr);
    let started = match format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).finish().try_init(),
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init(),
    };
    started.map_err(LogsError::Init)
}

/// A bare level is meant for Sluice; what it is built on only says what is wrong. Not the Kubernetes client: it has an error
/// for every attempt that fails, of every kind, where the source says once that the API server is away.
fn directives(filter: &str) -> String {
    match filter {
        "trace" | "debug" | "info" => format!("warn,kube_client=off,sluice={filter}"),
        _ => filter.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_level_is_for_sluice_alone() {
        assert_eq!(directives("debug"), "warn,kube_client=off,sluice=debug");
        assert_eq!(directives("error"), "error");
        assert_eq!(directives("info,hyper=debug"), "info,hyper=debug");
    }

    #[test]
    fn a_filter_that_is_none_is_refused_with_its_words() {
        let error = start("sluice=loud", LogFormat::Text).unwrap_err();
        assert!(error.to_string().starts_with("SLUICE_LOG=\"sluice=loud\" is no log filter"), "{error}");
    }
}
