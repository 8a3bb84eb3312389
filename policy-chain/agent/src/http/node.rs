//! The page of the node, for a browser; and what it shows: all three daemons, and flows.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{Html, IntoResponse, Response};
use serde_json::{Value, json};
use sluice_hubble::json as message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Pages;

/// The page, with all that it needs.
const PAGE: &str = include_str!("page.html");

/// It loads nothing from anywhere and asks only whom it is from.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// How long another daemon may take to answer, and how much it may say.
const PATIENCE: Duration = Duration::from_secs(2);
const LIMIT: u64 = 64 << 20;

/// Flows of one answer, at most, and if nothing else is asked for.
const MOST: usize = 2000;
const USUAL: usize = 500;

/// The page for a browser, the list of pages for everybody else.
pub(super) async fn root(headers: HeaderMap) -> Response {
    let wants_page = |value: &header::HeaderValue| value.to_str().is_ok_and(|text| text.contains("text/html"));
    if headers.get(header::ACCEPT).is_some_and(wants_page) {
        return ([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(PAGE)).into_response();
    }
    Json(json!({"AvailableCommands":
        ["/v1/flows", "/v1/names", "/v1/node", "/v1/objects", "/v1/policy", "/v1/settings"]}))
    .into_response()
}

/// What all daemons of the node say.
pub(super) async fn node(State(pages): State<Pages>) -> Json<Value> {
    let policyd = async {
        match pages.handle.look().await {
            Some(view) => json!(view),
            None => json!({"unreachable": "the daemon's loop does not answer"}),
        }
    };
    let (ipamd, proxy) = (pages.config.ipamd_address, pages.config.proxy_address);
    let (ipamd, policyd, proxy) = tokio::join!(ask(ipamd, "/v1/pool"), policyd, ask(proxy, "/v1/policy"));
    Json(json!({"node": pages.config.node, "ipamd": ipamd, "policyd": policyd, "proxy": proxy}))
}

/// A page of another daemon of this node.
async fn ask(mut address: SocketAddr, path: &str) -> Value {
    if address.ip().is_unspecified() {
        // Who serves all addresses is asked at the loopback address of IPv4, which each node has.
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    let answer = async {
        let mut stream = TcpStream::connect(address).await?;
        // With HTTP/1.0 a page ends where the connection does (RFC 9112, 6.3).
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(LIMIT).read_to_end(&mut answer).await?;
        Ok::<_, io::Error>(answer)
    };
    let read = |answer: Vec<u8>| {
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
        serde_json::from_slice::<Value>(answer.get(end + 4..)?).ok()
    };
    let why = match timeout(PATIENCE, answer).await {
        Ok(Ok(answer)) => match read(answer) {
            Some(value) => return value,
            None => format!("{address}: no page that can be read"),
        },
        Ok(Err(error)) => format!("{address}: {error}"),
        Err(_) => format!("{address}: no answer within {PATIENCE:?}"),
    };
    json!({"unreachable": why})
}

/// Flows with numbers above `after`, oldest first; of more than `most` the newest.
pub(super) async fn flows(State(pages): State<Pages>, uri: Uri) -> Response {
    let (mut after, mut most) = (0_u64, USUAL);
    for part in uri.query().unwrap_or_default().split('&').filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let known = match name {
            "after" => value.parse().map(|number| after = number).is_ok(),
            "most" => value.parse().map(|number: usize| most = number.clamp(1, MOST)).is_ok(),
            _ => false,
        };
        if !known {
            let wrong = format!("{part:?}: after and most can be asked, each a whole number\n");
            return (StatusCode::BAD_REQUEST, wrong).into_response();
        }
    }
    let last = *pages.flows.watch().borrow();
    let newest = last.saturating_sub(u64::try_from(most).unwrap_or(u64::MAX));
    let (records, _) = pages.flows.after(after.max(newest), most);
    let told = records.iter().filter_map(|record| {
        let response = message::value(&pages.flow_node.response(record)).ok()?;
        Some(json!({"number": record.number, "response": response}))
    });
    Json(told.collect::<Vec<_>>()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_everything_within_itself() {
        for outside in ["http://", "https://", "src=\"", "@import", "url("] {
            let rest = PAGE.replace("http://www.w3.org/2000/svg", "");
            assert!(!rest.contains(outside), "{outside}");
        }
        // Nothing that a pod or policy is called becomes markup.
        assert!(!PAGE.contains("innerHTML") && !PAGE.contains("insertAdjacentHTML"));
    }

    #[tokio::test]
    async fn browsers_get_the_page_and_programs_the_list() {
        let html = HeaderMap::from_iter([(header::ACCEPT, "text/html,*/*;q=0.8".parse().unwrap())]);
        let page = root(html).await;
        assert!(page.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap().starts_with("default-src 'none'"));
        assert!(page.headers()[header::CONTENT_TYPE].to_str().unwrap().starts_with("text/html"));
        let list = root(HeaderMap::new()).await;
        assert_eq!(list.headers()[header::CONTENT_TYPE], "application/json");
    }
}
