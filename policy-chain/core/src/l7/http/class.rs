//! Classes of characters, by table: every octet of a request is looked up in one.

/// A class of ASCII characters.
pub(super) struct Class([bool; 256]);

impl Class {
    /// Letters, digits, and these.
    pub(super) const fn of(others: &[u8]) -> Self {
        let mut table = [false; 256];
        let mut rest: &mut [bool] = &mut table;
        let mut octet: u8 = 0;
        while let [first, others_of_table @ ..] = rest {
            *first = octet.is_ascii_alphanumeric() || contains(others, octet);
            octet = octet.wrapping_add(1);
            rest = others_of_table;
        }
        Self(table)
    }

    /// Whether an octet is one of them.
    pub(super) fn has(&self, octet: u8) -> bool {
        self.0.get(usize::from(octet)).copied().unwrap_or(false)
    }
}

const fn contains(mut octets: &[u8], octet: u8) -> bool {
    while let [first, rest @ ..] = octets {
        if *first == octet {
            return true;
        }
        octets = rest;
    }
    false
}
