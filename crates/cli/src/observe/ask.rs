//! A node's observer is asked.

use std::time::Duration;

use sluice_hubble::observer::GetFlowsRequest;
use sluice_hubble::observer::observer_client::ObserverClient;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::print::{Printer, Style, goes_on};

/// How long a server may take to be reached.
const REACH: Duration = Duration::from_secs(5);

/// A connection to a server: `unix:PATH`, or HOST:PORT.
pub(crate) async fn connect(server: &str) -> Result<Channel, String> {
    let uri = match server.strip_prefix("unix:") {
        Some(path) => format!("unix:{}", path.strip_prefix("//").unwrap_or(path)),
        None if server.contains("://") => server.to_owned(),
        None => format!("http://{server}"),
    };
    let endpoint = Endpoint::from_shared(uri).map_err(|error| format!("--server {server:?}: {error}"))?;
    endpoint.connect_timeout(REACH).connect().await.map_err(|error| {
        let mut why = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            why = cause.to_string();
            source = cause.source();
        }
        format!("{server} cannot be reached: {why}. Is sluice-policyd running on this node? (as root, on the node; or --server)")
    })
}

/// Shows what a server says.
pub(super) fn ask(server: &str, request: GetFlowsRequest, style: Style) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(async {
        let mut client = ObserverClient::new(connect(server).await?);
        let told = |status: tonic::Status| match status.code() {
            Code::InvalidArgument | Code::Unimplemented | Code::ResourceExhausted => status.message().to_owned(),
            code => format!("{server}: {code}: {}", status.message()),
        };
        let mut flows = client.get_flows(request).await.map_err(told)?.into_inner();
        let mut printer = Printer::new(style);
        while let Some(response) = flows.message().await.map_err(told)? {
            if !goes_on(printer.show(&response))? {
                return Ok(());
            }
        }
        goes_on(printer.end()).map(drop)
    })
}
