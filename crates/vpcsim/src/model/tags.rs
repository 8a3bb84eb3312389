//! Tags of whatever has an id.

use super::Edit;
use super::api::{CreateTags, DeleteTags, Reply, TagOf};
use super::error::{ApiError, Missing};
use super::state::{State, Tags};

/// Tags of a resource (EC2 User Guide, "Tag restrictions").
const MOST_TAGS: usize = 50;
const LONGEST_KEY: usize = 128;
const LONGEST_VALUE: usize = 256;

impl Edit<'_> {
    pub(super) fn create_tags(&mut self, request: &CreateTags) -> Result<Reply, ApiError> {
        if request.resources.is_empty() {
            return Err(ApiError::missing("resourceIdSet"));
        }
        check(&request.tags)?;
        for id in &request.resources {
            let tags = self.tags_of(id)?;
            tags.extend(request.tags.clone());
            if tags.len() > MOST_TAGS {
                return Err(ApiError::client(
                    "TagLimitExceeded",
                    format!("More than {MOST_TAGS} tags are associated with {id}"),
                ));
            }
        }
        Ok(Reply::Done)
    }

    pub(super) fn delete_tags(&mut self, request: &DeleteTags) -> Result<Reply, ApiError> {
        for id in &request.resources {
            let tags = self.tags_of(id)?;
            if request.tags.is_empty() {
                tags.clear();
            }
            for (key, value) in &request.tags {
                if value.is_none() || tags.get(key) == value.as_ref() {
                    tags.remove(key);
                }
            }
        }
        Ok(Reply::Done)
    }

    fn tags_of(&mut self, id: &str) -> Result<&mut Tags, ApiError> {
        let state = &mut *self.state;
        let found = match kind(id) {
            "network-interface" => state.enis.iter_mut().find(|e| e.0.as_str() == id).map(|e| &mut e.1.tags),
            "subnet" => state.subnets.iter_mut().find(|e| e.0.as_str() == id).map(|e| &mut e.1.tags),
            "vpc" => state.vpcs.iter_mut().find(|e| e.0.as_str() == id).map(|e| &mut e.1.tags),
            "security-group" => state.security_groups.iter_mut().find(|e| e.0.as_str() == id).map(|e| &mut e.1.tags),
            "instance" => state.instances.iter_mut().find(|e| e.0.as_str() == id).map(|e| &mut e.1.tags),
            _ => return Err(ApiError::not_found(Missing::Resource, id)),
        };
        let missing = match kind(id) {
            "network-interface" => Missing::Eni,
            "subnet" => Missing::Subnet,
            "vpc" => Missing::Vpc,
            "security-group" => Missing::SecurityGroup,
            _ => Missing::Instance,
        };
        found.ok_or_else(|| ApiError::not_found(missing, id))
    }
}

/// Checks tags against EC2's rules.
pub(super) fn check(tags: &Tags) -> Result<(), ApiError> {
    for (key, value) in tags {
        if key.is_empty() || key.chars().count() > LONGEST_KEY {
            return Err(ApiError::invalid_value("Tag key must have 1 to 128 characters."));
        }
        if value.chars().count() > LONGEST_VALUE {
            return Err(ApiError::invalid_value("Tag value exceeds the maximum length of 256 characters"));
        }
        if key.starts_with("aws:") {
            return Err(ApiError::invalid_value("Tag keys starting with 'aws:' are reserved for internal use"));
        }
    }
    if tags.len() > MOST_TAGS {
        return Err(ApiError::client("TagLimitExceeded", format!("More than {MOST_TAGS} tags were given")));
    }
    Ok(())
}

/// The kind of resource that an id is of, in DescribeTags' words.
fn kind(id: &str) -> &'static str {
    match id.split_once('-').map(|(prefix, _)| prefix) {
        Some("eni") => "network-interface",
        Some("subnet") => "subnet",
        Some("vpc") => "vpc",
        Some("sg") => "security-group",
        Some("i") => "instance",
        _ => "unknown",
    }
}

/// All tags there are, by resource and key.
pub(super) fn all(state: &State) -> Vec<TagOf> {
    let enis = state.enis.iter().map(|(id, eni)| (id.as_str(), &eni.tags));
    let instances = state.instances.iter().map(|(id, instance)| (id.as_str(), &instance.tags));
    let groups = state.security_groups.iter().map(|(id, group)| (id.as_str(), &group.tags));
    let subnets = state.subnets.iter().map(|(id, subnet)| (id.as_str(), &subnet.tags));
    let vpcs = state.vpcs.iter().map(|(id, vpc)| (id.as_str(), &vpc.tags));
    let each = enis.chain(instances).chain(groups).chain(subnets).chain(vpcs);
    each.flat_map(|(id, tags)| {
        tags.iter().map(|(key, value)| TagOf {
            resource: id.to_owned(),
            kind: kind(id),
            key: key.clone(),
            value: value.clone(),
        })
    })
    .collect()
}
