//! Which of the kinds that not every cluster has are served: asked at the beginning, now and then, and whenever a
//! CustomResourceDefinition of theirs changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;
use sluice_daemon::log::ErrorChain;
use tokio::time::{Instant, sleep};

use crate::backoff::Backoff;
use crate::call::{self, CallError};
use crate::keep::Keep;
use crate::kind::Kind;
use crate::known::number;
use crate::line::{self, Lines};
use crate::session::{Served, Session, Tell};

const METADATA: Keep =
    Keep::Fields(&[("metadata", Keep::Fields(&[("name", Keep::All), ("resourceVersion", Keep::All)]))]);

/// Where the definitions are.
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// Keeps what is served up to date.
pub(crate) async fn run<T: Tell>(run: Arc<Session<T>>) {
    if optional(&run).next().is_none() {
        // Whoever has them need not ask.
        run.up(run.kinds.len()).await;
        return;
    }
    let timing = &run.options.timing;
    let mut dice = run.dice("discover");
    let mut backoff = run.backoff("discover");
    // When a kind was first found missing: a server that begins may not know all of its kinds yet.
    let mut missing: BTreeMap<usize, Instant> = BTreeMap::new();
    // A definition is there a little before its kind is served.
    let mut again: Vec<Duration> = Vec::new();
    let mut back = run.back.subscribe();
    loop {
        back.mark_unchanged();
        let asked = tokio::select! {
            asked = ask(&run) => asked,
            Ok(()) = back.changed() => continue,
        };
        let unreachable = matches!(&asked, Err(error) if !matches!(error, CallError::Refused { .. }));
        let pause = match asked {
            Ok(found) => {
                backoff.reset();
                settle(&run, found, &mut missing);
                if !run.up(run.kinds.len()).await {
                    return;
                }
                if missing.is_empty() {
                    again.pop().unwrap_or_else(|| dice.between(timing.discover * 4 / 5, timing.discover * 6 / 5))
                } else {
                    timing.gone_after
                }
            }
            Err(error) => {
                if !run.down(run.kinds.len(), "asking which kinds are served", &error).await {
                    return;
                }
                if unreachable {
                    run.away.store(true, Ordering::Relaxed);
                }
                backoff.next(error.retry_after())
            }
        };
        tokio::select! {
            () = run.discover.notified() => again = vec![timing.gone_after * 2, timing.gone_after / 2],
            Ok(()) = back.changed(), if unreachable => {}
            () = sleep(pause) => {}
        }
    }
}

/// Takes over what was found. A kind that is missing is missing only if it stays so.
fn settle<T>(run: &Session<T>, mut found: BTreeMap<usize, &'static str>, missing: &mut BTreeMap<usize, Instant>) {
    let before = run.served.borrow().clone().unwrap_or_default();
    let now = Instant::now();
    missing.retain(|kind, _| before.contains_key(kind) && !found.contains_key(kind));
    for (kind, version) in &before {
        if !found.contains_key(kind) && now < *missing.entry(*kind).or_insert(now) + run.options.timing.gone_after {
            found.insert(*kind, version);
        }
    }
    missing.retain(|kind, _| found.contains_key(kind));
    run.served.send_if_modified(|served: &mut Served| {
        let changed = served.as_ref() != Some(&found);
        *served = Some(found);
        changed
    });
}

/// The kinds that come with a CustomResourceDefinition, by number.
fn optional<T>(run: &Session<T>) -> impl Iterator<Item = (usize, &'static Kind)> {
    run.kinds.iter().map(|watched| watched.kind).enumerate().filter(|(_, kind)| !kind.required)
}

/// The kinds that are served, with the version to take.
async fn ask<T: Tell>(run: &Session<T>) -> Result<BTreeMap<usize, &'static str>, CallError> {
    let groups = object(run, "/apis").await?;
    let list = |value: &Value, name: &str| value.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
    let text = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut served = BTreeSet::new();
    for group in list(&groups, "groups") {
        for version in list(&group, "versions") {
            served.insert(text(&version, "groupVersion"));
        }
    }
    // Version and plural of what is served, of the versions that are read.
    let mut resources = BTreeSet::new();
    let wanted: BTreeSet<String> =
        optional(run).flat_map(|(_, kind)| kind.versions.iter().map(|version| kind.api_version(version))).collect();
    for version in wanted.intersection(&served) {
        for resource in list(&object(run, &format!("/apis/{version}")).await?, "resources") {
            resources.insert((version.clone(), text(&resource, "name")));
        }
    }
    let version_of = |kind: &Kind| {
        let is_served = |version: &&&str| resources.contains(&(kind.api_version(version), kind.plural.to_owned()));
        kind.versions.iter().find(is_served).copied()
    };
    Ok(optional(run).filter_map(|(number, kind)| Some((number, version_of(kind)?))).collect())
}

async fn object<T: Tell>(run: &Session<T>, path: &str) -> Result<Value, CallError> {
    serde_json::from_slice(&run.api.object(path).await?).map_err(CallError::Garbled)
}

/// Watches the definitions, and has the kinds asked for anew when one of ours changes. That it may not (RBAC) costs only
/// time: then kinds are noticed when they are next asked for.
pub(crate) async fn watch_definitions<T: Tell>(run: Arc<Session<T>>) {
    let ours: BTreeSet<String> = optional(&run).map(|(_, kind)| kind.table()).collect();
    let mut backoff: Backoff = run.backoff("definitions");
    let mut revision = 0;
    loop {
        let began = Instant::now();
        let pause = match follow(&run, &ours, &mut revision).await {
            Ok(()) if began.elapsed() > run.options.timing.quick => {
                backoff.reset();
                Duration::ZERO
            }
            Ok(()) => backoff.next(None),
            Err(error) if error.passes() => {
                tracing::debug!(error = %ErrorChain(&error), "definitions cannot be watched");
                backoff.next(error.retry_after())
            }
            Err(error) => {
                tracing::info!(error = %ErrorChain(&error), "kinds that are installed are noticed late");
                run.options.timing.discover
            }
        };
        sleep(pause).await;
    }
}

/// One watch, to its end.
async fn follow<T: Tell>(run: &Session<T>, ours: &BTreeSet<String>, revision: &mut u64) -> Result<(), CallError> {
    let timing = &run.options.timing;
    let seconds = timing.watch.as_secs();
    let path = format!(
        "{DEFINITIONS}?watch=true&allowWatchBookmarks=true&resourceVersion={revision}&timeoutSeconds={seconds}"
    );
    let answer = run.api.get(&path, call::METADATA_ONLY).await;
    if answer.as_ref().is_err_and(|error| error.code() == Some(410)) {
        *revision = 0;
    }
    let mut body = answer?;
    let mut lines = Lines::default();
    while let Ok(Some(bytes)) = call::part(&mut body, timing.idle).await {
        run.heard();
        let mut failed = false;
        let fed = lines.feed(&bytes, |line| match line::read(line, METADATA) {
            Ok(event) if event.kind == "ERROR" => failed = true,
            Ok(event) => {
                *revision = (*revision).max(number(&event.object, "/metadata/resourceVersion"));
                let name = event.object.pointer("/metadata/name").and_then(Value::as_str);
                if event.kind != "BOOKMARK" && name.is_some_and(|name| ours.contains(name)) {
                    run.discover.notify_one();
                }
            }
            Err(_) => failed = true,
        });
        if failed || fed.is_err() {
            *revision = 0;
            return Ok(());
        }
    }
    Ok(())
}
