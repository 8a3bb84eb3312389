//! `fromGroups` and `toGroups`: AWS security groups, by way of the CiliumCIDRGroups that stand for them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::super::cursor::{Cursor, Faults, Report, quoted, shown};
use super::each;
use crate::model::{Text, Usable};

/// What the names of CiliumCIDRGroups begin with that stand for AWS security groups.
pub const NAME_PREFIX: &str = "sluice-aws-";

/// Bytes of an id, a name or a region.
const MAX_TEXT: usize = 255;

/// Bytes of the hash in a name.
const HASH: usize = 16;

/// `aws` of an element of `fromGroups` or `toGroups`: which security groups. An instance's interface counts if it is in one
/// that all of the fields name.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AwsGroup {
    /// `labels`: tags of the instance.
    pub labels: BTreeMap<Text, Text>,
    /// `securityGroupsIds`.
    pub ids: BTreeSet<Text>,
    /// `securityGroupsNames`.
    pub names: BTreeSet<Text>,
    /// `region`; none: the cluster's own.
    pub region: Option<Text>,
}

impl AwsGroup {
    /// Name of the CiliumCIDRGroup that stands for these security groups.
    ///
    /// It is a function of what the group says and of nothing else, so that the one who resolves groups (ipamd's Lease
    /// holder) and those who read policies agree without asking each other, and equal groups of several policies share one
    /// object: `sluice-aws-` and the first 16 bytes, in lower case hexadecimal, of the SHA-256 of these lines, each ended by
    /// a line feed:
    ///
    /// - `region`, a space, and the region as a JSON string, if there is one;
    /// - `id`, a space, and the id as a JSON string, for each of `securityGroupsIds`;
    /// - `name`, a space, and the name as a JSON string, for each of `securityGroupsNames`;
    /// - `label`, a space, the key as a JSON string, a space, and the value as a JSON string, for each of `labels`;
    ///
    /// each kind in the order of its bytes, without doubles. A JSON string has no line feed in it, so that no two groups
    /// have the same lines.
    #[must_use]
    pub fn cidr_group_name(&self) -> Text {
        let mut lines = Sha256::new();
        let quoted = |text: &Text| Value::from(text.as_ref()).to_string();
        let mut line = |text: String| lines.update(text + "\n");
        self.region.iter().for_each(|region| line(format!("region {}", quoted(region))));
        self.ids.iter().for_each(|id| line(format!("id {}", quoted(id))));
        self.names.iter().for_each(|name| line(format!("name {}", quoted(name))));
        self.labels.iter().for_each(|(key, value)| line(format!("label {} {}", quoted(key), quoted(value))));
        let mut name = String::from(NAME_PREFIX);
        for byte in lines.finalize().iter().take(HASH) {
            // Writing to a String cannot fail.
            write!(name, "{byte:02x}").unwrap_or_default();
        }
        name.into()
    }

    fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.ids.is_empty() && self.names.is_empty()
    }
}

/// The security groups that a CiliumNetworkPolicy or CiliumClusterwideNetworkPolicy names, by the CiliumCIDRGroup that has
/// to exist for each: what has to be resolved. Groups that cannot be used are left out; reading the policy tells them.
#[must_use]
pub fn aws_groups(document: &Value) -> BTreeMap<Text, AwsGroup> {
    let specs = document.get("spec").into_iter().chain(list(document, "specs"));
    let lists = ["ingress", "ingressDeny", "egress", "egressDeny"];
    let rules = specs.flat_map(|spec| lists.iter().flat_map(|name| list(spec, name)));
    let groups = rules.flat_map(|rule| list(rule, "fromGroups").chain(list(rule, "toGroups")));
    let mut unheard = Report::default();
    groups
        .filter_map(|value| group(&Cursor::document(value), &mut unheard).ok())
        .map(|group| (group.cidr_group_name(), group))
        .collect()
}

fn list<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value.get(name).and_then(Value::as_array).into_iter().flatten()
}

/// Reads an element of `fromGroups` or `toGroups`: the CiliumCIDRGroup that stands for it.
pub(super) fn read(cursor: &Cursor<'_>, report: &mut Report) -> Usable<Text> {
    group(cursor, report).map(|group| group.cidr_group_name())
}

fn group(cursor: &Cursor<'_>, report: &mut Report) -> Usable<AwsGroup> {
    let mut fields = cursor.fields(report)?;
    let provider = fields.take("aws").map(|field| aws(&field, report));
    fields.finish(report)?;
    provider.unwrap_or_else(|| {
        let message = "names no provider, and would stand for nothing; aws is the one that is known";
        Err(report.unusable(&cursor.path, message))
    })
}

fn aws(cursor: &Cursor<'_>, report: &mut Report) -> Usable<AwsGroup> {
    let mut fields = cursor.fields(report)?;
    let mut faults = Faults::default();
    let mut texts = |name, report: &mut Report| match fields.take(name) {
        None => BTreeSet::new(),
        Some(field) => {
            let elements = faults.keep(field.elements(report)).unwrap_or_default();
            faults.keep(each(&elements, report, text)).unwrap_or_default().into_iter().collect()
        }
    };
    let ids = texts("securityGroupsIds", report);
    let names = texts("securityGroupsNames", report);
    let region = fields.take("region").and_then(|field| faults.keep(text(&field, report)));
    let labels = fields.take("labels").and_then(|field| faults.keep(labels(&field, report))).unwrap_or_default();
    faults.keep(fields.finish(report));
    let group = faults.or(AwsGroup { labels, ids, names, region })?;
    if group.is_empty() {
        return Err(report.unusable(&cursor.path, "names no security group, and would stand for every interface"));
    }
    Ok(group)
}

/// An id, a name or a region, as far as every one of them is alike (EC2, `CreateSecurityGroup`).
fn text(cursor: &Cursor<'_>, report: &mut Report) -> Usable<Text> {
    let text = cursor.text(report)?;
    if text.is_empty() || text.len() > MAX_TEXT || text.chars().any(char::is_control) {
        let message = format!("{} is not 1 to {MAX_TEXT} printable characters", cursor.shown());
        return Err(report.unusable(&cursor.path, message));
    }
    Ok(text.into())
}

fn labels(field: &Cursor<'_>, report: &mut Report) -> Usable<BTreeMap<Text, Text>> {
    let Value::Object(map) = field.value else {
        return Err(report.refused(&field.path, format!("{} is not an object", field.shown())));
    };
    let mut faults = Faults::default();
    let mut labels = BTreeMap::new();
    for (key, value) in map {
        let value = match value.as_str() {
            Some(value) if !value.chars().chain(key.chars()).any(char::is_control) => Ok(value),
            _ => Err(report.unusable(&field.path, format!("{}: {} is not printable text", quoted(key), shown(value)))),
        };
        if let Some(value) = faults.keep(value) {
            labels.insert(key.as_str().into(), value.into());
        }
    }
    faults.or(labels)
}
