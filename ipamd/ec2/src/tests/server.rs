//! An HTTP server on the loopback address that answers what a test tells it, and keeps what it was asked.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Uri};
use axum::response::Response;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// What was asked.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) path: String,
    /// The fields of the Query protocol's form.
    pub(super) form: BTreeMap<String, String>,
    pub(super) headers: HeaderMap,
}

/// What to answer.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: String,
}

impl Answer {
    pub(super) fn new(status: u16, body: impl Into<String>) -> Self {
        Self { status, headers: Vec::new(), body: body.into() }
    }

    /// EC2's answer to `action`.
    pub(super) fn ec2(action: &str, inner: &str) -> Self {
        Self::new(
            200,
            format!(
                r#"<?xml version="1.0" encoding="UTF-8"?>
<{action}Response xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>59dbff89-35bd-4eac-99ed</requestId>{inner}</{action}Response>"#
            ),
        )
    }

    /// EC2's refusal.
    pub(super) fn error(status: u16, code: &str, message: &str) -> Self {
        let message = message.replace('&', "&amp;").replace('<', "&lt;");
        Self::new(
            status,
            format!(
                r#"<?xml version="1.0" encoding="UTF-8"?>
<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors><RequestID>ea966190-f9aa</RequestID></Response>"#
            ),
        )
    }

    pub(super) fn with(mut self, header: &'static str, value: &str) -> Self {
        self.headers.push((header, value.to_owned()));
        self
    }
}

type Handler = dyn Fn(&Request) -> Option<Answer> + Send + Sync;

/// The server; dropping it ends it.
#[derive(Debug)]
pub(super) struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Request>>>,
    task: JoinHandle<()>,
}

impl Server {
    /// Answers with what `handler` says; nothing means never.
    pub(super) async fn start(handler: impl Fn(&Request) -> Option<Answer> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (kept, handler): (_, Arc<Handler>) = (Arc::clone(&asked), Arc::new(handler));
        let app = Router::new().fallback(move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| {
            let form = form(&String::from_utf8_lossy(&body));
            let request = Request { method, path: uri.path().to_owned(), form, headers };
            kept.lock().unwrap().push(request.clone());
            let answer = handler(&request);
            async move {
                let Some(answer) = answer else { return std::future::pending().await };
                let mut response = Response::builder().status(answer.status);
                for (name, value) in answer.headers {
                    response = response.header(name, value);
                }
                response.body(Body::from(answer.body)).unwrap()
            }
        });
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, asked, task }
    }

    /// Gives these answers one after the other, and an error that no test expects to whatever comes after.
    pub(super) async fn answering(answers: impl IntoIterator<Item = Answer>) -> Self {
        let answers: Mutex<VecDeque<Answer>> = Mutex::new(answers.into_iter().collect());
        Self::start(move |_| {
            let next = answers.lock().unwrap().pop_front();
            Some(next.unwrap_or_else(|| Answer::error(400, "NoAnswerLeft", "the test has no more answers")))
        })
        .await
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it was asked so far.
    pub(super) fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }

    /// Forgets what it was asked.
    pub(super) fn forget(&self) {
        self.asked.lock().unwrap().clear();
    }

    /// The form of the only request.
    pub(super) fn only(&self) -> BTreeMap<String, String> {
        let asked = self.asked();
        assert_eq!(asked.len(), 1, "{asked:?}");
        asked.into_iter().next().unwrap().form
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn form(body: &str) -> BTreeMap<String, String> {
    let pairs = body.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (decoded(name), decoded(value))).collect()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next().unwrap(), rest.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).unwrap()
}
