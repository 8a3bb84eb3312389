//! The conflist: what it should be, from what is there and what is wanted, and whether a runtime can use it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Places;
use super::files::{self, FileError};

/// The primary plugin.
pub(super) const PRIMARY: &str = "sluice-eni";
/// The plugin that follows it.
pub(super) const CHAINED: &str = "sluice-policy";

/// Our plugins.
pub(super) const OURS: [&str; 2] = [PRIMARY, CHAINED];

/// The version of every list that we write. Not 1.1.0: containerd 1.7 and podman refuse it.
const VERSION: &str = "1.0.0";

/// The network's name where no list is taken over.
const NAME: &str = "sluice";

/// In a list of ours, the types of the plugins that this program put there: they go when they are not wanted any more. All others
/// are somebody's, and stay.
const ADDED: &str = "sluice.dev/added";

/// Plugins that make, guard and limit a pod's interface on AWS, and that ours take the place of.
const REPLACED: [&str; 6] = [PRIMARY, CHAINED, "aws-cni", "egress-cni", "cilium-cni", "bandwidth"];

/// Plugins whose list is taken over: its pods become ours, and runtimes find what they have cached of them by its network's name.
/// Whose list has none of these is another network's, e.g. podman's own, and keeps its name for itself.
const TAKEN_OVER: [&str; 2] = ["aws-cni", "cilium-cni"];

/// The capability by which a runtime hands on a pod's annotations: containerd does, others pass over it.
const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

/// The longest list that is read, in bytes.
const LIMIT: u64 = 1 << 20;

/// How long a plugin may take to say which versions it speaks.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is wanted of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Wanted {
    /// Whether pods have gates.
    pub(super) policy: bool,
    /// Plugins that follow ours.
    pub(super) extra: Vec<Value>,
}

/// Why no conflist is written.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConflistError {
    #[error(transparent)]
    File(#[from] FileError),
    /// Ours cannot be read.
    #[error("{} cannot be used: {why}; mend it, or remove it to have it made anew", path.display())]
    Unusable {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A plugin in it is not there.
    #[error("the conflist needs {}, which is not there; {}", path.display(), if *ours { "run `sluice install plugins` first" } else { "install it, or take it off the list" })]
    Missing {
        /// Where it should be.
        path: PathBuf,
        /// Whether it is one of ours.
        ours: bool,
    },
    /// A plugin in it does not speak the list's version.
    #[error("{} does not speak CNI {VERSION}, only {spoken}", path.display())]
    Version {
        /// Which.
        path: PathBuf,
        /// What it speaks.
        spoken: String,
    },
}

/// Reads a plugin of the command line.
pub(super) fn parse_plugin(text: &str) -> Result<Value, String> {
    let plugin: Value = serde_json::from_str(text).map_err(|error| format!("it is no JSON: {error}"))?;
    let kind = plugin.get("type").and_then(Value::as_str).ok_or("it is no object with a type")?;
    if OURS.contains(&kind) {
        return Err(format!("{kind} is in the list anyway"));
    }
    if !is_plain(kind) {
        return Err(format!("{kind:?} is no name of a plugin"));
    }
    Ok(plugin)
}

/// Whether a text is a name as CNI has it for networks and plugins: a letter or digit, then these, `.`, `_` and `-`.
fn is_plain(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// Brings the conflist up to date. Whether it had to be changed.
pub(super) fn write(places: &Places, wanted: &Wanted) -> Result<bool, ConflistError> {
    let path = places.conflist();
    let there = match fs::symlink_metadata(&path) {
        Ok(_) => Some(read(&path).map_err(|why| ConflistError::Unusable { path: path.clone(), why })?),
        Err(_absent) => None,
    };
    let other = others(&places.net_dir, &path)?.into_iter().find(is_taken_over);
    let has_portmap = places.bin_dir.join("portmap").exists();
    let list = merged(there.as_ref(), other.as_ref(), wanted, has_portmap);
    if there.as_ref() == Some(&list) {
        return Ok(false);
    }
    for plugin in list.get("plugins").and_then(Value::as_array).into_iter().flatten() {
        let kind = plugin.get("type").and_then(Value::as_str).unwrap_or_default();
        usable(&places.bin_dir.join(kind), OURS.contains(&kind))?;
    }
    let text = format!("{list:#}\n");
    files::put(&path, text.as_bytes(), 0o644)?;
    Ok(true)
}

/// Whether another list is there that a runtime would use if ours were not.
pub(super) fn has_other(net_dir: &Path, own: &Path) -> Result<bool, ConflistError> {
    Ok(!others(net_dir, own)?.is_empty())
}

/// The other usable lists of the directory, in the order in which runtimes prefer them.
fn others(net_dir: &Path, own: &Path) -> Result<Vec<Value>, ConflistError> {
    let entries = match fs::read_dir(net_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(FileError::of("read", net_dir)(error).into()),
    };
    let is_list = |path: &PathBuf| {
        let ending = path.extension().and_then(|ending| ending.to_str());
        path != own && matches!(ending, Some("conf" | "conflist" | "json"))
    };
    let paths: BTreeSet<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_list).collect();
    Ok(paths.iter().filter_map(|path| read(path).ok()).collect())
}

/// Whether the list at a path names a plugin.
pub(super) fn names(path: &Path, plugin: &str) -> bool {
    has_one_of(&read(path).unwrap_or_default(), &[plugin])
}

/// Whether ours takes the place of a list.
fn is_taken_over(list: &Value) -> bool {
    has_one_of(list, &TAKEN_OVER)
}

fn has_one_of(list: &Value, kinds: &[&str]) -> bool {
    let plugins = list.get("plugins").and_then(Value::as_array);
    let kind = |plugin: &Value| plugin.get("type").and_then(Value::as_str).is_some_and(|kind| kinds.contains(&kind));
    plugins.into_iter().flatten().any(kind)
}

/// A list; a single plugin's configuration (`.conf`) is one of one plugin.
fn read(path: &Path) -> Result<Value, String> {
    let mut text = Vec::new();
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(LIMIT + 1).read_to_end(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > LIMIT {
        return Err(format!("it has more than {LIMIT} bytes"));
    }
    let list: Value = serde_json::from_slice(&text).map_err(|error| format!("it is no JSON: {error}"))?;
    let name = list.get("name").and_then(Value::as_str).unwrap_or_default();
    if !is_plain(name) {
        return Err(format!("{name:?} is no name of a network"));
    }
    let plugins = match (list.get("plugins"), list.get("type")) {
        (Some(Value::Array(plugins)), _) => plugins.clone(),
        (None, Some(_)) => vec![list.clone()],
        _ => return Err("it has no plugins".to_owned()),
    };
    for (number, plugin) in plugins.iter().enumerate() {
        if !plugin.get("type").and_then(Value::as_str).is_some_and(is_plain) {
            return Err(format!("plugins[{number}] has no type"));
        }
    }
    if plugins.is_empty() {
        return Err("it has no plugins".to_owned());
    }
    Ok(if list.get("plugins").is_some() { list } else { json!({"name": name, "plugins": plugins}) })
}

/// What the list should be: from what it is, from the one that it takes over, and from what is wanted.
fn merged(there: Option<&Value>, other: Option<&Value>, wanted: &Wanted, has_portmap: bool) -> Value {
    let plugins_of = |list: Option<&Value>| -> Vec<Value> {
        list.and_then(|list| list.get("plugins")?.as_array().cloned()).unwrap_or_default()
    };
    let kind = |plugin: &Value| plugin.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let before = plugins_of(there);
    let added: BTreeSet<String> = there
        .and_then(|list| list.get(ADDED)?.as_array())
        .map(|list| list.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect())
        .unwrap_or_default();

    let ours = |name: &str| {
        before.iter().find(|plugin| kind(plugin) == name).cloned().unwrap_or_else(|| json!({"type": name}))
    };
    let mut primary = ours(PRIMARY);
    if let Some(fields) = primary.as_object_mut() {
        // It sets the limits of a pod's annotations itself.
        let capabilities = fields.entry("capabilities").or_insert_with(|| json!({"bandwidth": true}));
        // Lists of before there were pods with several interfaces have it not; what somebody has set stays.
        if let Some(capabilities) = capabilities.as_object_mut() {
            capabilities.entry(ANNOTATIONS).or_insert(Value::Bool(true));
        }
        if wanted.policy {
            fields.insert("gated".to_owned(), Value::Bool(true));
        } else {
            fields.remove("gated");
        }
    }
    let mut plugins = vec![primary];
    if wanted.policy {
        plugins.push(ours(CHAINED));
    }

    // What somebody put there stays, in its order; of a list of the VPC CNI's, what follows its own plugins.
    let followed = plugins_of(other);
    let kept = match there {
        Some(_) => before,
        None if followed.iter().any(|plugin| kind(plugin) == "aws-cni") => followed,
        None => Vec::new(),
    };
    let stays = |plugin: &Value| !added.contains(&kind(plugin)) && !REPLACED.contains(&kind(plugin).as_str());
    plugins.extend(kept.into_iter().filter(stays));

    let mut put = BTreeSet::new();
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}, "snat": true});
    for plugin in has_portmap.then_some(&portmap).into_iter().chain(&wanted.extra) {
        if !plugins.iter().any(|there| kind(there) == kind(plugin)) {
            put.insert(kind(plugin));
            plugins.push(plugin.clone());
        }
    }

    let mut list = there.and_then(Value::as_object).cloned().unwrap_or_default();
    let name = |list: Option<&Value>| list.and_then(|list| list.get("name")?.as_str().map(str::to_owned));
    list.insert("cniVersion".to_owned(), json!(VERSION));
    list.insert("name".to_owned(), json!(name(there).or_else(|| name(other)).unwrap_or_else(|| NAME.to_owned())));
    list.insert("plugins".to_owned(), Value::Array(plugins));
    list.insert(ADDED.to_owned(), json!(put));
    Value::Object(list)
}

/// Whether a plugin is there, can be executed and speaks the list's version.
fn usable(path: &Path, ours: bool) -> Result<(), ConflistError> {
    let executable = fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0);
    if !executable {
        return Err(ConflistError::Missing { path: path.to_owned(), ours });
    }
    // One that cannot be started here may well be startable on the host: its libraries are there, and not in this container.
    let Some(said) = versions(path) else { return Ok(()) };
    let spoken: Vec<&str> = said
        .get("supportedVersions")
        .and_then(Value::as_array)
        .map(|list| list.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    if spoken.is_empty() || spoken.contains(&VERSION) {
        return Ok(());
    }
    Err(ConflistError::Version { path: path.to_owned(), spoken: spoken.join(", ") })
}

/// What a plugin answers to VERSION; none if it cannot be asked.
fn versions(path: &Path) -> Option<Value> {
    let mut child = Command::new(path)
        .env_clear()
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let question = json!({"cniVersion": VERSION}).to_string();
    // It may answer without reading.
    let _closed = child.stdin.take()?.write_all(question.as_bytes());
    let ended = wait(&mut child);
    let mut answer = Vec::new();
    if !ended {
        let _gone = child.kill();
        let _gone = child.wait();
        return None;
    }
    child.stdout.take()?.take(LIMIT).read_to_end(&mut answer).ok()?;
    serde_json::from_slice(&answer).ok()
}

#[expect(clippy::disallowed_methods, reason = "a pause between two looks at a process that may end")]
fn wait(child: &mut Child) -> bool {
    let end = Instant::now() + PATIENCE;
    loop {
        match child.try_wait() {
            Ok(Some(_)) => return true,
            Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests;
