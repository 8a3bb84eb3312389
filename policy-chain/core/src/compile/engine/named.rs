//! What the engine tells those who learn names: which names rules mean, and what addresses become by them.

use std::collections::BTreeSet;

use super::Engine;
use super::atoms::plain;
use crate::compile::image::Identity;
use crate::compile::predicate::Predicate;
use crate::l7::dns::NamePattern;

/// What an address becomes by its names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NameClass {
    /// The identity that it has without a name.
    pub base: Identity,
    /// The patterns that mean its names, sorted.
    pub patterns: Vec<NamePattern>,
    /// The identity that it has then.
    pub identity: Identity,
}

impl Engine {
    /// The patterns that the rules in force have for names, sorted.
    #[must_use]
    pub fn name_patterns(&self) -> Vec<NamePattern> {
        let mut patterns: Vec<NamePattern> =
            self.atoms.about_names.iter().filter_map(|atom| self.pattern(*atom).cloned()).collect();
        patterns.sort_unstable();
        patterns
    }

    /// What the addresses of names have become, as of the last commit.
    #[must_use]
    pub fn name_classes(&self) -> BTreeSet<NameClass> {
        let image = self.image();
        let of = |(prefix, identity): (ipnet::IpNet, Identity)| {
            let address = prefix.addr();
            let class = self.classes.class(self.book.class_of_name(address, &self.classes)?)?;
            let mut patterns: Vec<NamePattern> =
                class.key.iter().filter_map(|atom| self.pattern(plain(*atom)).cloned()).collect();
            patterns.sort_unstable();
            Some(NameClass { base: image.ipcache.longest(address)?, patterns, identity })
        };
        image.names.iter().filter_map(of).collect()
    }

    fn pattern(&self, atom: super::Atom) -> Option<&NamePattern> {
        match self.atoms.predicate(atom)? {
            Predicate::Name(pattern) => Some(pattern),
            _ => None,
        }
    }
}
