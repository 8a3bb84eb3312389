//! Rules for HTTP requests.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::index::Key;
use super::pattern::{Budget, Case, Pattern};
use super::request::{Request, is_token};

/// Most headers and header matches of a rule together.
const MAX_HEADERS: usize = 64;

/// An element of `rules.http`, as its author wrote it.
///
/// Empty texts are absent ones, as in Cilium's types. All conditions have to hold; a rule without any matches every request.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HttpRuleSpec {
    /// Regular expression for the whole path, its query string included.
    pub path: Option<String>,
    /// Regular expression for the whole method.
    pub method: Option<String>,
    /// Regular expression for the whole host, its port included where the client gave one. Capitals are small letters.
    pub host: Option<String>,
    /// `Name` for presence, `Name: value` (or `Name value`) for exactly this value.
    pub headers: Vec<String>,
    /// `headerMatches`.
    pub header_matches: Vec<HeaderMatchSpec>,
}

/// An element of `headerMatches`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HeaderMatchSpec {
    /// Name of the header.
    pub name: String,
    /// Its value; without one, presence is asked for.
    pub value: Option<String>,
    /// What to do if it does not match.
    pub mismatch: MismatchAction,
}

/// `mismatch` of a header match.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MismatchAction {
    /// No action is given: the rule does not match.
    #[default]
    Refuse,
    /// `LOG`: the rule matches, and the record of the request says that the header did not.
    Log,
    /// `ADD`: the header is added.
    Add,
    /// `DELETE`: all headers of that name are removed.
    Delete,
    /// `REPLACE`: the header is set, and others of that name are removed.
    Replace,
}

/// Why a rule cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct InvalidHttpRule {
    /// The field, e.g. `path` or `headerMatches[1].name`.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

/// A rule of `rules.http`, ready to match. Rules are equal if their authors wrote the same.
#[derive(Debug, Clone)]
pub struct HttpRule {
    spec: HttpRuleSpec,
    path: Option<Pattern>,
    method: Option<Pattern>,
    host: Option<Pattern>,
    headers: Vec<(String, Option<String>)>,
}

/// What a rule says of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome<'r> {
    /// It passes, after these changes.
    Pass(Pass<'r>),
    /// The rule does not match it.
    No,
}

/// What comes with a request that passes: the header matches that did not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pass<'r> {
    matches: &'r [HeaderMatchSpec],
    mismatched: u64,
}

/// A change of a request's headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edit<'r> {
    /// One more field of this name.
    Add {
        /// Name.
        name: &'r str,
        /// Value.
        value: &'r str,
    },
    /// No field of this name.
    Delete {
        /// Name.
        name: &'r str,
    },
    /// This field, in place of all of its name.
    Replace {
        /// Name.
        name: &'r str,
        /// Value.
        value: &'r str,
    },
}

impl<'r> Pass<'r> {
    /// The header matches that did not hold, in the rule's order: what a record of the request names.
    pub fn mismatched(&self) -> impl Iterator<Item = &'r HeaderMatchSpec> + use<'r> {
        let bits = self.mismatched;
        self.matches.iter().enumerate().filter(move |(index, _)| bits >> index & 1 == 1).map(|(_, spec)| spec)
    }

    /// Whether the record of the request has to say that headers did not match.
    #[must_use]
    pub const fn log(&self) -> bool {
        self.mismatched != 0
    }

    /// The changes to make before the request is forwarded, in this order.
    pub fn edits(&self) -> impl Iterator<Item = Edit<'r>> + use<'r> {
        self.mismatched().filter_map(|spec| {
            let name = spec.name.as_str();
            let value = spec.value.as_deref().unwrap_or_default();
            match spec.mismatch {
                MismatchAction::Refuse | MismatchAction::Log => None,
                MismatchAction::Add => Some(Edit::Add { name, value }),
                MismatchAction::Delete => Some(Edit::Delete { name }),
                MismatchAction::Replace => Some(Edit::Replace { name, value }),
            }
        })
    }
}

impl HttpRule {
    /// Compiles a rule.
    ///
    /// # Errors
    /// An expression does not compile or would need too much memory, a header name is no token, a header value could not
    /// stand in a message, or an action needs a value that is not there.
    pub fn new(spec: HttpRuleSpec) -> Result<Self, InvalidHttpRule> {
        Self::within(spec, &mut Budget::default())
    }

    /// Compiles one rule of several, whose expressions have a budget together.
    ///
    /// # Errors
    /// As [`Self::new`]; or the budget is used up.
    pub fn within(spec: HttpRuleSpec, budget: &mut Budget) -> Result<Self, InvalidHttpRule> {
        let wrong = |field: String, reason: String| Err(InvalidHttpRule { field, reason });
        let mut pattern = |field: &str, value: &Option<String>, case| match value.as_deref() {
            None | Some("") => Ok(None),
            Some(expression) => Pattern::within(expression, case, budget)
                .map(Some)
                .map_err(|reason| InvalidHttpRule { field: field.to_owned(), reason }),
        };
        let path = pattern("path", &spec.path, Case::Exact)?;
        let method = pattern("method", &spec.method, Case::Exact)?;
        let host = pattern("host", &spec.host, Case::Ignored)?;
        if spec.headers.len() + spec.header_matches.len() > MAX_HEADERS {
            return wrong("headers".into(), format!("more than {MAX_HEADERS} headers and headerMatches in one rule"));
        }
        let mut headers = Vec::with_capacity(spec.headers.len());
        for (index, text) in spec.headers.iter().enumerate() {
            match header(text) {
                Ok(header) => headers.push(header),
                Err(reason) => return wrong(format!("headers[{index}]"), reason.to_owned()),
            }
        }
        for (index, header) in spec.header_matches.iter().enumerate() {
            let field = |name: &str| format!("headerMatches[{index}].{name}");
            if !is_token(header.name.as_bytes()) {
                return wrong(field("name"), NOT_A_NAME.to_owned());
            }
            let value = header.value.as_deref().unwrap_or_default();
            if !is_value(value) {
                return wrong(field("value"), NOT_A_VALUE.to_owned());
            }
            if changes_meaning(&header.name) && !matches!(header.mismatch, MismatchAction::Refuse | MismatchAction::Log)
            {
                return wrong(field("mismatch"), "this header says where the message goes or ends".to_owned());
            }
            if value.is_empty() && matches!(header.mismatch, MismatchAction::Add | MismatchAction::Replace) {
                return wrong(field("value"), "ADD and REPLACE need a value".to_owned());
            }
        }
        Ok(Self { spec, path, method, host, headers })
    }

    /// What the author wrote.
    #[must_use]
    pub const fn spec(&self) -> &HttpRuleSpec {
        &self.spec
    }

    /// What it asks of a request's path and host.
    pub(super) fn keys(&self) -> (Key<'_>, Key<'_>) {
        let [path, host] = [&self.path, &self.host].map(|pattern| pattern.as_ref().map_or(Key::Head(""), Pattern::key));
        (path, host)
    }

    /// What the rule says of a request.
    #[must_use]
    pub fn matches(&self, request: &Request<'_>) -> Outcome<'_> {
        let holds = |pattern: &Option<Pattern>, text: Option<&str>| match (pattern, text) {
            (None, _) => true,
            (Some(pattern), Some(text)) => pattern.matches(text),
            (Some(_), None) => false,
        };
        if !holds(&self.method, Some(request.method()))
            || !holds(&self.path, request.path())
            || !holds(&self.host, request.authority())
        {
            return Outcome::No;
        }
        if !self.headers.iter().all(|(name, value)| has(request, name, value.as_deref())) {
            return Outcome::No;
        }
        let mut mismatched = 0;
        for (index, header) in self.spec.header_matches.iter().enumerate() {
            if has(request, &header.name, header.value.as_deref().filter(|value| !value.is_empty())) {
                continue;
            }
            match header.mismatch {
                MismatchAction::Refuse => return Outcome::No,
                // Nothing to delete is nothing to tell, as in Cilium's proxy.
                MismatchAction::Delete if request.values(&header.name).next().is_none() => {}
                _ => mismatched |= 1 << index,
            }
        }
        Outcome::Pass(Pass { matches: &self.spec.header_matches, mismatched })
    }
}

/// Whether a request has a header: any of that name, or exactly one and with this value. Several fields of one name are
/// never "exactly" the value of one of them: each side would read another one (Envoy's CVE-2020-25017).
fn has(request: &Request<'_>, name: &str, value: Option<&str>) -> bool {
    let mut values = request.values(name);
    match (values.next(), value) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(found), Some(value)) => found == value.as_bytes() && values.next().is_none(),
    }
}

const NOT_A_NAME: &str = "not the name of a header: letters, digits and !#$%&'*+-.^_`|~ (RFC 9110, 5.1)";
const NOT_A_VALUE: &str = "not the value of a header: no control characters, no space at either end (RFC 9110, 5.5)";

/// Whether a change of this header would make another request of one that was matched.
fn changes_meaning(name: &str) -> bool {
    const NAMES: [&str; 10] = [
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    NAMES.iter().any(|one| one.eq_ignore_ascii_case(name))
}

/// Reads an element of `headers`.
fn header(text: &str) -> Result<(String, Option<String>), &'static str> {
    let (name, value) = match text.split_once([':', ' ']) {
        None => (text, None),
        Some((name, value)) => (name, Some(value.trim_matches([' ', '\t']))),
    };
    if !is_token(name.as_bytes()) {
        return Err(NOT_A_NAME);
    }
    match value {
        Some("") => Err("no value; leave the colon out to ask for presence"),
        Some(value) if !is_value(value) => Err(NOT_A_VALUE),
        value => Ok((name.to_owned(), value.map(str::to_owned))),
    }
}

/// Whether a text can be the value of a field, as it is compared: without white space around it.
fn is_value(text: &str) -> bool {
    text.trim_matches([' ', '\t']) == text && !text.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t')
}

impl PartialEq for HttpRule {
    fn eq(&self, other: &Self) -> bool {
        self.spec == other.spec
    }
}

impl Eq for HttpRule {}

impl Hash for HttpRule {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.spec.hash(state);
    }
}

/// Rules of which one has to match: all those of a flow, in the order in which they are asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HttpRules(Vec<Arc<HttpRule>>);

/// The first rule that matches a request, and those after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpMatch<'r> {
    /// Which one of its list.
    pub index: usize,
    /// What comes with it.
    pub pass: Pass<'r>,
    later: &'r [Arc<HttpRule>],
}

impl<'r> HttpMatch<'r> {
    /// What comes with the request by this rule, and then by every later rule that matches it too: as in Cilium's proxy,
    /// changes of headers are made by all rules that match, so that they do not depend on the order of the rules. All rules
    /// see the request as it came. `request` is the one that matched.
    pub fn passes<'q>(&self, request: &'q Request<'q>) -> impl Iterator<Item = Pass<'r>> + use<'r, 'q> {
        let later = self.later.iter().filter(|rule| !rule.spec.header_matches.is_empty());
        std::iter::once(self.pass).chain(later.filter_map(|rule| match rule.matches(request) {
            Outcome::Pass(pass) => Some(pass),
            Outcome::No => None,
        }))
    }
}

impl HttpRules {
    /// The first rule that matches, if one does.
    #[must_use]
    pub fn first_match(&self, request: &Request<'_>) -> Option<HttpMatch<'_>> {
        first_match(&self.0, request)
    }

    /// The rules.
    #[must_use]
    pub fn rules(&self) -> &[Arc<HttpRule>] {
        &self.0
    }
}

impl FromIterator<Arc<HttpRule>> for HttpRules {
    fn from_iter<I: IntoIterator<Item = Arc<HttpRule>>>(rules: I) -> Self {
        Self(rules.into_iter().collect())
    }
}

/// The first of `rules` that matches, if one does.
pub(in crate::l7) fn first_match<'r>(rules: &'r [Arc<HttpRule>], request: &Request<'_>) -> Option<HttpMatch<'r>> {
    rules.iter().enumerate().find_map(|(index, rule)| match rule.matches(request) {
        Outcome::Pass(pass) => Some(HttpMatch { index, pass, later: rules.get(index + 1..).unwrap_or_default() }),
        Outcome::No => None,
    })
}

#[cfg(test)]
mod tests;
