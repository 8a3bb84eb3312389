//! nftables tables through the `nft` program: one transaction a table, compared by content.
//!
//! What `nft` lists is not what it was given: it writes the same thing in another way. So the content of a table that
//! should be there is learned by loading it once into an empty namespace ([`ruleset`]); then the two lists are equal
//! exactly when the tables are.
//!
//! nft 1.0.6 wants a newline or `;` behind the closing brace of every chain and set.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::netns::{Enter, NamespaceError, NamespaceThread, ThreadError, ThreadSpec};
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
    /// The empty namespace for learning a table's content could not be made.
    #[error("cannot make an empty namespace to load a table into")]
    Namespace(#[source] NamespaceError),
    /// The thread in the namespace is gone.
    #[error("cannot run nft in the namespace")]
    Thread(#[source] ThreadError),
}

/// A table that should be there: `body` is what stands between the braces of `table FAMILY NAME { ... }`. Loads it
/// into an empty namespace to learn its content, and finds mistakes on the way; two runs of `nft`, so keep the result.
///
/// # Errors
/// [`NftError::Refused`] for a body that `nft` or the kernel does not take; [`NftError::Missing`]; others.
pub async fn ruleset(id: NftTableId, body: impl Into<String>) -> Result<NftRuleset, NftError> {
    let body = body.into();
    let spec = ThreadSpec { name: "nft".into(), net: Enter::New, ..ThreadSpec::default() };
    let empty = NamespaceThread::spawn(spec).map_err(NftError::Namespace)?;
    let script = replace_script(&id, &body);
    let table = id.clone();
    let listed = empty
        .run(|| async move {
            apply(&table, script).await?;
            list(&table).await
        })
        .await
        .map_err(NftError::Thread)??;
    let content = listed.map_or_else(|| NftContent(String::new()), |table| table.content);
    Ok(NftRuleset { id, body, content })
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
        let content = content(&output.stdout).map_err(NftError::List)?;
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

/// What `nft -j list table` says, less what changes by itself, and sets in one order.
fn content(json: &[u8]) -> Result<NftContent, serde_json::Error> {
    let mut value: Value = serde_json::from_slice(json)?;
    if let Some(objects) = value.get_mut("nftables").and_then(Value::as_array_mut) {
        objects.retain(|object| object.get("metainfo").is_none());
    }
    normalise(&mut value);
    Ok(NftContent(value.to_string()))
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

    #[test]
    fn handles_counters_and_the_order_of_sets_do_not_count() {
        let one = br#"{"nftables": [{"metainfo": {"version": "1.0.6"}}, {"table": {"family": "ip", "name": "t", "handle": 7}},
            {"rule": {"handle": 3, "expr": [{"counter": {"packets": 5, "bytes": 9}}, {"set": ["b", "a"]}]}}]}"#;
        let two = br#"{"nftables": [{"table": {"family": "ip", "name": "t", "handle": 9}},
            {"rule": {"handle": 4, "expr": [{"counter": {"packets": 0, "bytes": 0}}, {"set": ["a", "b"]}]}}]}"#;
        assert_eq!(content(one).unwrap(), content(two).unwrap());
        let three = br#"{"nftables": [{"table": {"family": "ip", "name": "t", "handle": 9}},
            {"rule": {"handle": 4, "expr": [{"set": ["a", "b"]}, {"counter": {"packets": 0, "bytes": 0}}]}}]}"#;
        assert_ne!(content(one).unwrap(), content(three).unwrap());
        assert!(content(b"no").is_err());
    }
}
