//! The API server is away, breaks off, or has forgotten what was watched.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;

use sluice_policy_core::cluster::PodKey;
use sluice_tests::apiserver::{Fault, FaultRule, Outage};
use sluice_tests::directory::Directory;
use sluice_tests::live::publish::SourceKind;
use sluice_tests::privileged::privileged;
use sluice_vpcsim::policyd::Source;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{admits, adopted, begin, begun, chain, client_only, holds, options, stage, step, suite};

/// Issue C, 3; DESIGN 11: verdicts hold, pods that are known start, and what changed meanwhile is in force afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_api_server_does_opens_nothing_and_closes_nothing() {
    if !privileged() {
        return;
    }
    let (allow, swap) = (admits("client"), admits("other"));
    let rows = |client: &str, other: &str| {
        format!(
            "[{{from: x/client, to: x/server, port: 80, verdict: {client}}}, {{from: x/other, to: x/server, port: 80, verdict: {other}}}]"
        )
    };
    let (one, two) = (rows("allow", "deny"), rows("deny", "allow"));
    let steps: String = [(&allow, &one), (&swap, &two), (&allow, &one), (&swap, &two), (&allow, &one)]
        .iter()
        .map(|(policy, rows)| format!("\n  - apply: [{policy}]\n    expect: {rows}"))
        .collect();
    let suite = suite(&steps);
    let mut options = options();
    options.source = SourceKind::Api;
    let mut stage = stage(suite, &options).await;
    let mut act = begun(&mut stage, suite, &options).await;

    // Away: pods that are known come and go.
    let api = |act: &super::Act<'_, 'static>, outage| act.stage.publisher.api.as_ref().unwrap().outage(outage);
    let other = PodKey { namespace: "x".into(), name: "other".into() };
    let pod = act.stage.fixture.pods[&other].clone();
    for outage in [Outage::Refuse, Outage::Hang] {
        api(&act, outage);
        holds(&mut act, suite, 0).await;
        act.stage.town.delete(&other).await.unwrap();
        act.stage.town.add(&[(other.clone(), pod.clone())]).await.unwrap();
        holds(&mut act, suite, 0).await;
        // Whoever was left hanging is answered by nobody: a server that comes back knows no old connections.
        act.stage.publisher.api.as_ref().unwrap().heal();
        act.stage.publisher.api.as_ref().unwrap().cut();
    }
    step(&mut act, suite, 1).await;

    // The watches are cut, and then the server has forgotten what they would go on with (410 Gone).
    act.stage.publisher.api.as_ref().unwrap().cut();
    step(&mut act, suite, 2).await;
    act.stage.publisher.api.as_ref().unwrap().compact();
    act.stage.publisher.api.as_ref().unwrap().end_watches();
    step(&mut act, suite, 3).await;

    // It has too much to do.
    let busy = Fault::Status { code: 429, retry_after: Some(1) };
    act.stage.publisher.api.as_ref().unwrap().fault(FaultRule::times(5, "", "networkpolicies", busy));
    act.stage.publisher.api.as_ref().unwrap().cut();
    step(&mut act, suite, 4).await;
}

/// Where a pod has its service account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const TOKEN: &str = "eyJhbGciOiJub25lIn0.a-token.of-a-test";

/// A certificate for an address, which is its own authority, and its key; as PEM.
fn certificate(address: SocketAddr) -> (Vec<u8>, Vec<u8>) {
    let directory = Directory::new("tls").unwrap();
    let settings = format!(
        "[req]\ndistinguished_name = name\nx509_extensions = more\nprompt = no\n[name]\nCN = kubernetes\n\
         [more]\nbasicConstraints = critical,CA:FALSE\nsubjectAltName = IP:{}\n",
        address.ip()
    );
    directory.write("settings", &settings).unwrap();
    let arguments = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -config settings -keyout key -out certificate";
    let made = Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(directory.path())
        .output()
        .expect("openssl is needed");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let [certificate, key] = ["certificate", "key"].map(|file| std::fs::read(directory.path().join(file)).unwrap());
    (certificate, key)
}

/// As in a cluster: TLS by the certificate of the service account, and its token, which the API server asks for.
#[tokio::test(flavor = "multi_thread")]
async fn the_agent_speaks_tls_with_its_service_account() {
    if !privileged() {
        return;
    }
    let suite = suite(&client_only());
    let mut options = options();
    options.source = SourceKind::Api;
    let mut stage = stage(suite, &adopted::before(&options)).await;
    let mut act = begin(&mut stage, suite, &options).await;
    act.advance(&suite.vectors[0].steps[0]).await.unwrap_or_else(|error| panic!("{}", chain(&error)));

    let server = SocketAddr::from(([192, 0, 2, 251], 443));
    let (certificate, key) = certificate(server);
    let provider = Arc::new(aws_lc_rs::default_provider());
    let chain_of = vec![CertificateDer::from_pem_slice(&certificate).unwrap()];
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain_of, PrivateKeyDer::from_pem_slice(&key).unwrap())
        .unwrap();
    let outside = act.stage.town.outside(server.ip()).await.unwrap();
    let listener = outside.net.run(|| std::net::TcpListener::bind(server).unwrap()).unwrap();
    listener.set_nonblocking(true).unwrap();
    let api = act.stage.publisher.api.as_ref().unwrap();
    api.require(TOKEN);
    api.listen_tls(tokio::net::TcpListener::from_std(listener).unwrap(), TlsAcceptor::from(Arc::new(config)));
    let authority = String::from_utf8(certificate).unwrap();
    for node in act.stage.town.nodes.values() {
        for (file, text) in [("token", TOKEN), ("namespace", "kube-system"), ("ca.crt", &*authority)] {
            node.node.write(format!("{ACCOUNT}/{file}"), text).await.unwrap();
        }
    }
    adopted::install(act.stage, &options, &Source::ServiceAccount(server)).await;
    holds(&mut act, suite, 0).await;
}
