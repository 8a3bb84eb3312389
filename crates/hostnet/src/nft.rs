//! nftables tables through the `nft` program: one transaction a table, compared by content.
//!
//! What `nft` lists is not what it was given: it writes the same thing in another way. So the content of a table that
//! should be there is learned by loading it once as a draft, a dormant table of another name, on which no packet comes
//! ([`Host::ruleset`](crate::host::Host::ruleset)); then the two lists are equal exactly when the tables are. An empty
//! namespace would do as well, but needs `CAP_SYS_ADMIN`, which nothing else asks of who sets up a network.
//!
//! nft 1.0.6 wants a newline or `;` behind the closing brace of every chain and set.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::netns::{NamespaceError, ThreadError};
use crate::state::{NftContent, NftRuleset, NftTable, NftTableId};

/// `nft` takes milliseconds; the kernel's lock for nftables may be held by a large transaction of somebody else.
const NFT_TIMEOUT: Duration = Duration::from_secs(20);
/// As much of nft's own words as an error keeps.
const MESSAGE_LIMIT: usize = 2000;

/// Why `nft` did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// There is no such program.
    #[error("the program nft is not there: install nftables")]
    Missing,
    /// It could not be run.
    #[error("cannot run nft")]
    Run(#[source] io::Error),
    /// It said no.
    #[error("nft refuses table {table}: {message}")]
    Refused {
        /// The table.
        table: NftTableId,
        /// Its own words.
        message: String,
    },
    /// It did not finish.
    #[error("nft did not finish within {} s", NFT_TIMEOUT.as_secs())]
    Timeout,
    /// What it listed is not what its manual promises.
    #[error("cannot read what nft lists")]
    List(#[source] serde_json::Error),
    /// The namespace in which it is to run cannot be entered.
    #[error("cannot enter the namespace to run nft in")]
    Namespace(#[source] NamespaceError),
    /// The thread in the namespace is gone.
    #[error("cannot run nft in the namespace")]
    Thread(#[source] ThreadError),
}

/// Where the content of `id` is learned. It is there for as long as that takes; what a killed process has left of it has no
/// effect, and is replaced the next time.
#[must_use]
pub fn draft(id: &NftTableId) -> NftTableId {
    NftTableId::new(id.family, format!("{}-draft", id.name))
}

/// [`Host::ruleset`](crate::host::Host::ruleset), in the caller's namespace.
pub(crate) async fn learn(id: NftTableId, body: String) -> Result<NftRuleset, NftError> {
    let draft = draft(&id);
    apply(&id, replace_script(&draft, &format!("flags dormant\n{body}"))).await?;
    let listed = list_parts(&id, &draft, &body).await;
    apply(&id, delete_script(&draft)).await?;
    let content = content(listed?);
    Ok(NftRuleset { id, body, content })
}

/// What the draft says of the table that it is made for. Part by part: nft 1.0.6 takes the flags of a table that it lists as
/// JSON from where they are not, and at times has nothing to say then.
async fn list_parts(id: &NftTableId, draft: &NftTableId, body: &str) -> Result<Vec<Value>, NftError> {
    let mut objects = vec![json!({"table": {"family": id.family.as_str(), "name": id.name}})];
    for (kind, name) in parts(body) {
        let listed = run(&["-j", "list", kind, draft.family.as_str(), &draft.name, name], String::new()).await?;
        if !listed.status.success() {
            return Err(refused(id, &listed.stderr));
        }
        let listed = self::objects(&listed.stdout).map_err(NftError::List)?;
        objects.extend(listed.into_iter().filter(|object| object.get("table").is_none()));
    }
    objects.iter_mut().for_each(|object| rename(object, draft, id));
    Ok(objects)
}

/// Chains, sets and maps of a table's body: what they are, and their names.
fn parts(body: &str) -> impl Iterator<Item = (&str, &str)> {
    body.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let kind = words.next().filter(|kind| matches!(*kind, "chain" | "set" | "map"))?;
        Some((kind, words.next()?)).filter(|_| words.next().is_some_and(|word| word.starts_with('{')))
    })
}

/// Runs `script` in one transaction, in the caller's namespace.
pub(crate) async fn apply(table: &NftTableId, script: String) -> Result<(), NftError> {
    let output = run(&["-f", "-"], script).await?;
    if output.status.success() { Ok(()) } else { Err(refused(table, &output.stderr)) }
}

/// The table in the caller's namespace, if it is there.
pub(crate) async fn list(table: &NftTableId) -> Result<Option<NftTable>, NftError> {
    let output = run(&["-j", "list", "table", table.family.as_str(), &table.name], String::new()).await?;
    if output.status.success() {
        let content = content(objects(&output.stdout).map_err(NftError::List)?);
        return Ok(Some(NftTable { id: table.clone(), content }));
    }
    if is_absent(&output.stderr) { Ok(None) } else { Err(refused(table, &output.stderr)) }
}

/// The table's text, from which it can be made again; none if it is not there.
pub(crate) async fn text(table: &NftTableId) -> Result<Option<String>, NftError> {
    let output = run(&["list", "table", table.family.as_str(), &table.name], String::new()).await?;
    if output.status.success() {
        return Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()));
    }
    if is_absent(&output.stderr) { Ok(None) } else { Err(refused(table, &output.stderr)) }
}

/// Takes the place of whatever the table holds, whether it is there or not.
pub(crate) fn replace_script(id: &NftTableId, body: &str) -> String {
    format!("table {id}\ndelete table {id}\ntable {id} {{\n{body}\n}}\n")
}

/// Makes the table as [`text`] gave it.
pub(crate) fn restore_script(id: &NftTableId, text: &str) -> String {
    format!("table {id}\ndelete table {id}\n{text}\n")
}

/// Deletes the table, whether it is there or not.
pub(crate) fn delete_script(id: &NftTableId) -> String {
    format!("table {id}\ndelete table {id}\n")
}

async fn run(arguments: &[&str], input: String) -> Result<std::process::Output, NftError> {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(
            |error| if error.kind() == io::ErrorKind::NotFound { NftError::Missing } else { NftError::Run(error) },
        )?;
    let work = async {
        if let Some(mut stdin) = child.stdin.take() {
            match stdin.write_all(input.as_bytes()).await {
                // It may have found a mistake, and ended, before it had read all; then its answer says so.
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(NftError::Run(error)),
                _ => drop(stdin),
            }
        }
        child.wait_with_output().await.map_err(NftError::Run)
    };
    tokio::time::timeout(NFT_TIMEOUT, work).await.or(Err(NftError::Timeout))?
}

fn is_absent(stderr: &[u8]) -> bool {
    String::from_utf8_lossy(stderr).contains("No such file or directory")
}

fn refused(table: &NftTableId, stderr: &[u8]) -> NftError {
    let message = String::from_utf8_lossy(stderr).trim().chars().take(MESSAGE_LIMIT).collect();
    NftError::Refused { table: table.clone(), message }
}

/// What `nft -j list` says.
fn objects(json: &[u8]) -> Result<Vec<Value>, serde_json::Error> {
    #[derive(serde::Deserialize)]
    struct Listed {
        nftables: Vec<Value>,
    }
    let Listed { nftables } = serde_json::from_slice(json)?;
    Ok(nftables.into_iter().filter(|object| object.get("metainfo").is_none()).collect())
}

/// The objects of a table less what changes by itself, kind by kind, and sets in one order.
fn content(mut objects: Vec<Value>) -> NftContent {
    let rank = |object: &Value| ["table", "chain", "rule"].iter().position(|kind| object.get(kind).is_some());
    objects.sort_by_key(rank);
    let mut value = json!({"nftables": objects});
    normalise(&mut value);
    NftContent(value.to_string())
}

/// An object of the draft becomes one of the table.
fn rename(object: &mut Value, draft: &NftTableId, id: &NftTableId) {
    for fields in object.as_object_mut().into_iter().flat_map(|kinds| kinds.values_mut()) {
        if let Some(name) = fields.get_mut("table").filter(|name| **name == *draft.name) {
            *name = id.name.clone().into();
        }
    }
}

fn normalise(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for gone in ["handle", "packets", "bytes", "expires"] {
                fields.remove(gone);
            }
            for (name, field) in fields.iter_mut() {
                normalise(field);
                // The kernel keeps sets in hash tables and lists them as they lie.
                if matches!(name.as_str(), "elem" | "set")
                    && let Value::Array(elements) = field
                {
                    elements.sort_by_cached_key(ToString::to_string);
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(normalise),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(json: &[u8]) -> NftContent {
        content(objects(json).unwrap())
    }

    #[test]
    fn handles_counters_and_the_order_of_sets_do_not_count() {
        let one = br#"{"nftables": [{"metainfo": {"version": "1.0.6"}}, {"table": {"family": "ip", "name": "t", "handle": 7}},
            {"rule": {"handle": 3, "expr": [{"counter": {"packets": 5, "bytes": 9}}, {"set": ["b", "a"]}]}}]}"#;
        let two = br#"{"nftables": [{"table": {"family": "ip", "name": "t", "handle": 9}},
            {"rule": {"handle": 4, "expr": [{"counter": {"packets": 0, "bytes": 0}}, {"set": ["a", "b"]}]}}]}"#;
        assert_eq!(said(one), said(two));
        let three = br#"{"nftables": [{"table": {"family": "ip", "name": "t", "handle": 9}},
            {"rule": {"handle": 4, "expr": [{"set": ["a", "b"]}, {"counter": {"packets": 0, "bytes": 0}}]}}]}"#;
        assert_ne!(said(one), said(three));
        assert!(objects(b"no").is_err() && objects(b"\n").is_err());
    }

    /// Part by part or as a whole: the order of chains and of rules counts, and not which kind is told first.
    #[test]
    fn a_draft_says_what_its_table_is_to_be() {
        let chain =
            |table: &str, name: &str| json!({"chain": {"family": "ip", "table": table, "name": name, "handle": 1}});
        let rule =
            |table: &str, chain: &str| json!({"rule": {"table": table, "chain": chain, "expr": [{"accept": null}]}});
        let table = json!({"table": {"family": "ip", "name": "t"}});
        let id = NftTableId::new(crate::state::NftFamily::Ip, "t");
        let draft = draft(&id);
        let mut parts = vec![table.clone()];
        for name in ["a", "t-draft"] {
            parts.extend([chain(&draft.name, name), rule(&draft.name, name)]);
        }
        parts.iter_mut().for_each(|object| rename(object, &draft, &id));
        let whole = vec![table, chain("t", "a"), chain("t", "t-draft"), rule("t", "a"), rule("t", "t-draft")];
        assert_eq!(content(parts), content(whole.clone()));
        let other = vec![whole[0].clone(), whole[2].clone(), whole[1].clone(), whole[3].clone(), whole[4].clone()];
        assert_ne!(content(whole), content(other));
    }

    #[test]
    fn parts_of_a_body_are_found() {
        let body = "\tset s { type ipv4_addr; }\n\tmap m {\n\t}\n\tchain a {\n\t\tjump b\n\t\tip daddr @set accept\n\t}\nchain b { }\n";
        assert_eq!(parts(body).collect::<Vec<_>>(), [("set", "s"), ("map", "m"), ("chain", "a"), ("chain", "b")]);
    }
}
