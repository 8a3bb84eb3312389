//! Colours on a terminal.

/// Escape sequences, or nothing where colours are not wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paint {
    /// Whether the terminal takes colours.
    pub colours: bool,
}

impl Paint {
    fn with(self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A heading.
    #[must_use]
    pub(crate) fn heading(self, text: &str) -> String {
        self.with("1", text)
    }

    /// What is well.
    #[must_use]
    pub(crate) fn good(self, text: &str) -> String {
        self.with("32", text)
    }

    /// What is not.
    #[must_use]
    pub(crate) fn bad(self, text: &str) -> String {
        self.with("31;1", text)
    }

    /// What matters less.
    #[must_use]
    pub(crate) fn dim(self, text: &str) -> String {
        self.with("2", text)
    }
}
