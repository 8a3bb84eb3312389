//! HTTP requests in the one form in which they are matched and forwarded, and the rules for them.

mod authority;
mod class;
mod index;
mod path;
mod pattern;
mod request;
mod rule;

pub use index::Index;
pub use pattern::Budget;
pub use request::{BadRequest, Field, RawRequest, Request, Unjudged, Version};
pub(in crate::l7) use rule::first_match;
pub use rule::{
    Edit, HeaderMatchSpec, HttpMatch, HttpRule, HttpRuleSpec, HttpRules, InvalidHttpRule, MismatchAction, Outcome, Pass,
};
