//! A node's observer is asked.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sluice_hubble::observer::GetFlowsRequest;
use sluice_hubble::observer::observer_client::ObserverClient;
use tokio::sync::oneshot;
use tonic::Code;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::Options;
use super::print::{Printer, Style, goes_on};

/// How long a server may take to be reached.
const REACH: Duration = Duration::from_secs(5);

/// TLS of the server that is asked, by the names of Hubble's command.
#[derive(Debug, clap::Args)]
pub(super) struct Tls {
    /// Speak TLS with the server (`--server tls://HOST:PORT` says the same).
    #[arg(long)]
    tls: bool,
    /// The authorities that the server's certificate may be of (PEM); without them those that this machine trusts.
    #[arg(long, value_name = "FILES", value_delimiter = ',', alias = "tls-ca-cert-file")]
    tls_ca_cert_files: Vec<PathBuf>,
    /// The certificate that says who asks (PEM), where the server wants one.
    #[arg(long, value_name = "FILE", requires = "tls_client_key_file")]
    tls_client_cert_file: Option<PathBuf>,
    /// Its key.
    #[arg(long, value_name = "FILE", requires = "tls_client_cert_file")]
    tls_client_key_file: Option<PathBuf>,
    /// The name in the server's certificate, where it is not that of the host: `NODE.default.hubble-grpc.cilium.io` is policyd's.
    #[arg(long, value_name = "NAME")]
    tls_server_name: Option<String>,
}

impl Tls {
    /// Whether something is set that only TLS has.
    const fn has_options(&self) -> bool {
        !self.tls_ca_cert_files.is_empty() || self.tls_client_cert_file.is_some() || self.tls_server_name.is_some()
    }

    fn config(&self) -> Result<ClientTlsConfig, String> {
        let read = |path: &Path| std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
        let mut config = ClientTlsConfig::new();
        if self.tls_ca_cert_files.is_empty() {
            config = config.with_native_roots();
        }
        for path in &self.tls_ca_cert_files {
            config = config.ca_certificate(Certificate::from_pem(read(path)?));
        }
        if let (Some(certificate), Some(key)) = (&self.tls_client_cert_file, &self.tls_client_key_file) {
            config = config.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        if let Some(name) = &self.tls_server_name {
            config = config.domain_name(name.clone());
        }
        Ok(config)
    }
}

/// The innermost cause of an error.
fn cause(error: &tonic::transport::Error) -> String {
    let mut why = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        why = cause.to_string();
        source = cause.source();
    }
    why
}

/// A connection to a server: `unix:PATH`, or HOST:PORT.
async fn connect(server: &str, tls: &Tls) -> Result<Channel, String> {
    let (address, wanted) = match server.strip_prefix("tls://") {
        Some(address) => (address, true),
        None => (server, tls.tls),
    };
    if !wanted && tls.has_options() {
        return Err("--tls-ca-cert-files, --tls-client-cert-file and --tls-server-name need --tls".to_owned());
    }
    let scheme = if wanted { "https" } else { "http" };
    let uri = match address.strip_prefix("unix:") {
        Some(_) if wanted => return Err(format!("{server} speaks no TLS: leave out --tls")),
        Some(path) => format!("unix:{}", path.strip_prefix("//").unwrap_or(path)),
        None if address.contains("://") => address.to_owned(),
        None => format!("{scheme}://{address}"),
    };
    let mut endpoint = Endpoint::from_shared(uri).map_err(|error| format!("--server {server:?}: {error}"))?;
    if wanted {
        endpoint = endpoint.tls_config(tls.config()?).map_err(|error| format!("--tls: {}", cause(&error)))?;
    }
    endpoint.connect_timeout(REACH).connect().await.map_err(|error| {
        let next = if wanted {
            "Is it the right name (--tls-server-name) and authority (--tls-ca-cert-files)?"
        } else {
            "Is sluice-policyd running on this node? (as root, on the node; or --server)"
        };
        format!("{server} cannot be reached: {}. {next}", cause(&error))
    })
}

/// Shows what a server says.
pub(super) fn ask(options: &Options, request: GetFlowsRequest, style: Style) -> Result<(), String> {
    let (server, tls) = (options.server.as_str(), &options.tls);
    let hint = match (server.starts_with("unix:"), tls.tls || server.starts_with("tls://")) {
        (true, _) => "",
        (false, true) => " (does it want a certificate of who asks? --tls-client-cert-file)",
        (false, false) => " (does it speak TLS? --tls)",
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(async {
        let mut client = ObserverClient::new(connect(server, tls).await?);
        let told = |status: tonic::Status| match status.code() {
            Code::InvalidArgument | Code::Unimplemented | Code::ResourceExhausted => status.message().to_owned(),
            code @ (Code::Unavailable | Code::Unknown | Code::Internal) => {
                format!("{server}: {code}: {}{hint}", status.message())
            }
            code => format!("{server}: {code}: {}", status.message()),
        };
        let mut flows = client.get_flows(request).await.map_err(told)?.into_inner();
        let mut printer = Printer::new(style);
        let mut until = options.until_stdin_ends.then(stdin_ends);
        loop {
            let response = match &mut until {
                None => flows.message().await,
                Some(ended) => tokio::select! {
                    response = flows.message() => response,
                    _ = ended => break,
                },
            };
            let Some(response) = response.map_err(told)? else { break };
            if !goes_on(printer.show(&response))? {
                return Ok(());
            }
        }
        goes_on(printer.end()).map(drop)
    })
}

/// Is through when standard input has ended: who has started this over a connection is gone.
fn stdin_ends() -> oneshot::Receiver<()> {
    let (end, ended) = oneshot::channel::<()>();
    std::thread::spawn(move || {
        // What comes means nothing, and what cannot be read has ended.
        let _read = io::copy(&mut io::stdin().lock(), &mut io::sink());
        drop(end);
    });
    ended
}
