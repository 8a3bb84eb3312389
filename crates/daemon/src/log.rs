//! Logs: to the standard error, as text for people or as one JSON object a line; and errors in them.

pub mod levels;

use std::error::Error;
use std::fmt;
use std::io::{self, IsTerminal as _};

use serde::Serialize;
use sluice_contract::cni::chain;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

/// Displays an error and all that caused it, each once: `outer: inner: innermost`.
#[derive(Debug)]
pub struct ErrorChain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&chain(self.0))
    }
}

/// How log lines are written (`SLUICE_LOG_FORMAT`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Why there are no logs.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is not one.
    #[error("{filter:?} is no log filter (SLUICE_LOG); examples: debug, info,sluice_policyd=debug")]
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

/// Sets up logs for the whole process. What they say can be changed while it runs ([`levels::serve`]).
///
/// # Errors
/// [`LogError`].
pub fn start(filter: &str, format: LogFormat) -> Result<(), LogError> {
    let builder = tracing_subscriber::fmt().with_env_filter(parse(filter)?).with_writer(io::stderr);
    let (started, set): (_, levels::Set) = match format {
        LogFormat::Text => {
            let builder = builder.with_ansi(io::stderr().is_terminal()).with_filter_reloading();
            let handle = builder.reload_handle();
            (builder.finish().try_init(), Box::new(move |filter: EnvFilter| handle.reload(filter)))
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            let handle = builder.reload_handle();
            (builder.finish().try_init(), Box::new(move |filter: EnvFilter| handle.reload(filter)))
        }
    };
    started.map_err(LogError::Init)?;
    levels::keep(filter, set);
    Ok(())
}

fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::try_new(directives(filter)).map_err(|source| LogError::Filter { filter: filter.to_owned(), source })
}

/// A bare level is meant for Sluice; what it is built on only says what is wrong. Not the Kubernetes client: it has an error
/// for every attempt that fails, of every kind, where policyd says once that the API server is away.
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
        assert!(error.to_string().starts_with("\"sluice=loud\" is no log filter (SLUICE_LOG)"), "{error}");
    }
}
