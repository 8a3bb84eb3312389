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

use serde_json::Value;
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
    let listed = run(&["-j", "list", "table", draft.family.as_str(), &draft.name], String::new()).await;
    apply(&id, delete_script(&draft)).await?;
    let listed = listed?;
    if !listed.status.success() {
        return Err(refused(&id, &listed.stderr));
    }
    let content = content(&listed.stdout, Some((&draft, &id))).map_err(NftError::List)?;
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
        let content = content(&output.stdout, None).map_err(NftError::List)?;
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

/// What `nft -j list table` says, less what changes by itself, and sets in one order; of a draft, what it says of the table
/// that it is made for.
fn content(json: &[u8], drafted: Option<(&NftTableId, &NftTableId)>) -> Result<NftContent, serde_json::Error> {
    let mut value: Value = serde_json::from_slice(json)?;
    if let Some(objects) = value.get_mut("nftables").and_then(Value::as_array_mut) {
        objects.retain(|object| object.get("metainfo").is_none());
        if let Some((draft, id)) = drafted {
            objects.iter_mut().for_each(|object| rename(object, draft, id));
        }
    }
    normalise(&mut value);
    Ok(NftContent(value.to_string()))
}

/// An object of the draft becomes one of the table: the table itself, or what says in which one it is.
fn rename(object: &mut Value, draft: &NftTableId, id: &NftTableId) {
    for (kind, fields) in object.as_object_mut().into_iter().flatten() {
        let Some(fields) = fields.as_object_mut() else { continue };
        let field = if kind == "table" { "name" } else { "table" };
        if let Some(name) = fields.get_mut(field).filter(|name| **name == *draft.name) {
            *name = id.name.clone().into();
        }
        if kind == "table" {
            // Not every nft says that it is dormant.
            fields.remove("flags");
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

    #[test]
    fn handles_counters_and_the_order_of_sets_do_not_count() {
        let one = br#"{"nftables": [{"metainfo": {"version": "1.0.6"}}, {"table": {"family": "ip", "name": "t", "handle": 7}},
            {"rule": {"handle": 3, "expr": [{"counter": {"packets": 5, "bytes": 9}}, {"set": ["b", "a"]}]}}]}"#;
        let two = br#"{"nftables": [{"table": {"family": "ip", "name": "t", "handle": 9}},
            {"rule": {"handle": 4, "expr": [{"counter": {"packets": 0, "bytes": 0}}, {"set": ["a", "b"]}]}}]}"#;
        assert_eq!(content(one, None).unwrap(), content(two, None).unwrap());
        let three = br#"{"nftables": [{"table": {"family": "ip", "name": "t", "handle": 9}},
            {"rule": {"handle": 4, "expr": [{"set": ["a", "b"]}, {"counter": {"packets": 0, "bytes": 0}}]}}]}"#;
        assert_ne!(content(one, None).unwrap(), content(three, None).unwrap());
        assert!(content(b"no", None).is_err());
    }

    #[test]
    fn a_draft_says_what_its_table_is_to_be() {
        let of = |name: &str, flags: &str| {
            format!(
                r#"{{"nftables": [{{"table": {{"family": "ip", "name": "{name}"{flags}, "handle": 1}}}},
                {{"chain": {{"family": "ip", "table": "{name}", "name": "t-draft", "handle": 1}}}},
                {{"rule": {{"family": "ip", "table": "{name}", "chain": "t-draft", "expr": [{{"accept": null}}]}}}}]}}"#
            )
        };
        let id = NftTableId::new(crate::state::NftFamily::Ip, "t");
        let draft = draft(&id);
        let wanted = content(of("t", "").as_bytes(), None).unwrap();
        for flags in ["", r#", "flags": "dormant""#, r#", "flags": ["dormant"]"#] {
            assert_eq!(content(of("t-draft", flags).as_bytes(), Some((&draft, &id))).unwrap(), wanted, "{flags}");
        }
    }
}
