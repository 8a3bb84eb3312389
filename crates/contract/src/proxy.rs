//! The wire between policyd and the proxy: what the decisions mean that the gates redirect flows by.
//!
//! ```text
//! proxy                                     policyd (listens)
//!   | Hello {protocol, software}              |
//!   | --------------------------------------> |
//!   |              Hello {protocol, software} |
//!   |         Update {version, full} ...      |   everything, in as many frames as it takes
//!   | <-------------------------------------- |
//!   | Ack {version}                           |   all of a version is in force
//!   | --------------------------------------> |
//!   |              Update {version} ...       |   what has changed
//!   | <-------------------------------------- |
//!   | Resolved [..]                           |   a name has these addresses
//!   | --------------------------------------> |
//!   |                             Known {..}  |   the gates know them
//!   | <-------------------------------------- |
//!   | Records {..}                            |   what became of requests
//!   | --------------------------------------> |
//! ```
//!
//! The stream lives as long as both sides do. Frames are those of [`rpc`](crate::rpc), with a limit of their own. A side that
//! understands no version of the other's closes. Decisions are numbered as in the kernel's maps; a number never means
//! something else while a gate may still use it. policyd tells a decision before the kernel takes it, and forgets it after the
//! kernel has.

pub mod record;

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::rpc::{Hello, ProtocolRange};

/// What this build speaks.
pub const PROTOCOL: ProtocolRange = ProtocolRange { min: 1, max: 2 };

/// From this version on a proxy tells [`FromProxy::Records`].
pub const WITH_RECORDS: u32 = 2;

/// The longest frame, in bytes of JSON. One object's application rules fit in it: the API server takes 3 MiB at most.
pub const FRAME_LIMIT: usize = 16 << 20;

/// Bytes of texts after which an update goes on in another frame.
const PART: usize = 256 << 10;

/// Most bytes that a snapshot is kept in on disk.
pub const SNAPSHOT_LIMIT: u64 = 256 << 20;

/// The greeting of `software` on this wire.
#[must_use]
pub fn hello(software: &str) -> Hello {
    Hello { protocol: PROTOCOL, ..Hello::of(software) }
}

/// What policyd says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromPolicyd {
    /// What decisions mean.
    Update(Box<Update>),
    /// What has become of these [`Resolution`]s.
    Known {
        /// The gates know their addresses.
        kept: Vec<u64>,
        /// There was no room for them, or no rule means their names any more.
        dropped: Vec<u64>,
    },
}

/// What the proxy says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromProxy {
    /// This version is in force, and so is all that came before it.
    Ack {
        /// [`Update::version`].
        version: u64,
    },
    /// Names have resolved to addresses that gates should know before the pods do.
    Resolved(Vec<Resolution>),
    /// What became of requests. Only where both sides speak [`WITH_RECORDS`].
    Records(record::Records),
}

/// A name has resolved to addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolution {
    /// Comes back in [`FromPolicyd::Known`].
    pub id: u64,
    /// Namespace of the pod that asked.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// The name, in lower case and without the dot at its end.
    pub name: String,
    /// The addresses.
    pub addresses: Vec<IpAddr>,
    /// For how long, in seconds.
    pub ttl: u32,
}

/// A change of what the proxy knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Update {
    /// Grows from one to the next of one policyd. A connection begins with everything, whatever the proxy had before.
    pub version: u64,
    /// Everything: what was known before is forgotten. In the first frame of a version only.
    pub full: bool,
    /// More frames of this version follow; what this one says is not in force before they have come.
    pub more: bool,
    /// Lists of application rules; none: forgotten.
    pub lists: BTreeMap<u32, Option<List>>,
    /// Decisions; none: forgotten.
    pub decisions: BTreeMap<u32, Option<Decision>>,
    /// The pods at the gates, by their endpoints' numbers in the kernel's maps; none: forgotten.
    pub endpoints: BTreeMap<u32, Option<Pod>>,
    /// All that is to be known of names, where it has changed.
    pub names: Option<Names>,
}

/// Which names policyd has to be told of, and what addresses become by them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Names {
    /// The patterns that rules in force have for names.
    pub patterns: Vec<String>,
    /// How long an address is kept at least, whatever its record says, in seconds.
    pub least: u32,
    /// The identities that addresses of names have.
    pub classes: Vec<NameClass>,
}

/// What an address becomes by its names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameClass {
    /// The identity that it has without a name, in the kernel's maps.
    pub base: u32,
    /// The patterns that mean its names.
    pub patterns: Vec<String>,
    /// The identity that it has then.
    pub identity: u32,
}

/// Everything that the proxy is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    /// The version of the last update in it.
    pub version: u64,
    /// Lists of application rules.
    pub lists: BTreeMap<u32, List>,
    /// Decisions that redirect.
    pub decisions: BTreeMap<u32, Decision>,
    /// The pods at the gates.
    pub endpoints: BTreeMap<u32, Pod>,
    /// What is to be known of names.
    pub names: Names,
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Pod {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// What becomes of the requests of flows that a gate redirects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// What is in force.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// What would be if the policies that are dry runs were in force, where that differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<Verdict>,
}

/// What becomes of requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Numbers of the lists; a request passes if one of them has it, and the first that does is named.
    #[serde(default)]
    pub lists: Vec<u32>,
    /// What is to be read to be shown, whatever the lists are about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub see: Option<Protocol>,
    /// Whether what no list has passes.
    pub passes: bool,
    /// Why it does or does not, in words.
    pub reason: String,
}

/// An application protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// HTTP.
    Http,
    /// DNS.
    Dns,
    /// TLS, of which the server name is read.
    Tls,
}

/// The application rules of one element of a rule's `toPorts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// The element, as people write it: `CiliumNetworkPolicy shop/db, ingress[0].toPorts[1]`.
    pub rule: String,
    /// The rules.
    pub application: Application,
}

/// Rules of an application protocol, as their author wrote them. One of a list has to match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Application {
    /// `rules.http`.
    Http(Vec<HttpRule>),
    /// `rules.dns`: patterns of names that may be asked for.
    Dns(Vec<String>),
    /// `serverNames`: patterns of TLS server names.
    ServerNames(Vec<String>),
}

/// An element of `rules.http`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HttpRule {
    /// Regular expression for the whole path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Regular expression for the whole method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Regular expression for the whole host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// `headers`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<String>,
    /// `headerMatches`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub header_matches: Vec<HeaderMatch>,
}

/// An element of `headerMatches`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderMatch {
    /// Name of the header.
    pub name: String,
    /// Its value; without one, presence is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// What to do if it does not match.
    #[serde(default)]
    pub mismatch: Mismatch,
}

/// `mismatch` of a header match.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mismatch {
    /// The rule does not match.
    #[default]
    Refuse,
    /// `LOG`.
    Log,
    /// `ADD`.
    Add,
    /// `DELETE`.
    Delete,
    /// `REPLACE`.
    Replace,
}

impl Update {
    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.is_of_endpoints() && self.endpoints.is_empty()
    }

    /// Whether it changes what is known of gates, and nothing else.
    #[must_use]
    pub fn is_of_endpoints(&self) -> bool {
        !self.full && self.lists.is_empty() && self.decisions.is_empty() && self.names.is_none()
    }

    /// What later changes make of it, as if both were one. It has the later version.
    pub fn extend(&mut self, later: Self) {
        if later.full {
            *self = later;
            return;
        }
        self.version = later.version;
        self.lists.extend(later.lists);
        self.decisions.extend(later.decisions);
        self.endpoints.extend(later.endpoints);
        if later.names.is_some() {
            self.names = later.names;
        }
    }

    /// The same in frames of bounded size, in the order in which they are sent. Only what is longer than a frame by itself is
    /// in one that is too long.
    #[must_use]
    pub fn parts(self) -> Vec<Self> {
        let Self { version, full, more: _, lists, decisions, endpoints, names } = self;
        let mut parts = Parts { all: vec![Self { version, full, more: true, ..Self::default() }], room: PART };
        for (number, list) in lists {
            let size = list.as_ref().map_or(0, List::size);
            parts.with(size, |part| part.lists.insert(number, list));
        }
        for (number, decision) in decisions {
            let size = decision.as_ref().map_or(0, Decision::size);
            parts.with(size, |part| part.decisions.insert(number, decision));
        }
        for (number, pod) in endpoints {
            let size = pod.as_ref().map_or(0, |pod| pod.namespace.len() + pod.name.len());
            parts.with(size, |part| part.endpoints.insert(number, pod));
        }
        if let Some(names) = names {
            let size = |patterns: &[String]| patterns.iter().map(|pattern| pattern.len() + 4).sum::<usize>();
            let classes: usize = names.classes.iter().map(|class| size(&class.patterns) + 64).sum();
            parts.with(classes + size(&names.patterns), |part| part.names.replace(names));
        }
        if let Some(last) = parts.all.last_mut() {
            last.more = false;
        }
        parts.all
    }
}

/// An update that is being taken apart.
struct Parts {
    all: Vec<Update>,
    room: usize,
}

impl Parts {
    fn with<T>(&mut self, size: usize, put: impl FnOnce(&mut Update) -> T) {
        // Punctuation and numbers.
        let size = size + 32;
        let version = self.all.first().map_or(0, |part| part.version);
        if size > self.room {
            self.all.push(Update { version, more: true, ..Update::default() });
            self.room = PART;
        }
        self.room = self.room.saturating_sub(size);
        if let Some(part) = self.all.last_mut() {
            put(part);
        }
    }
}

impl Snapshot {
    /// Takes a whole update in.
    pub fn apply(&mut self, update: Update) {
        fn change<T>(all: &mut BTreeMap<u32, T>, changes: BTreeMap<u32, Option<T>>) {
            for (number, value) in changes {
                match value {
                    Some(value) => all.insert(number, value),
                    None => all.remove(&number),
                };
            }
        }
        if update.full {
            *self = Self::default();
        }
        self.version = update.version;
        change(&mut self.lists, update.lists);
        change(&mut self.decisions, update.decisions);
        change(&mut self.endpoints, update.endpoints);
        if let Some(names) = update.names {
            self.names = names;
        }
    }

    /// All of it, for somebody who knows nothing.
    #[must_use]
    pub fn full(&self) -> Update {
        fn some<T: Clone>(all: &BTreeMap<u32, T>) -> BTreeMap<u32, Option<T>> {
            all.iter().map(|(number, value)| (*number, Some(value.clone()))).collect()
        }
        Update {
            version: self.version,
            full: true,
            more: false,
            lists: some(&self.lists),
            decisions: some(&self.decisions),
            endpoints: some(&self.endpoints),
            names: Some(self.names.clone()),
        }
    }
}

impl List {
    /// Bytes of its texts, about.
    fn size(&self) -> usize {
        let texts = |texts: &[String]| texts.iter().map(|text| text.len() + 4).sum::<usize>();
        let rules = match &self.application {
            Application::Http(rules) => rules
                .iter()
                .map(|rule| {
                    let length = |text: &Option<String>| text.as_ref().map_or(0, |text| text.len() + 12);
                    let matches = rule.header_matches.iter();
                    length(&rule.path)
                        + length(&rule.method)
                        + length(&rule.host)
                        + texts(&rule.headers)
                        + matches.map(|one| one.name.len() + length(&one.value) + 48).sum::<usize>()
                })
                .sum(),
            Application::Dns(patterns) | Application::ServerNames(patterns) => texts(patterns),
        };
        rules + self.rule.len()
    }
}

impl Decision {
    /// Bytes of its texts, about.
    fn size(&self) -> usize {
        let of = |verdict: &Verdict| verdict.reason.len() + 11 * verdict.lists.len() + 32;
        of(&self.verdict) + self.audit.as_ref().map_or(0, of)
    }
}

#[cfg(test)]
mod tests;
