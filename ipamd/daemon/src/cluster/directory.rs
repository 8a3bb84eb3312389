//! A directory of YAML and JSON files as the cluster: for machines without an API server, and for tests.
//!
//! Files whose names end in `.yaml`, `.yml` or `.json` are read, not those of directories within. They are read again every
//! second; only what has changed in its meaning is told. While a file cannot be read, what was told holds.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;

use super::meaning::Meaning;
use super::objects::{Naming, Object, Sort, Unreadable, read};
use super::{Cluster, Condition, Notice, PodIps, Report, Told};
use crate::log::ErrorChain;

/// How often the files are read.
const AGAIN: Duration = Duration::from_secs(1);
/// Files that are read; more make the directory unreadable.
const MAX_FILES: usize = 1000;
/// Bytes of a file; more make it unreadable.
const MAX_BYTES: u64 = 1024 * 1024;

/// Why the directory cannot be read.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("{} cannot be read", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not used", path.display())]
    Contents {
        path: PathBuf,
        #[source]
        source: Unreadable,
    },
    #[error("{} has more than {MAX_FILES} files", path.display())]
    TooMany { path: PathBuf },
}

/// The source.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    node: String,
    naming: Option<Naming>,
    claims: bool,
}

impl Directory {
    /// The directory at `path`, which need not be there yet, for the node of a name. The ENIConfig is looked for where it is
    /// said how the node names it.
    #[must_use]
    pub const fn new(path: PathBuf, node: String, naming: Option<Naming>) -> Self {
        Self { path, node, naming, claims: false }
    }

    /// The same, which tells what pods say of branch ENIs if `wanted`.
    #[must_use]
    pub fn with_claims(self, wanted: bool) -> Self {
        Self { claims: wanted, ..self }
    }
}

impl Cluster for Directory {
    /// Nobody is elected: others may read the same files.
    async fn watch(&self, told: mpsc::Sender<Told>, mut reports: mpsc::Receiver<Report>) {
        let show = async {
            while let Some(report) = reports.recv().await {
                match report {
                    Report::Notice(Notice { about, reason, message, .. }) => {
                        tracing::info!(?about, reason, message, "event");
                    }
                    // Nobody is elected.
                    Report::Shared(_) => {}
                    Report::Features(features) => {
                        tracing::info!(?features, "wanted of AWS's VPC resource controller");
                    }
                    Report::PodIps(PodIps { all, .. }) => {
                        for (pod, addresses) in all {
                            tracing::info!(pod = %pod, ?addresses, "addresses of a pod");
                        }
                    }
                    Report::Condition(Condition { holds, reason, message }) => {
                        tracing::info!(holds, reason, message, "condition of the node");
                    }
                }
            }
        };
        tokio::join!(self.tell(told), show);
    }
}

impl Directory {
    async fn tell(&self, told: mpsc::Sender<Told>) {
        let mut before = Meaning::default();
        let mut trouble = String::new();
        loop {
            let path = self.path.clone();
            let read = tokio::task::spawn_blocking(move || objects(&path)).await;
            match read {
                Ok(Ok(objects)) => {
                    trouble.clear();
                    let meaning = Meaning::of(&objects, &Sort::ALL.into(), &self.node, self.naming.as_ref());
                    let meaning = if self.claims { meaning } else { meaning.without_claims() };
                    for news in meaning.news(&before) {
                        if told.send(news).await.is_err() {
                            return;
                        }
                    }
                    before = meaning;
                }
                Ok(Err(error)) => {
                    let words = ErrorChain(&error).to_string();
                    if words != trouble {
                        tracing::error!(error = words, "the cluster's directory cannot be read");
                        trouble = words;
                    }
                }
                Err(error) => {
                    tracing::error!(error = %ErrorChain(&error), "reading the cluster's directory was broken off")
                }
            }
            tokio::select! {
                () = told.closed() => return,
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
    }
}

/// All objects of all files.
fn objects(directory: &Path) -> Result<Vec<Object>, ReadError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ReadError::File { path, source }
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed(directory))? {
        let path = entry.map_err(failed(directory))?.path();
        let named = path.extension().is_some_and(|ext| ["yaml", "yml", "json"].iter().any(|wanted| ext == *wanted));
        if named && path.is_file() {
            files.push(path);
        }
        if files.len() > MAX_FILES {
            return Err(ReadError::TooMany { path: directory.to_owned() });
        }
    }
    files.sort();
    let mut objects = Vec::new();
    for path in files {
        let mut text = String::new();
        let file = File::open(&path).map_err(failed(&path))?;
        file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(failed(&path))?;
        if text.len() as u64 > MAX_BYTES {
            return Err(failed(&path)(io::ErrorKind::FileTooLarge.into()));
        }
        objects.extend(read(&text).map_err(|source| ReadError::Contents { path, source })?);
    }
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::overrides::Overrides;
    use crate::testing::TestDir;

    const NODE: &str = "kind: Node\nmetadata: {name: n1, labels: {zone: a}}\nspec: {providerID: 'aws:///x'}\n";

    fn config(subnet: u8) -> String {
        format!("---\nkind: ENIConfig\nmetadata: {{name: a}}\nspec:\n  subnet: subnet-0000000{subnet}\n")
    }

    #[tokio::test(start_paused = true)]
    async fn what_changes_in_its_meaning_is_told_once() {
        let dir = TestDir::new();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        let naming = Naming { annotation: "annotation".into(), label: "zone".into() };
        let (told, mut heard) = mpsc::channel(super::super::TOLD_LIMIT);
        write("node.yaml", NODE);
        let directory = Directory::new(dir.path().to_owned(), "n1".into(), Some(naming));
        let (reports, reported) = mpsc::channel(1);
        let source = tokio::spawn(async move { directory.watch(told, reported).await });
        assert_eq!(heard.recv().await, Some(Told::Schedulable(true)));
        assert_eq!(heard.recv().await, Some(Told::EniConfig(None)));
        assert_eq!(heard.recv().await, Some(Told::PodsBound(BTreeSet::new())));
        assert_eq!(heard.recv().await, Some(Told::Overrides(Ok(Overrides::default()))));
        write("configs.yaml", &config(1));
        write("readme.txt", "not: [yaml");
        let subnet = |told: Option<Told>| match told {
            Some(Told::EniConfig(Some(config))) => config.subnet.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(subnet(heard.recv().await), "subnet-00000001");
        // A file that is broken for a while changes nothing.
        write("configs.yaml", "kind: [");
        tokio::time::sleep(AGAIN * 3).await;
        write("configs.yaml", &format!("# other words\n{}", config(1)));
        tokio::time::sleep(AGAIN * 3).await;
        assert!(heard.try_recv().is_err());
        write("configs.yaml", &config(2));
        assert_eq!(subnet(heard.recv().await), "subnet-00000002");
        write("node.yaml", &NODE.replace("spec: {", "spec: {unschedulable: true, "));
        assert_eq!(heard.recv().await, Some(Told::Schedulable(false)));
        drop(heard);
        drop(reports);
        source.await.unwrap();
    }
}
