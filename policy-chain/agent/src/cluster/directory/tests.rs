//! The source on real files.

use std::sync::Arc;

use sluice_policy_core::cluster::Event;

use super::*;
use crate::cluster::TOLD_LIMIT;
use crate::testing::TestDir;

const LIMIT: Duration = Duration::from_secs(20);

struct Source {
    dir: TestDir,
    directory: Arc<Directory>,
    told: mpsc::Receiver<Told>,
}

impl Source {
    fn new(subdirectory: &str) -> Self {
        let dir = TestDir::new();
        let directory = Arc::new(Directory::new(dir.path().join(subdirectory)));
        let (sender, told) = mpsc::channel(TOLD_LIMIT);
        let running = Arc::clone(&directory);
        tokio::spawn(async move { running.run(sender).await });
        Self { dir, directory, told }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join(name), text).unwrap();
    }

    async fn next(&mut self) -> String {
        match timeout(LIMIT, self.told.recv()).await.unwrap().unwrap() {
            Told::Event { event: Event::Upsert(object), .. } => {
                format!("+{}", crate::cluster::Place::Object(object.id()))
            }
            Told::Event { event: Event::Delete(id), .. } => format!("-{}", crate::cluster::Place::Object(id)),
            Told::Report(report) => format!("!{}", report.place),
            Told::Synced => "synced".to_owned(),
            Told::Stale { .. } => "stale".to_owned(),
            other => format!("{other:?}"),
        }
    }
}

fn namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n")
}

fn pod(name: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: web, uid: u-{name}}}\n")
}

#[tokio::test]
async fn files_are_told_as_they_come_change_and_go() {
    let mut source = Source::new("");
    assert_eq!(source.next().await, "synced");
    source.write("a.yaml", &format!("{}---\n{}", namespace("web"), namespace("db")));
    assert_eq!(source.next().await, "+Namespace db");
    assert_eq!(source.next().await, "+Namespace web");
    // Other names are not looked at, and a rename is how editors write.
    source.write("ignored.txt", &namespace("no"));
    source.write(".hidden.yaml", &namespace("no"));
    source.write("b.tmp", &namespace("app"));
    fs::rename(source.dir.path().join("b.tmp"), source.dir.path().join("b.yml")).unwrap();
    assert_eq!(source.next().await, "+Namespace app");
    source.write("a.yaml", &namespace("web"));
    assert_eq!(source.next().await, "-Namespace db");
    fs::remove_file(source.dir.path().join("a.yaml")).unwrap();
    assert_eq!(source.next().await, "-Namespace web");
    source.write("c.json", "{");
    assert_eq!(source.next().await, "!c.json");
}

#[tokio::test]
async fn a_directory_that_is_missing_is_waited_for_and_one_that_is_replaced_is_followed() {
    let mut source = Source::new("later");
    assert_eq!(source.next().await, "stale");
    let path = source.dir.path().join("later");
    fs::create_dir(source.dir.path().join("made")).unwrap();
    fs::write(source.dir.path().join("made/a.yaml"), namespace("web")).unwrap();
    fs::rename(source.dir.path().join("made"), &path).unwrap();
    assert_eq!(source.next().await, "+Namespace web");
    assert_eq!(source.next().await, "synced");
    // Another directory comes to its place.
    fs::create_dir(source.dir.path().join("made")).unwrap();
    fs::write(source.dir.path().join("made/a.yaml"), namespace("db")).unwrap();
    fs::rename(&path, source.dir.path().join("old")).unwrap();
    fs::rename(source.dir.path().join("made"), &path).unwrap();
    let mut seen = Vec::new();
    while seen.len() < 2 {
        // Between the two renames it may find the place empty.
        let told = source.next().await;
        if told != "stale" && told != "synced" {
            seen.push(told);
        }
    }
    assert_eq!(seen, ["+Namespace db", "-Namespace web"]);
}

#[tokio::test]
async fn a_pod_that_is_looked_up_is_told_first() {
    let mut source = Source::new("");
    assert_eq!(source.next().await, "synced");
    let key = |name: &str| PodKey { namespace: "web".into(), name: name.into() };
    assert!(!source.directory.look_up(&key("a")).await.unwrap());
    source.write("a.yaml", &pod("a"));
    assert!(source.directory.look_up(&key("a")).await.unwrap());
    assert_eq!(source.told.try_recv().map(|_| ()), Ok(()));
}

#[test]
fn what_is_no_file_is_passed_over() {
    let dir = TestDir::new();
    fs::create_dir(dir.path().join("sub.yaml")).unwrap();
    nix::unistd::mkfifo(&dir.path().join("pipe.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::os::unix::fs::symlink(dir.path().join("nowhere"), dir.path().join("broken.yaml")).unwrap();
    fs::write(dir.path().join("a.yaml"), "x").unwrap();
    let files = read_files(dir.path()).unwrap();
    assert_eq!(files.keys().collect::<Vec<_>>(), ["a.yaml"]);
}
