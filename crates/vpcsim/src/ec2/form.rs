//! Parameters of the Query protocol: `Name=value` pairs in which lists are numbered (`Filter.1.Value.2`).

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use ipnet::{Ipv4Net, Ipv6Net};

use crate::http::unescape;
use crate::model::ApiError;

/// Parameters of one call. EC2 takes 1000 ids in a Describe call; the rest is far less.
const MOST_PARAMETERS: usize = 4000;

/// The parameters of a call or of one part of it. What is taken is gone, so that what is left at the end is what nobody
/// understood.
#[derive(Debug, Default)]
pub(super) struct Form {
    /// The name of the part, with its dot, for messages.
    prefix: String,
    values: BTreeMap<String, String>,
}

impl Form {
    /// Reads `application/x-www-form-urlencoded`.
    pub(super) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let malformed = |why: &str| ApiError::client("MalformedQueryString", format!("The query string {why}"));
        let mut values = BTreeMap::new();
        for pair in body.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()) {
            let mut halves = pair.splitn(2, |byte| *byte == b'=');
            let name =
                unescape(halves.next().unwrap_or_default(), true).ok_or_else(|| malformed("has a bad escape"))?;
            let value =
                unescape(halves.next().unwrap_or_default(), true).ok_or_else(|| malformed("has a bad escape"))?;
            if values.insert(name, value).is_some() {
                return Err(malformed("has a parameter twice"));
            }
            if values.len() > MOST_PARAMETERS {
                return Err(malformed("has too many parameters"));
            }
        }
        Ok(Self { prefix: String::new(), values })
    }

    /// Takes a parameter.
    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        self.values.remove(name)
    }

    /// Takes a parameter that must be there.
    pub(super) fn require(&mut self, name: &str) -> Result<String, ApiError> {
        self.take(name)
            .filter(|value| !value.is_empty())
            .ok_or_else(|| ApiError::missing(&format!("{}{name}", self.prefix)))
    }

    /// Takes and parses a parameter that must be there; its own error says what is wrong.
    pub(super) fn require_id<T>(&mut self, name: &str) -> Result<T, ApiError>
    where
        T: FromStr,
        ApiError: From<T::Err>,
    {
        Ok(self.require(name)?.parse()?)
    }

    /// Takes and parses a parameter.
    pub(super) fn parsed<T: FromStr>(&mut self, name: &str, rule: &str) -> Result<Option<T>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        self.read(name, &value, rule).map(Some)
    }

    /// Takes a count; 0 when absent.
    pub(super) fn count(&mut self, name: &str) -> Result<u32, ApiError> {
        Ok(self.parsed(name, "It must be a number.")?.unwrap_or(0))
    }

    /// Takes a truth value; false when absent.
    pub(super) fn flag(&mut self, name: &str) -> Result<bool, ApiError> {
        Ok(self.parsed(name, "It must be true or false.")?.unwrap_or(false))
    }

    /// Takes an IPv4 CIDR block.
    pub(super) fn cidr(&mut self, name: &str) -> Result<Ipv4Net, ApiError> {
        let value = self.require(name)?;
        self.read(name, &value, "This is not a valid CIDR block.")
    }

    /// Takes an IPv6 CIDR block.
    pub(super) fn ipv6_cidr(&mut self, name: &str) -> Result<Option<Ipv6Net>, ApiError> {
        self.parsed(name, "This is not a valid IPv6 CIDR block.")
    }

    /// Takes a list of values, `name.1`, `name.2`, ….
    pub(super) fn list(&mut self, name: &str) -> Result<Vec<String>, ApiError> {
        let mut list = Vec::new();
        for mut part in self.parts(name)? {
            list.push(part.take("").ok_or_else(|| part.unknown())?);
            part.finish()?;
        }
        Ok(list)
    }

    /// Takes a list of ids.
    pub(super) fn ids<T>(&mut self, name: &str) -> Result<Vec<T>, ApiError>
    where
        T: FromStr,
        ApiError: From<T::Err>,
    {
        self.list(name)?.iter().map(|id| Ok(id.parse()?)).collect()
    }

    /// Takes and parses a list of values.
    pub(super) fn parsed_list<T: FromStr>(&mut self, name: &str, rule: &str) -> Result<Vec<T>, ApiError> {
        let list = self.list(name)?;
        list.iter().map(|value| self.read(name, value, rule)).collect()
    }

    /// Takes and parses a list of structures that have one member.
    pub(super) fn parsed_members<T: FromStr>(
        &mut self,
        name: &str,
        member: &str,
        rule: &str,
    ) -> Result<Vec<T>, ApiError> {
        let mut list = Vec::new();
        for mut part in self.parts(name)? {
            list.extend(part.parsed(member, rule)?);
            part.finish()?;
        }
        Ok(list)
    }

    /// Takes a list of structures, in the order of their numbers.
    pub(super) fn parts(&mut self, name: &str) -> Result<Vec<Self>, ApiError> {
        let prefix = format!("{name}.");
        let names: Vec<String> = self.values.range(prefix.clone()..).map(|(name, _)| name.clone()).collect();
        let mut parts: BTreeMap<u32, Self> = BTreeMap::new();
        for full in names {
            let Some(rest) = full.strip_prefix(&prefix) else { break };
            let (number, member) = rest.split_once('.').unwrap_or((rest, ""));
            // A name like `Attachment.DeleteOnTermination` is no list.
            let Ok(number) = number.parse() else { continue };
            let part = parts.entry(number).or_insert_with(|| Self {
                prefix: format!("{}{prefix}{number}.", self.prefix),
                values: BTreeMap::new(),
            });
            if let Some(value) = self.values.remove(&full) {
                part.values.insert(member.to_owned(), value);
            }
        }
        Ok(parts.into_values().collect())
    }

    /// Forgets parameters, and those under them, that change nothing that the model knows of.
    pub(super) fn ignore(&mut self, names: &[&str]) {
        self.values.retain(|full, _| {
            !names
                .iter()
                .any(|name| full.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
        });
    }

    /// Refuses what nobody took: to ignore a parameter would be to answer another question than was asked.
    pub(super) fn finish(self) -> Result<(), ApiError> {
        if self.values.is_empty() { Ok(()) } else { Err(self.unknown()) }
    }

    fn unknown(&self) -> ApiError {
        let name = self.values.keys().next().map_or("", String::as_str);
        ApiError::client("UnknownParameter", format!("The parameter {}{name} is not recognized", self.prefix))
    }

    fn read<T: FromStr>(&self, name: &str, value: &(impl AsRef<str> + Display), rule: &str) -> Result<T, ApiError> {
        let parsed = value.as_ref().parse();
        parsed.ok().ok_or_else(|| ApiError::invalid_parameter(&format!("{}{name}", self.prefix), value, rule))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_parts_are_numbered() {
        let body =
            b"Action=X&Filter.2.Name=b&Filter.1.Name=a&Filter.1.Value.1=x%20y&Filter.1.Value.10=z&Filter.1.Value.2=%2A";
        let mut form = Form::parse(body).unwrap();
        assert_eq!(form.take("Action").as_deref(), Some("X"));
        let mut parts = form.parts("Filter").unwrap();
        assert_eq!(parts.len(), 2);
        assert_eq!(parts[0].take("Name").as_deref(), Some("a"));
        assert_eq!(parts[0].list("Value").unwrap(), ["x y", "*", "z"]);
        assert_eq!(parts[1].require("Name").unwrap(), "b");
        assert_eq!(
            parts[1].require("Value").unwrap_err().message,
            "The request must contain the parameter Filter.2.Value"
        );
        form.finish().unwrap();
    }

    #[test]
    fn what_nobody_understands_is_refused() {
        let mut form = Form::parse(b"A.1.B=1&C=2").unwrap();
        assert!(form.list("A").is_err());
        let mut form = Form::parse(b"A.B=1&C=2").unwrap();
        assert!(form.parts("A").unwrap().is_empty());
        form.ignore(&["A"]);
        assert_eq!(form.finish().unwrap_err().message, "The parameter C is not recognized");
        for bad in [&b"A=%"[..], b"A=%g0", b"A=%ff", b"A=1&A=2"] {
            assert_eq!(Form::parse(bad).unwrap_err().code, "MalformedQueryString");
        }
        assert_eq!(Form::parse(b"N=x").unwrap().count("N").unwrap_err().code, "InvalidParameterValue");
    }
}
