//! These need root: they make namespaces.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// A directory of this test's own. What is left in it goes with it, also when the test fails.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("hostnet-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let in_dir = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        for path in in_dir(&self.0).chain(in_dir(&self.path("deeper"))).filter(|path| path.is_file()) {
            drop(Namespace::remove(path));
        }
        drop(std::fs::remove_dir_all(&self.0));
    }
}

fn interfaces() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    text.lines().skip(2).map(|line| line.split(':').next().unwrap().trim().to_owned()).collect()
}

#[test]
fn a_created_namespace_lives_at_its_path_until_it_is_removed() {
    let scratch = Scratch::new();
    let path = scratch.path("deeper/one");
    let made = Namespace::create(&path).unwrap();
    assert!(!made.is_current());
    let opened = Namespace::open(&path).unwrap();
    assert_eq!(made.id(), opened.id());
    assert_eq!(opened.run(interfaces).unwrap(), ["lo"]);

    let error = Namespace::create(&path).unwrap_err();
    assert!(
        matches!(&error, NamespaceError::Bind { source, .. } if source.kind() == io::ErrorKind::AlreadyExists),
        "{error:?}"
    );
    assert_eq!(Namespace::open(&path).unwrap().id(), made.id(), "a failed create leaves what is there");

    Namespace::remove(&path).unwrap();
    Namespace::remove(&path).unwrap();
    assert!(Namespace::open(&path).unwrap_err().is_gone());
    assert_eq!(made.run(interfaces).unwrap(), ["lo"], "a handle outlives the path");
}

#[test]
fn an_ordinary_file_is_not_a_namespace() {
    let scratch = Scratch::new();
    let path = scratch.path("file");
    std::fs::write(&path, "").unwrap();
    let error = Namespace::open(&path).unwrap_err();
    assert!(matches!(error, NamespaceError::NotANamespace { .. }), "{error:?}");
    assert!(error.is_gone());
    Namespace::remove(&path).unwrap();
}

#[test]
fn work_in_the_current_namespace_stays_on_the_thread() {
    let here = std::thread::current().id();
    assert_eq!(Namespace::current().unwrap().run(|| std::thread::current().id()).unwrap(), here);
    let other = Namespace::new_unbound().unwrap();
    assert_ne!(other.run(|| std::thread::current().id()).unwrap(), here);
    assert!(Namespace::current().unwrap() != other);
}

#[test]
fn a_thread_runs_jobs_in_its_namespaces_and_reports_panics() {
    let node = NamespaceThread::spawn(ThreadSpec::new_node("node", "ip-10-0-1-10")).unwrap();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let name = node.run_blocking(|| async { std::fs::read_to_string("/proc/sys/kernel/hostname") }).unwrap().unwrap();
    assert_eq!(name.trim(), "ip-10-0-1-10");
    assert_eq!(std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), host);
    assert_eq!(node.run_blocking(|| async { interfaces() }).unwrap(), ["lo"]);

    // What it mounts is seen by its processes, and by nobody else.
    let scratch = Scratch::new();
    let dir = scratch.path("mnt");
    std::fs::create_dir_all(&dir).unwrap();
    let target = dir.clone();
    let seen = node
        .run_blocking(move || async move {
            mount(Some("none"), &target, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
            std::fs::write(target.join("mark"), "").unwrap();
            let child = tokio::process::Command::new("test").arg("-e").arg(target.join("mark")).status().await;
            let hostname = tokio::process::Command::new("uname").arg("-n").output().await.unwrap();
            (child.unwrap().success(), String::from_utf8(hostname.stdout).unwrap())
        })
        .unwrap();
    assert_eq!(seen, (true, "ip-10-0-1-10\n".to_owned()));
    assert!(!dir.join("mark").exists());

    let panicked = node.run_blocking(|| async {
        if std::process::id() > 0 {
            panic!("a job that fails")
        }
    });
    assert_eq!(panicked.unwrap_err(), ThreadError::Panicked);
    assert_eq!(node.run_blocking(|| async { 7 }).unwrap(), 7, "the thread lives on");

    // A second thread joins the first one's namespaces.
    let spec = ThreadSpec {
        name: "second".into(),
        net: Enter::Existing(node.net().clone()),
        mount: Enter::Existing(node.mount().clone()),
        uts: Enter::Existing(node.uts().clone()),
        hostname: None,
    };
    let second = NamespaceThread::spawn(spec).unwrap();
    assert_eq!(second.net(), node.net());
    drop(node);
    let mark = dir.join("mark");
    assert!(second.run_blocking(|| async move { mark.exists() }).unwrap(), "the namespaces outlive their first thread");
}

#[test]
fn a_thread_that_cannot_enter_says_so() {
    let mismatched = ThreadSpec { uts: Enter::Existing(Namespace::current().unwrap()), ..ThreadSpec::default() };
    let error = NamespaceThread::spawn(mismatched).unwrap_err();
    assert!(matches!(error, NamespaceError::Enter { kind: NamespaceKind::Uts, .. }), "{error:?}");
}

/// Opening a pipe waits for its other end, which may never come.
#[test]
fn a_pipe_is_no_namespace_and_is_not_waited_for() {
    let scratch = Scratch::new();
    let path = scratch.path("pipe");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let (told, answer) = std::sync::mpsc::channel();
    let opened = path.clone();
    let opener = std::thread::spawn(move || told.send(Namespace::open(opened)).unwrap());
    let result = answer.recv_timeout(std::time::Duration::from_secs(10));
    // Lets an opener that waits go on.
    drop(OpenOptions::new().read(true).write(true).open(&path));
    opener.join().unwrap();
    assert!(matches!(result, Ok(Err(NamespaceError::NotANamespace { .. }))), "{result:?}");
}
