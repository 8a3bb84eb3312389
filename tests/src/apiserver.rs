//! A Kubernetes API server in memory, for tests: what the real client asks of one, over plain HTTP, and what goes wrong
//! with one, on demand.
//!
//! It keeps objects as JSON, whatever is in them, and knows of each kind only its names, its scope and whether it has a
//! status. Lists are consistent over pages, watches begin at any revision that is remembered, updates conflict as they do
//! there. It checks no schema, defaults nothing and has no users. Core and `events.k8s.io` Events are two kinds here.
//!
//! ```no_run
//! # async fn example() -> std::io::Result<()> {
//! use sluice_tests::apiserver::{ApiServer, Fault, FaultRule};
//! let server = ApiServer::start().await?;
//! server.put_yaml("{apiVersion: v1, kind: Pod, metadata: {name: a}}");
//! server.fault(FaultRule::times(1, "list", "pods", Fault::Status { code: 429, retry_after: Some(1) }));
//! println!("{}", server.url());
//! # Ok(())
//! # }
//! ```

mod answer;
mod error;
mod fault;
mod handle;
mod kind;
mod log;
mod patch;
mod selector;
mod serve;
mod store;
mod watch;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch as signal;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

pub use error::ApiError;
pub use fault::{Fault, FaultRule, Outage};
pub use kind::{Kind, ObjectPath, Path, TableId, builtin, decoded, policy_kinds};
pub use log::Request;

use fault::Faults;
use log::Log;
use store::{Preconditions, Store};
use watch::Watches;

/// How often a watch sends a bookmark by itself. The real server sends one a minute.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);

/// What all connections share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    watches: Watches,
    /// Counts the times that all connections were cut.
    cut: signal::Sender<u64>,
    /// Whether nothing goes out.
    frozen: signal::Sender<bool>,
    /// What a request has to bring, where that is asked for.
    token: Mutex<Option<String>>,
}

#[derive(Debug)]
struct State {
    store: Store,
    faults: Faults,
    log: Log,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while the server is frozen.
    async fn thaw(&self) {
        // An error is the end of the server.
        let mut frozen = self.frozen.subscribe();
        let _ended = frozen.wait_for(|frozen| !frozen).await;
    }

    /// Wakes the watches.
    fn told(&self, revision: u64) {
        self.watches.revision.send_replace(revision);
    }
}

/// A copy of what a server stores.
#[derive(Debug, Clone)]
pub struct Backup(Store);

/// The server. Its connections end when it is dropped.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    listeners: Mutex<JoinSet<()>>,
}

impl ApiServer {
    /// A server on a free port of the loopback, with the built-in kinds and all policy kinds, and the namespaces `default`
    /// and `kube-system`. It must be called within a tokio runtime.
    ///
    /// # Errors
    /// There is no port to be had.
    pub async fn start() -> io::Result<Self> {
        Self::on(TcpListener::bind("127.0.0.1:0").await?, builtin().into_iter().chain(policy_kinds()).collect())
    }

    /// A server with the built-in kinds only: no policy kind but NetworkPolicy.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_bare() -> io::Result<Self> {
        Self::on(TcpListener::bind("127.0.0.1:0").await?, builtin())
    }

    /// A server on a listener (in whatever network namespace it was made) with these kinds.
    ///
    /// # Errors
    /// The listener has no address.
    pub fn on(listener: TcpListener, kinds: Vec<Kind>) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State { store: Store::new(kinds), faults: Faults::default(), log: Log::default() }),
            watches: Watches::new(BOOKMARK_EVERY),
            cut: signal::Sender::new(0),
            frozen: signal::Sender::new(false),
            token: Mutex::default(),
        });
        let server = Self { shared, address, listeners: Mutex::default() };
        server.listen(listener);
        server.put_yaml("{apiVersion: v1, kind: Namespace, metadata: {name: default}}");
        server.put_yaml("{apiVersion: v1, kind: Namespace, metadata: {name: kube-system}}");
        Ok(server)
    }

    /// Serves on a further listener too.
    pub fn listen(&self, listener: TcpListener) {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.spawn(serve::serve(listener, None, Arc::clone(&self.shared)));
    }

    /// Serves on a further listener by TLS.
    pub fn listen_tls(&self, listener: TcpListener, tls: TlsAcceptor) {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.spawn(serve::serve(listener, Some(tls), Arc::clone(&self.shared)));
    }

    /// Refuses every request from now on (401) that does not bring this bearer token.
    pub fn require(&self, token: &str) {
        *self.shared.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token.to_owned());
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://ADDRESS`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    // Objects, past the API's own checks.

    /// Puts an object in place, status, generation and all, as if it had always been so: no conflict, no check, no defaults.
    ///
    /// # Errors
    /// Its kind is not served.
    pub fn put(&self, object: Value) -> Result<Arc<Value>, ApiError> {
        let mut state = self.shared.state();
        let kind = state.store.kind_of(&object)?;
        let put = state.store.put(&kind, object);
        self.shared.told(state.store.revision());
        Ok(put)
    }

    /// Puts all objects of a YAML text.
    ///
    /// # Panics
    /// The text cannot be read, or a kind in it is not served: the test is wrong.
    #[expect(clippy::panic, reason = "this is how a test fails")]
    pub fn put_yaml(&self, text: &str) {
        let documents = sluice_policy_core::manifest::documents(text).unwrap_or_else(|error| panic!("{error}"));
        for object in documents {
            self.put(object).unwrap_or_else(|error| panic!("{error}"));
        }
    }

    /// Puts any JSON value where an object should be: what a broken storage or a foreign server might answer.
    ///
    /// # Errors
    /// The kind is not served.
    pub fn put_raw(&self, table: &TableId, namespace: &str, name: &str, value: Value) -> Result<(), ApiError> {
        let mut state = self.shared.state();
        let kind = state.store.kinds().iter().find(|kind| kind.table() == *table).cloned();
        let kind = kind.ok_or_else(ApiError::no_such_path)?;
        state.store.put_raw(&kind, &(namespace.to_owned(), name.to_owned()), value);
        self.shared.told(state.store.revision());
        Ok(())
    }

    /// An object, in the version in which it was last written.
    #[must_use]
    pub fn get(&self, table: &TableId, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.shared.state().store.get(table, &(namespace.to_owned(), name.to_owned()))
    }

    /// All objects of a kind.
    #[must_use]
    pub fn objects(&self, table: &TableId) -> Vec<Arc<Value>> {
        let state = self.shared.state();
        state.store.list(table, &selector::Filter::default(), None, 0).map(|page| page.items).unwrap_or_default()
    }

    /// Deletes an object, a namespace with all that is in it; returns the revision of the deletion.
    ///
    /// # Errors
    /// There is none.
    pub fn delete(&self, table: &TableId, namespace: &str, name: &str) -> Result<u64, ApiError> {
        let mut state = self.shared.state();
        let kind = state.store.kinds().iter().find(|kind| kind.table() == *table).cloned();
        let kind = kind.ok_or_else(ApiError::no_such_path)?;
        let key = (namespace.to_owned(), name.to_owned());
        state.store.delete(&kind, &key, &Preconditions::default())?;
        let revision = state.store.revision();
        self.shared.told(revision);
        Ok(revision)
    }

    /// The revision of the latest change.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.shared.state().store.revision()
    }

    // Kinds.

    /// Serves a kind from now on, as when its CustomResourceDefinition is installed; the definition is there too.
    pub fn install(&self, kind: Kind) {
        let definition = serde_json::json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{}.{}", kind.plural, kind.group)},
            "spec": {"group": kind.group, "names": {"kind": kind.kind, "plural": kind.plural}},
        });
        let mut state = self.shared.state();
        state.store.install(kind);
        if let Ok(definitions) = state.store.kind_of(&definition) {
            state.store.put(&definitions, definition);
        }
        self.shared.told(state.store.revision());
    }

    /// Serves a kind no more: its objects are gone, its watches end, its paths are not found.
    pub fn uninstall(&self, table: &TableId) {
        let mut state = self.shared.state();
        state.store.uninstall(table);
        let definitions = TableId::new("apiextensions.k8s.io", "customresourcedefinitions");
        let name = format!("{}.{}", table.plural, table.group);
        if let Some(kind) = state.store.kinds().iter().find(|kind| kind.table() == definitions).cloned() {
            // One that was there from the start has no definition.
            let _absent = state.store.delete(&kind, &(String::new(), name), &Preconditions::default());
        }
        self.shared.told(state.store.revision());
        drop(state);
        self.end_watches();
    }

    // Faults.

    /// Makes requests go wrong. Earlier rules come first.
    pub fn fault(&self, rule: FaultRule) {
        self.shared.state().faults.add(rule);
    }

    /// No request goes wrong any more, and the server is there.
    pub fn heal(&self) {
        self.freeze(false);
        let mut state = self.shared.state();
        state.faults.clear();
        state.faults.outage = None;
    }

    /// The server is away: all connections are cut, and new ones get nowhere, until [`Self::heal`].
    pub fn outage(&self, outage: Outage) {
        self.shared.state().faults.outage = Some(outage);
        self.cut();
    }

    /// Cuts all connections, in the middle of whatever they carry.
    pub fn cut(&self) {
        self.shared.cut.send_modify(|cut| *cut += 1);
    }

    /// Nothing goes out any more, on old connections and on new ones, and none is closed: a network that swallows packets.
    /// With `false` everything goes on where it stopped.
    pub fn freeze(&self, frozen: bool) {
        self.shared.frozen.send_replace(frozen);
    }

    /// Everything that is stored, with its revisions.
    #[must_use]
    pub fn backup(&self) -> Backup {
        Backup(self.shared.state().store.clone())
    }

    /// Sets the storage back to a backup, as etcd's manual has it: revisions go on above all that were (`--bump-revision`,
    /// `--mark-compacted`), though objects have those that they had. All connections are cut: the server begins anew.
    pub fn restore(&self, backup: &Backup) {
        let mut state = self.shared.state();
        state.store = backup.0.beyond(state.store.revision());
        drop(state);
        self.cut();
    }

    /// Sets the storage back to a backup, revisions and all, as nobody should. All connections are cut.
    pub fn set_back(&self, backup: &Backup) {
        self.shared.state().store = backup.0.clone();
        self.cut();
    }

    /// Ends all watches in good order, as at their timeout.
    pub fn end_watches(&self) {
        self.shared.watches.end.notify_waiters();
    }

    /// Forgets the past: watches and continued lists that began before now get 410 Gone.
    pub fn compact(&self) {
        let mut state = self.shared.state();
        state.store.compact();
        self.shared.told(state.store.revision());
    }

    /// Sends a bookmark on every watch that takes them.
    pub fn bookmark(&self) {
        self.shared.watches.bookmarks.send_modify(|count| *count += 1);
    }

    /// Sends a line on all watches of a kind, whatever it is.
    pub fn watch_line(&self, table: &TableId, line: &str) {
        self.shared.watches.lines.send_modify(|(count, latest)| {
            *count += 1;
            *latest = Some((table.clone(), line.to_owned()));
        });
    }

    // What was asked.

    /// The latest requests (at most 10,000), oldest first.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.shared.state().log.requests()
    }

    /// How many requests there were of a verb for a kind, since the last [`Self::clear_log`]; an empty text stands for any.
    #[must_use]
    pub fn count(&self, verb: &str, plural: &str) -> u64 {
        self.shared.state().log.count(verb, plural)
    }

    /// Forgets all requests.
    pub fn clear_log(&self) {
        self.shared.state().log.clear();
    }

    /// The number of watches under way.
    #[must_use]
    pub fn watches(&self) -> usize {
        self.shared.watches.revision.receiver_count()
    }
}
