//! A daemon's configuration: environment variables, whose faults are told all at once.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use axum::http::Uri;

use crate::log::LogFormat;

/// A variable: its name, its default as it would be written, and what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// Its default.
    pub default: &'static str,
    /// What it does.
    pub meaning: &'static str,
}

/// How much of a variable's value a fault shows.
pub const VALUE_CHARACTERS: usize = 200;
/// How much of the rule that it breaks.
pub const RULE_CHARACTERS: usize = 400;

/// One variable that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFault {
    /// Its name.
    pub variable: &'static str,
    /// What it holds, cut to [`VALUE_CHARACTERS`].
    pub value: String,
    /// The rule that it breaks, cut to [`RULE_CHARACTERS`]: it may quote the value.
    pub rule: String,
}

impl fmt::Display for ConfigFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={:?}: {}", self.variable, self.value, self.rule)
    }
}

/// All variables that are wrong, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFaults(pub Vec<ConfigFault>);

impl fmt::Display for ConfigFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration has {} fault(s):", self.0.len())?;
        self.0.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

impl std::error::Error for ConfigFaults {}

/// Reads variables and collects what is wrong with them.
pub struct Reader<'a> {
    source: &'a dyn Fn(&str) -> Option<String>,
    listed: fn(&str) -> bool,
    faults: Vec<ConfigFault>,
}

impl fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("faults", &self.faults).finish_non_exhaustive()
    }
}

impl<'a> Reader<'a> {
    /// Reads variables from `source`. `listed` is whether the daemon's table of variables has a name: none is read that is
    /// not documented.
    #[must_use]
    pub fn new(source: &'a dyn Fn(&str) -> Option<String>, listed: fn(&str) -> bool) -> Self {
        Self { source, listed, faults: Vec::new() }
    }

    /// Notes a fault.
    pub fn fault(&mut self, variable: &'static str, value: &str, rule: impl Into<String>) {
        let rule = cut(&rule.into(), RULE_CHARACTERS);
        self.faults.push(ConfigFault { variable, value: cut(value, VALUE_CHARACTERS), rule });
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// Everything that was wrong.
    pub fn finish(mut self) -> Result<(), ConfigFaults> {
        if self.faults.is_empty() {
            return Ok(());
        }
        self.faults.sort_by_key(|fault| fault.variable);
        Err(ConfigFaults(self.faults))
    }

    /// The value without white space around it. An empty one is unset, as Kubernetes' manifests have it.
    #[must_use]
    pub fn text(&self, name: &'static str) -> Option<String> {
        debug_assert!((self.listed)(name), "{name} is not in the table");
        (self.source)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    /// The value as `read` understands it; an error of it is the rule that the value breaks.
    pub fn parsed<T>(&mut self, name: &'static str, default: T, read: impl Fn(&str) -> Result<T, String>) -> T {
        let Some(value) = self.text(name) else { return default };
        match read(&value) {
            Ok(parsed) => parsed,
            Err(rule) => {
                self.fault(name, &value, rule);
                default
            }
        }
    }

    /// What Go's `strconv.ParseBool` takes, because the VPC CNI's manifests are written for it.
    pub fn boolean(&mut self, name: &'static str, default: bool) -> bool {
        self.parsed(name, default, |value| match value {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
            _ => Err("it must be true or false".to_owned()),
        })
    }

    /// A whole number of a range.
    pub fn number(&mut self, name: &'static str, default: u32, range: RangeInclusive<u32>) -> u32 {
        self.parsed(name, default, |value| {
            let number = value.parse().ok().filter(|number| range.contains(number));
            number.ok_or_else(|| format!("it must be a whole number from {} to {}", range.start(), range.end()))
        })
    }

    /// An address and a port.
    pub fn address(&mut self, name: &'static str, default: SocketAddr) -> SocketAddr {
        self.parsed(name, default, |value| {
            value.parse().map_err(|_error| format!("it must be ADDRESS:PORT, e.g. {default}"))
        })
    }

    /// The URL of a server. A host alone is asked by HTTPS, as by the VPC CNI.
    pub fn endpoint(&mut self, name: &'static str) -> Option<String> {
        self.parsed(name, None, |value| {
            let url = if value.contains("://") { value.to_owned() } else { format!("https://{value}") };
            let read = url.parse::<Uri>().ok().filter(is_endpoint);
            let rule = "it must be the URL of a server, https://HOST or https://HOST:PORT";
            read.map(|url| Some(url.to_string())).ok_or_else(|| rule.to_owned())
        })
    }

    /// An absolute path.
    pub fn path(&mut self, name: &'static str, default: Option<PathBuf>) -> Option<PathBuf> {
        self.parsed(name, default, |value| {
            let path = Some(PathBuf::from(value)).filter(|path| path.is_absolute());
            path.map(Some).ok_or_else(|| "it must be an absolute path".to_owned())
        })
    }

    /// `SLUICE_LOG_FORMAT`.
    pub fn log_format(&mut self) -> LogFormat {
        self.parsed("SLUICE_LOG_FORMAT", LogFormat::Text, |value| match value {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err("it must be text or json".to_owned()),
        })
    }
}

/// Whether a URL is that of a server: no name and no password, and a port that there is.
fn is_endpoint(url: &Uri) -> bool {
    let is_whole = url.authority().is_some_and(|authority| {
        let (text, host) = (authority.as_str(), authority.host());
        !host.is_empty() && !text.contains('@') && (text == host || authority.port_u16().is_some())
    });
    is_whole && matches!(url.scheme_str(), Some("http" | "https")) && url.query().is_none()
}

/// At most this many characters of a text, the last of them an ellipsis where there are more.
fn cut(text: &str, characters: usize) -> String {
    if text.chars().nth(characters).is_none() {
        return text.to_owned();
    }
    text.chars().take(characters.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_the_url_of_a_server_and_nothing_else() {
        let read = |value: &str| {
            let source = |_: &str| Some(value.to_owned());
            let mut from = Reader::new(&source, |_| true);
            let url = from.endpoint("CLUSTER_ENDPOINT");
            from.finish().map(|()| url.unwrap_or_default()).map_err(|faults| faults.to_string())
        };
        for (value, url) in [
            ("https://abc.gr7.us-west-2.eks.amazonaws.com", "https://abc.gr7.us-west-2.eks.amazonaws.com/"),
            ("abc.gr7.us-west-2.eks.amazonaws.com", "https://abc.gr7.us-west-2.eks.amazonaws.com/"),
            ("10.0.0.10:6443", "https://10.0.0.10:6443/"),
            ("https://[2001:db8::1]:6443/k8s/c", "https://[2001:db8::1]:6443/k8s/c"),
            ("http://127.0.0.1:8001", "http://127.0.0.1:8001/"),
            (" ", ""),
        ] {
            assert_eq!(read(value).as_deref(), Ok(url));
        }
        for value in [
            "https://",
            "ftp://api",
            "api server",
            "https://me@api",
            "https://me:x@api:1",
            "https://api:70000",
            "api?x=1",
        ] {
            let faults = read(value).unwrap_err();
            assert!(faults.contains("CLUSTER_ENDPOINT") && faults.contains("https://HOST"), "{value}: {faults}");
        }
    }
}
