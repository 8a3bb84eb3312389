//! Writing XML as EC2 does: elements and text, no attributes but the namespace.

use std::fmt::Display;

/// XML in the making.
#[derive(Debug, Default)]
pub(super) struct Xml {
    text: String,
}

impl Xml {
    /// The document `<name xmlns="namespace">…</name>`.
    pub(super) fn document(name: &str, namespace: Option<&str>, content: impl FnOnce(&mut Self)) -> String {
        let mut xml = Self { text: r#"<?xml version="1.0" encoding="UTF-8"?>"#.to_owned() };
        xml.text.push('\n');
        match namespace {
            Some(namespace) => xml.push(&format!("<{name} xmlns=\"{namespace}\">")),
            None => xml.push(&format!("<{name}>")),
        }
        content(&mut xml);
        xml.push(&format!("</{name}>"));
        xml.text
    }

    /// `<name>…</name>`.
    pub(super) fn element(&mut self, name: &str, content: impl FnOnce(&mut Self)) -> &mut Self {
        self.push(&format!("<{name}>"));
        content(self);
        self.push(&format!("</{name}>"));
        self
    }

    /// `<name>value</name>`, escaped.
    pub(super) fn text(&mut self, name: &str, value: impl Display) -> &mut Self {
        self.element(name, |xml| xml.escaped(&value.to_string()))
    }

    /// The same, where there is a value.
    pub(super) fn maybe(&mut self, name: &str, value: Option<impl Display>) -> &mut Self {
        if let Some(value) = value {
            self.text(name, value);
        }
        self
    }

    /// `<name><item>…</item>…</name>`.
    pub(super) fn set<T>(
        &mut self,
        name: &str,
        items: impl IntoIterator<Item = T>,
        mut each: impl FnMut(&mut Self, T),
    ) -> &mut Self {
        self.element(name, |xml| {
            for item in items {
                xml.element("item", |xml| each(xml, item));
            }
        })
    }

    /// `<name><item>value</item>…</name>`.
    pub(super) fn values<T: Display>(&mut self, name: &str, items: impl IntoIterator<Item = T>) -> &mut Self {
        self.element(name, |xml| {
            for item in items {
                xml.text("item", item);
            }
        })
    }

    fn push(&mut self, raw: &str) {
        self.text.push_str(raw);
    }

    /// Text; characters that XML 1.0 has no way to write become U+FFFD.
    fn escaped(&mut self, value: &str) {
        for character in value.chars() {
            match character {
                '&' => self.push("&amp;"),
                '<' => self.push("&lt;"),
                '>' => self.push("&gt;"),
                '"' => self.push("&quot;"),
                '\'' => self.push("&apos;"),
                '\t' | '\n' => self.text.push(character),
                '\r' => self.push("&#13;"),
                '\u{0}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => self.text.push('\u{fffd}'),
                other => self.text.push(other),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_comes_is_escaped() {
        let xml = Xml::document("R", Some("http://x/"), |xml| {
            xml.text("a", "<&>\"'\u{1}é").values("s", [1, 2]).maybe("none", None::<u8>);
        });
        assert_eq!(
            xml,
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<R xmlns=\"http://x/\"><a>&lt;&amp;&gt;&quot;&apos;\u{fffd}é</a><s><item>1</item><item>2</item></s></R>"
        );
    }
}
