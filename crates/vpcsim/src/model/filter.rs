//! Filters and pages, the same for every Describe call.

use std::ops::RangeInclusive;

use super::api::{Filter, Listed, Page};
use super::error::ApiError;
use super::state::Tags;

/// Filters of a call (EC2 API: up to 50), and values of a filter (up to 200).
const MOST_FILTERS: usize = 50;
const MOST_VALUES: usize = 200;

/// Something that can be listed.
pub(super) trait Listable {
    /// What the list is ordered by and a page ends at.
    fn key(&self) -> String;
    /// Its tags, for `tag:<key>` and `tag-key`.
    fn tags(&self) -> Option<&Tags>;
    /// What it has under the name of a filter; nothing when there is no such filter.
    fn values(&self, name: &str) -> Option<Vec<String>>;
}

/// Keeps what matches every filter.
pub(super) fn matching<T: Listable>(items: Vec<T>, filters: &[Filter]) -> Result<Vec<T>, ApiError> {
    if filters.len() > MOST_FILTERS {
        return Err(ApiError::client("FilterLimitExceeded", format!("More than {MOST_FILTERS} filters were given")));
    }
    for filter in filters {
        if filter.values.is_empty() {
            return Err(ApiError::invalid_value(format!("The filter '{}' has no values", filter.name)));
        }
        if filter.values.len() > MOST_VALUES {
            return Err(ApiError::client(
                "FilterLimitExceeded",
                format!("The filter '{}' has more than {MOST_VALUES} values", filter.name),
            ));
        }
    }
    let mut kept = Vec::with_capacity(items.len());
    for item in items {
        if fits(&item, filters)? {
            kept.push(item);
        }
    }
    Ok(kept)
}

fn fits<T: Listable>(item: &T, filters: &[Filter]) -> Result<bool, ApiError> {
    for filter in filters {
        let found = match (filter.name.strip_prefix("tag:"), item.tags()) {
            (Some(key), Some(tags)) => tags.get(key).cloned().into_iter().collect(),
            _ => match (filter.name.as_str(), item.tags()) {
                ("tag-key", Some(tags)) => tags.keys().cloned().collect(),
                (name, _) => item
                    .values(name)
                    .ok_or_else(|| ApiError::invalid_value(format!("The filter '{name}' is invalid")))?,
            },
        };
        if !filter.values.iter().any(|pattern| found.iter().any(|value| wildcard(pattern, value))) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Cuts one page out of a list that is ordered by [`Listable::key`].
pub(super) fn page<T: Listable>(
    mut items: Vec<T>,
    page: &Page,
    allowed: &RangeInclusive<u32>,
) -> Result<Listed<T>, ApiError> {
    if let Some(token) = &page.next_token {
        let last = decode(token).ok_or_else(|| ApiError::invalid_value("Unable to parse pagination token"))?;
        items.retain(|item| item.key() > last);
    }
    let Some(most) = page.max_results else { return Ok(Listed { items, next_token: None }) };
    if !allowed.contains(&most) {
        let rule = if most < *allowed.start() {
            format!("Expecting a value greater than or equal to {}.", allowed.start())
        } else {
            format!("Expecting a value less than or equal to {}.", allowed.end())
        };
        return Err(ApiError::invalid_parameter("maxResults", most, &rule));
    }
    let more = items.len() > usize::try_from(most).unwrap_or(usize::MAX);
    items.truncate(usize::try_from(most).unwrap_or(usize::MAX));
    let next_token = items.last().filter(|_| more).map(|item| encode(&item.key()));
    Ok(Listed { items, next_token })
}

fn encode(key: &str) -> String {
    key.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn decode(token: &str) -> Option<String> {
    let digits = token.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let bytes = digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    String::from_utf8(bytes.collect::<Option<Vec<u8>>>()?).ok()
}

/// Whether `value` fits `pattern`, in which `*` stands for anything, `?` for one character and `\` takes the meaning away
/// from the one after it. Time is bounded by the product of the lengths.
fn wildcard(pattern: &str, value: &str) -> bool {
    enum Part {
        Any,
        One,
        Exactly(char),
    }
    let mut characters = pattern.chars();
    let mut parts = Vec::new();
    while let Some(character) = characters.next() {
        parts.push(match character {
            '*' => Part::Any,
            '?' => Part::One,
            '\\' => Part::Exactly(characters.next().unwrap_or('\\')),
            other => Part::Exactly(other),
        });
    }
    let value: Vec<char> = value.chars().collect();
    // reached[n]: the parts so far can stand for the first n characters.
    let mut reached = vec![false; value.len().saturating_add(1)];
    if let Some(first) = reached.first_mut() {
        *first = true;
    }
    for part in parts {
        let mut next = vec![false; reached.len()];
        let mut sticky = false;
        for (at, slot) in next.iter_mut().enumerate() {
            let before = at.checked_sub(1);
            let from_before = before.and_then(|before| reached.get(before).copied()).unwrap_or(false);
            *slot = match part {
                Part::Any => {
                    sticky |= reached.get(at).copied().unwrap_or(false);
                    sticky
                }
                Part::One => from_before,
                Part::Exactly(c) => from_before && before.and_then(|before| value.get(before)) == Some(&c),
            };
        }
        reached = next;
    }
    reached.last().copied().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards() {
        for (pattern, value, fits) in [
            ("available", "available", true),
            ("avail*", "available", true),
            ("*able", "available", true),
            ("av*a*le", "available", true),
            ("av?ilable", "available", true),
            ("av?lable", "available", false),
            ("", "", true),
            ("*", "", true),
            ("?", "", false),
            (r"a\*", "a*", true),
            (r"a\*", "ab", false),
            ("aws-K8S-*", "aws-K8S-i-0123", true),
        ] {
            assert_eq!(wildcard(pattern, value), fits, "{pattern} {value}");
        }
        assert!(!wildcard(&"*a".repeat(100), &"a".repeat(99)));
    }

    #[test]
    fn tokens_round_trip_and_garbage_is_refused() {
        assert_eq!(decode(&encode("eni-0123")).as_deref(), Some("eni-0123"));
        for garbage in ["zz", "abc", "ff"] {
            assert_eq!(decode(garbage), None, "{garbage}");
        }
    }
}
