//! TLS of the port for flows: the certificate of this node, and whose clients may come. What the files say counts for the next
//! connection: a certificate that is replaced needs no restart.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use sluice_daemon::log::ErrorChain;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use tokio_rustls::rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{Error as RustlsError, RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;

/// Where certificates and keys are (PEM).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TlsFiles {
    /// `SLUICE_HUBBLE_TLS_CERT`: the server's certificate, and those between it and its authority.
    pub certificate: PathBuf,
    /// `SLUICE_HUBBLE_TLS_KEY`: its key.
    pub key: PathBuf,
    /// `SLUICE_HUBBLE_TLS_CLIENT_CA`: the authorities of clients' certificates. Without it any client may come.
    pub client_ca: Option<PathBuf>,
}

/// Why files cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    /// A file cannot be read, or is no PEM of its kind.
    #[error("{path} cannot be used")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// A file has nothing of what it is for.
    #[error("{path} has no certificate")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Certificate and key do not belong together, or are of a kind that is not spoken.
    #[error("certificate and key cannot be used")]
    Pair(#[source] RustlsError),
    /// The authorities of clients cannot be used.
    #[error("the authorities of clients cannot be used")]
    Clients(#[source] VerifierBuilderError),
}

/// What tells one content of the files from another: of each, its number, size and time of change.
type Stamp = Vec<Option<(u64, u64, i64, i64)>>;

/// The files, and what they said last.
#[derive(Clone)]
pub(crate) struct Tls {
    files: TlsFiles,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// The content that was looked at last, whether it could be used or not.
    seen: Option<Stamp>,
    config: Option<Arc<ServerConfig>>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Tls {
    /// By these files.
    pub(crate) fn new(files: TlsFiles) -> Self {
        Self { files, state: Arc::default() }
    }

    /// Takes a client in.
    pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> io::Result<TlsStream<S>> {
        let config = self.config().ok_or_else(|| io::Error::other("there is no certificate that can be used"))?;
        TlsAcceptor::from(config).accept(stream).await
    }

    /// By the newest content that could be used.
    pub(super) fn config(&self) -> Option<Arc<ServerConfig>> {
        let stamp = self.stamp();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.seen.as_ref() != Some(&stamp) {
            state.seen = Some(stamp);
            match self.files.load() {
                Ok(config) => state.config = Some(Arc::new(config)),
                Err(error) => {
                    let kept = state.config.is_some();
                    tracing::error!(error = %ErrorChain(&error), kept, "TLS for flows cannot be had as its files are now");
                }
            }
        }
        state.config.clone()
    }

    fn stamp(&self) -> Stamp {
        let TlsFiles { certificate, key, client_ca } = &self.files;
        let files = [Some(certificate), Some(key), client_ca.as_ref()];
        let of = |path: &PathBuf| {
            let file = std::fs::metadata(path).ok()?;
            Some((file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
        };
        files.into_iter().flatten().map(of).collect()
    }
}

impl TlsFiles {
    fn load(&self) -> Result<ServerConfig, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        // As Hubble's own servers: nothing older.
        let builder = builder.with_protocol_versions(&[&TLS13]).map_err(TlsError::Pair)?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for authority in certificates(path)? {
                    roots.add(authority).map_err(TlsError::Pair)?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(TlsError::Clients)?)
            }
        };
        let key = PrivateKeyDer::from_pem_file(&self.key);
        let key = key.map_err(|source| TlsError::File { path: self.key.clone(), source })?;
        let mut config = builder.with_single_cert(certificates(&self.certificate)?, key).map_err(TlsError::Pair)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |source| TlsError::File { path: path.to_owned(), source };
    let all = CertificateDer::pem_file_iter(path).map_err(failed)?.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    if all.is_empty() { Err(TlsError::Empty { path: path.to_owned() }) } else { Ok(all) }
}

/// The name in this node's certificate, as Hubble's peers have it: of the cluster `default`.
pub(super) fn server_name(node: &str) -> String {
    format!("{}.default.hubble-grpc.cilium.io", node.replace('.', "-"))
}
