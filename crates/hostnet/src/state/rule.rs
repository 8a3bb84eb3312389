//! Rules that choose a route table.

use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sluice_contract::id::IfName;

use super::{Family, family_of};

/// A mark and the bits of it that count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mark {
    /// The value that the masked mark must have.
    pub value: u32,
    /// The bits that are looked at.
    pub mask: u32,
}

/// A rule that sends packets to a route table. Rules with anything that these fields cannot say are not represented
/// and never touched.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Rule {
    /// Which packets it is for.
    pub family: Family,
    /// Rules are tried from the lowest.
    pub priority: u32,
    /// The source that it matches, host bits cleared; none matches all.
    pub from: Option<IpNet>,
    /// The destination that it matches, host bits cleared; none matches all.
    pub to: Option<IpNet>,
    /// The packet mark that it matches.
    pub mark: Option<Mark>,
    /// The interface by which the packet came, `lo` for packets of this host.
    pub iif: Option<IfName>,
    /// The table that is looked up.
    pub table: u32,
}

impl Rule {
    /// A rule that matches every packet of a family.
    #[must_use]
    pub const fn all(family: Family, priority: u32, table: u32) -> Self {
        Self { family, priority, from: None, to: None, mark: None, iif: None, table }
    }

    /// `priority PRIORITY from SOURCE lookup TABLE`.
    #[must_use]
    pub fn from(priority: u32, source: IpNet, table: u32) -> Self {
        Self { from: Some(source.trunc()), ..Self::all(family_of(&source), priority, table) }
    }

    /// `priority PRIORITY to DESTINATION lookup TABLE`.
    #[must_use]
    pub fn to(priority: u32, destination: IpNet, table: u32) -> Self {
        Self { to: Some(destination.trunc()), ..Self::all(family_of(&destination), priority, table) }
    }

    /// `priority PRIORITY fwmark VALUE/MASK lookup TABLE`.
    #[must_use]
    pub fn mark(family: Family, priority: u32, mark: Mark, table: u32) -> Self {
        Self { mark: Some(mark), ..Self::all(family, priority, table) }
    }

    /// `priority PRIORITY iif DEV lookup TABLE`.
    #[must_use]
    pub fn iif(family: Family, priority: u32, dev: IfName, table: u32) -> Self {
        Self { iif: Some(dev), ..Self::all(family, priority, table) }
    }

    /// The rule in the form in which the kernel would report it: host bits cleared, and nothing said where all is
    /// matched.
    #[must_use]
    pub fn canonical(mut self) -> Self {
        let shorten = |net: Option<IpNet>| net.map(|net| net.trunc()).filter(|net| net.prefix_len() > 0);
        self.from = shorten(self.from);
        self.to = shorten(self.to);
        self.mark = self.mark.filter(|mark| mark.mask != 0);
        self
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: from ", self.priority)?;
        match self.from {
            Some(from) => write!(f, "{from}")?,
            None => f.write_str("all")?,
        }
        if let Some(to) = self.to {
            write!(f, " to {to}")?;
        }
        if let Some(mark) = self.mark {
            write!(f, " fwmark {:#x}/{:#x}", mark.value, mark.mask)?;
        }
        if let Some(iif) = &self.iif {
            write!(f, " iif {iif}")?;
        }
        write!(f, " lookup {}", self.table)
    }
}
