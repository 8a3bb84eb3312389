//! A thread with its own runtime that spends its life in a set of namespaces.

use std::any::Any;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::thread::JoinHandle;

use nix::mount::{MsFlags, mount};
use nix::sched::CloneFlags;
use tokio::sync::{mpsc, oneshot};

use super::{Namespace, NamespaceError, NamespaceKind, unshare};

/// Jobs that wait for the thread to take them up; more than these make the caller wait.
const JOB_QUEUE: usize = 64;

type Job = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// What a thread does about one kind of namespace before its first job.
#[derive(Debug, Clone, Default)]
pub enum Enter {
    /// It stays in that of the thread that makes it.
    #[default]
    Keep,
    /// It makes a new one.
    New,
    /// It enters this one.
    Existing(Namespace),
}

/// Where a [`NamespaceThread`] lives.
#[derive(Debug, Clone, Default)]
pub struct ThreadSpec {
    /// The thread's name, for `ps` and panics; Linux shows 15 bytes.
    pub name: String,
    /// Its network. A new one has its loopback interface down.
    pub net: Enter,
    /// Its mounts. A new mount namespace starts as a copy in which changes of the old one show (propagation `slave`),
    /// but not the other way round.
    pub mount: Enter,
    /// Its host name.
    pub uts: Enter,
    /// The host name to set; only with a new UTS namespace.
    pub hostname: Option<String>,
}

impl ThreadSpec {
    /// A thread in a network namespace, with the mounts and the host name of the caller.
    #[must_use]
    pub fn in_net(name: impl Into<String>, net: Namespace) -> Self {
        Self { name: name.into(), net: Enter::Existing(net), ..Self::default() }
    }

    /// A thread in new network, mount and UTS namespaces: a machine of its own, as far as the network goes.
    #[must_use]
    pub fn new_node(name: impl Into<String>, hostname: impl Into<String>) -> Self {
        Self { name: name.into(), net: Enter::New, mount: Enter::New, uts: Enter::New, hostname: Some(hostname.into()) }
    }
}

/// Why a job on a [`NamespaceThread`] gave no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ThreadError {
    /// The job panicked; the panic's message went to standard error.
    #[error("a job on the namespace thread panicked")]
    Panicked,
    /// The thread has stopped.
    #[error("the namespace thread has stopped")]
    Stopped,
}

/// A thread in its own namespaces, with a current-thread tokio runtime on which jobs run side by side.
///
/// Processes that a job starts inherit the namespaces, and so do the runtime's blocking threads. Dropping the handle
/// aborts the jobs at their next await, and waits for the thread to end.
#[derive(Debug)]
pub struct NamespaceThread {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    net: Namespace,
    mount: Namespace,
    uts: Namespace,
}

impl NamespaceThread {
    /// Starts the thread and waits until it is where it should be.
    ///
    /// # Errors
    /// What went wrong on the way in: [`NamespaceError::Enter`], [`NamespaceError::New`] (also for the host name
    /// and the propagation of mounts), [`NamespaceError::Thread`].
    pub fn spawn(spec: ThreadSpec) -> Result<Self, NamespaceError> {
        let (jobs, queue) = mpsc::channel(JOB_QUEUE);
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name(if spec.name.is_empty() { "netns".into() } else { spec.name.clone() })
            .spawn(move || live(&spec, queue, &ready))
            .map_err(|source| NamespaceError::Thread { source: Some(source) })?;
        match started.recv() {
            Ok(Ok([net, mount, uts])) => Ok(Self { jobs: Some(jobs), thread: Some(thread), net, mount, uts }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(NamespaceError::Thread { source: None }),
        }
    }

    /// Runs a future on the thread and gives its result. The future is made there, so it need not be `Send`, and what
    /// it opens is opened in the thread's namespaces. If the returned future is dropped, the job runs on.
    ///
    /// # Errors
    /// [`ThreadError`].
    pub async fn run<F, Fut, T>(&self, work: F) -> Result<T, ThreadError>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let (job, result) = wrap(work);
        self.jobs.as_ref().ok_or(ThreadError::Stopped)?.send(job).await.or(Err(ThreadError::Stopped))?;
        result.await.or(Err(ThreadError::Panicked))
    }

    /// As [`NamespaceThread::run`], for callers without a runtime: it blocks the calling thread.
    ///
    /// # Errors
    /// [`ThreadError`].
    ///
    /// # Panics
    /// When it is called from within a runtime.
    pub fn run_blocking<F, Fut, T>(&self, work: F) -> Result<T, ThreadError>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let (job, result) = wrap(work);
        self.jobs.as_ref().ok_or(ThreadError::Stopped)?.blocking_send(job).or(Err(ThreadError::Stopped))?;
        result.blocking_recv().or(Err(ThreadError::Panicked))
    }

    /// The thread's network namespace.
    #[must_use]
    pub const fn net(&self) -> &Namespace {
        &self.net
    }

    /// The thread's mount namespace.
    #[must_use]
    pub const fn mount(&self) -> &Namespace {
        &self.mount
    }

    /// The thread's UTS namespace.
    #[must_use]
    pub const fn uts(&self) -> &Namespace {
        &self.uts
    }
}

impl Drop for NamespaceThread {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // A panic of the thread itself was reported when it happened.
            drop::<Result<(), Box<dyn Any + Send>>>(thread.join());
        }
    }
}

fn wrap<F, Fut, T>(work: F) -> (Job, oneshot::Receiver<T>)
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = T> + 'static,
    T: Send + 'static,
{
    let (reply, result) = oneshot::channel();
    let job: Job = Box::new(move || {
        Box::pin(async move {
            // Whoever asked may have stopped waiting.
            drop(reply.send(work().await));
        })
    });
    (job, result)
}

type Ready = std::sync::mpsc::SyncSender<Result<[Namespace; 3], NamespaceError>>;

fn live(spec: &ThreadSpec, mut queue: mpsc::Receiver<Job>, ready: &Ready) {
    let set_up = enter_all(spec).and_then(|namespaces| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map(|runtime| (namespaces, runtime))
            .map_err(|source| NamespaceError::Thread { source: Some(source) })
    });
    let runtime = match set_up {
        Ok((namespaces, runtime)) => {
            if ready.send(Ok(namespaces)).is_err() {
                return;
            }
            runtime
        }
        Err(error) => {
            drop(ready.send(Err(error)));
            return;
        }
    };
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        while let Some(job) = queue.recv().await {
            // Nobody joins the task: its result goes back by its own channel.
            drop(tokio::task::spawn_local(async move { job().await }));
        }
    });
    drop(local);
    // A blocking job that hangs must not keep the owner of the thread from going on.
    runtime.shutdown_background();
}

fn enter_all(spec: &ThreadSpec) -> Result<[Namespace; 3], NamespaceError> {
    // Mounts last: after them the thread sees another tree of files.
    for (enter, kind) in
        [(&spec.net, NamespaceKind::Net), (&spec.uts, NamespaceKind::Uts), (&spec.mount, NamespaceKind::Mount)]
    {
        match enter {
            Enter::Keep => {}
            Enter::New => make(kind, spec).map_err(|source| NamespaceError::New { source })?,
            Enter::Existing(namespace) if namespace.kind() == kind => namespace.enter()?,
            Enter::Existing(namespace) => {
                let source = io::Error::new(io::ErrorKind::InvalidInput, format!("it is a {:?} one", namespace.kind()));
                return Err(NamespaceError::Enter { kind, source });
            }
        }
    }
    Ok([
        Namespace::current_kind(NamespaceKind::Net)?,
        Namespace::current_kind(NamespaceKind::Mount)?,
        Namespace::current_kind(NamespaceKind::Uts)?,
    ])
}

fn make(kind: NamespaceKind, spec: &ThreadSpec) -> io::Result<()> {
    match kind {
        NamespaceKind::Net => unshare(CloneFlags::CLONE_NEWNET),
        NamespaceKind::Uts => {
            unshare(CloneFlags::CLONE_NEWUTS)?;
            match &spec.hostname {
                Some(name) => std::fs::write("/proc/sys/kernel/hostname", name),
                None => Ok(()),
            }
        }
        NamespaceKind::Mount => {
            unshare(CloneFlags::CLONE_NEWNS)?;
            // `slave`, not `private`: a private copy would keep alive what the old namespace unmounts.
            let flags = MsFlags::MS_REC | MsFlags::MS_SLAVE;
            Ok(mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)?)
        }
    }
}
