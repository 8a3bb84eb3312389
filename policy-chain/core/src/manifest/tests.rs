use proptest::prelude::*;
use serde_json::json;

use super::*;

/// A text that cannot be read, and what is said of it.
#[track_caller]
fn refused(text: &str, expected: &str) {
    let error = documents(text).expect_err("it must not be read").to_string();
    let shown: String = text.chars().take(80).collect();
    let is_said = if expected.starts_with("document") { error.starts_with(expected) } else { error.contains(expected) };
    assert!(is_said, "{shown:?}\nis said to have: {error}\nnot:            {expected}");
    assert!(error.len() < 1_000, "a message that nobody reads: {} bytes", error.len());
}

#[test]
fn texts_and_their_documents() {
    let table: &[(&str, Value)] = &[
        ("", json!([])),
        ("\n# nothing\n---\n---\n# nothing\n...\n", json!([])),
        ("\u{feff}a: 1\n", json!([{"a": 1}])),
        ("a: 1\r\n---\r\nb: 2\r\n", json!([{"a": 1}, {"b": 2}])),
        ("---\na: 1\n--- # next\nb: 2\n--- {c: 3}\n---", json!([{"a": 1}, {"b": 2}, {"c": 3}])),
        ("a: 1\n...\n---\nb: 2\n", json!([{"a": 1}, {"b": 2}])),
        ("%YAML 1.2\n---\na: 1\n", json!([{"a": 1}])),
        ("a: |\n  ---\n  b\n---\nc: ----\n", json!([{"a": "---\nb\n"}, {"c": "----"}])),
        ("{\"a\": 1}{\"b\": \"\\ud83d\\ude00\\/\"}\n\n{\"c\": 3}", json!([{"a": 1}, {"b": "\u{1f600}/"}, {"c": 3}])),
        ("{\"a\": 1}\n---\nb: 2\n---\n{\"c\": 3}\n", json!([{"a": 1}, {"b": 2}, {"c": 3}])),
        ("{a: 1, b: [x, y,],}", json!([{"a": 1, "b": ["x", "y"]}])),
        // Numbers as kubectl reads them (YAML 1.1); y, yes and on are text (YAML 1.2).
        (
            "a: 0x10\nb: 010\nc: yes\nd: 'yes'\ne: ~\nf: 1.5\ng: -3\n80: x\n",
            json!([
            {"a": 16, "b": 8, "c": "yes", "d": "yes", "e": null, "f": 1.5, "g": -3, "80": "x"}]),
        ),
        ("a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}\n", json!([{"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}}])),
    ];
    for (text, expected) in table {
        assert_eq!(documents(text).map(Value::Array).as_ref(), Ok(expected), "{text:?}");
    }
}

#[test]
fn lists_are_taken_apart() {
    let table: &[(Value, Value)] = &[
        (json!({"apiVersion": "v1", "kind": "List", "items": []}), json!([])),
        (json!({"apiVersion": "v1", "kind": "List"}), json!([])),
        (
            json!({"apiVersion": "v1", "kind": "List", "items": [{"kind": "Pod"}, {"kind": "Node"}]}),
            json!([{"kind": "Pod"}, {"kind": "Node"}]),
        ),
        // The API server gives elements of a typed list without apiVersion and kind.
        (
            json!({"apiVersion": "v1", "kind": "PodList", "items": [{"a": 1}, {"kind": "Odd", "apiVersion": "x/v1"}]}),
            json!([{"apiVersion": "v1", "kind": "Pod", "a": 1}, {"apiVersion": "x/v1", "kind": "Odd"}]),
        ),
        (
            json!({"kind": "List", "items": [{"apiVersion": "v1", "kind": "PodList", "items": [{"a": 1}]}]}),
            json!([{"apiVersion": "v1", "kind": "Pod", "a": 1}]),
        ),
        (json!({"kind": "Thing", "items": [1]}), json!([{"kind": "Thing", "items": [1]}])),
    ];
    for (text, expected) in table {
        let yaml = serde_saphyr::to_string(text).unwrap();
        for text in [text.to_string(), yaml] {
            assert_eq!(documents(&text).map(Value::Array).as_ref(), Ok(expected), "{text}");
        }
    }
}

#[test]
fn faults_say_where_and_what_to_do() {
    let table: &[(&str, &str)] = &[
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "document 1, line 4, column 3: the key \"c\" is there twice; keep one of them"),
        ("{\"a\": 1,\n \"a\": 2}", "document 1, line 2, column 4: the key \"a\" is there twice; keep one of them"),
        ("{\"x\": 0}\n{\"a\": {\"b\": 1, \"b\": 2}}", "document 2, line 2, column 18: the key \"b\" is there twice"),
        (
            "x: 1\n---\n\n\na: [\n---\nb: 1\n",
            "document 2, line 5, column 4: unclosed bracket '['; look at the indentation",
        ),
        ("a: 1\n---\n\n- x\n", "document 2, line 2: the document is not an object but [\"x\"]; write one object"),
        ("hello\n", "document 1, line 1: the document is not an object but \"hello\""),
        ("[1]", "document 1, line 1: the document is not an object but [1]"),
        ("a: 1\nb: .nan\n", "document 1, line 2, column 4: this number cannot be written in JSON; put it in quotes"),
        ("a: 1e999\n", "document 1, line 1, column 4: this number cannot be written in JSON"),
        ("{\"a\": 1e999}", "document 1, line 1"),
        ("a: *b", "document 1, line 1, column 4: an alias names an anchor that is not before it in its document"),
        (
            "a: &b 1\n---\nc: *b",
            "document 2, line 3, column 4: an alias names an anchor that is not before it in its document",
        ),
        ("a: &a [*a]", "document 1, line 1, column 8: an anchor holds an alias of itself"),
        ("a: !!python/object x", "document 1, line 1, column 20: the tag !!python/object is not known; leave it out"),
        ("? [a]\n: b", "document 1, line 1, column 3: a key is not text; put the key in quotes"),
        ("a: {{ .Values.x }}", "document 1, line 1, column 5: a key is not text; put the key in quotes"),
        ("~: 1", "document 1, line 1, column 1: a key is not text"),
        ("a:\n\t- b", "document 1, line 2, column 2: tabs disallowed"),
        ("a: b: c", "document 1, line 1, column 5: mapping values are not allowed"),
        ("{\"a\": 1", "document 1, line 1"),
        ("kind: PodList\nitems: 3\n", "document 1, line 1: items of a PodList is not a list but 3; put the objects"),
        (
            "kind: List\nitems: [{kind: List, items: [{}, 7]}]\n",
            "document 1, line 1: items[0].items[1]. is not an object but 7",
        ),
        ("a: \"\u{0}\"", "document 1, line 1"),
    ];
    for (text, expected) in table {
        refused(text, expected);
    }
}

#[test]
fn a_fault_hides_no_other_document() {
    let manifest = read("a: 1\n---\nb: [\n---\nc: 3\n---\nd: 4\nd: 4\n---\n{\"e\": 5, \"e\": 5}\n---\nf: 6\n");
    let values: Vec<(usize, String)> =
        manifest.documents.iter().map(|found| (found.line, found.value.to_string())).collect();
    assert_eq!(values, [(1, "{\"a\":1}".into()), (4, "{\"c\":3}".into()), (11, "{\"f\":6}".into())]);
    let errors: Vec<(usize, usize)> = manifest.errors.iter().map(|error| (error.document, error.line)).collect();
    assert_eq!(errors, [(2, 3), (4, 8), (5, 10)]);
}

#[test]
fn text_is_utf8_or_refused() {
    assert_eq!(text("a: é\n".as_bytes()), Ok("a: é\n"));
    let table: &[(&[u8], &str)] = &[
        (b"a: 1\nb: \xff\n", "document 1, line 2, column 4: the text is not UTF-8; save the file as UTF-8"),
        (b"a: \xc3\xa9\xe9", "document 1, line 1, column 5: the text is not UTF-8"),
        (b"\xff\xfea\0:\0", "document 1, line 1, column 1: the text is UTF-16, not UTF-8"),
        (b"\xfe\xff\0a", "document 1, line 1, column 1: the text is UTF-16, not UTF-8"),
    ];
    for (bytes, expected) in table {
        assert!(text(bytes).unwrap_err().to_string().starts_with(expected), "{:?}", text(bytes));
    }
}

#[test]
fn depth_is_bounded() {
    let nested = |open: &str, close: &str, depth: usize| format!("{}{}", open.repeat(depth), close.repeat(depth));
    for (depth, fits) in [(MAX_DEPTH - 1, true), (MAX_DEPTH, false)] {
        for text in [format!("{{\"a\": {}}}", nested("[", "]", depth)), format!("a: {}", nested("[", "]", depth))] {
            assert_eq!(documents(&text).is_ok(), fits, "{text}");
        }
    }
    for depth in [65, 1_000, 100_000] {
        for text in [
            format!("{{\"a\": {}}}", nested("[", "]", depth)),
            nested("{\"a\":", "}", depth).replace(":}", ":1}"),
            format!("a: {}", nested("[", "]", depth)),
            format!("a: {}", "[".repeat(depth)),
            format!("a: {}", "{a: ".repeat(depth)),
            format!("a:\n {}", "- ".repeat(depth)),
            "? ".repeat(depth),
        ] {
            refused(&text, "document 1, line ");
        }
    }
    refused(
        &format!("{{\"a\": {}}}", nested("[", "]", 65)),
        "document 1, line 1, column 70: lists and objects are more than 64 levels deep",
    );
}

#[test]
fn aliases_do_not_blow_up() {
    let bomb = |width: usize, levels: u8| {
        let mut text = "a0: &a0 [x, x]\n".to_owned();
        for level in 1..levels {
            let aliases = vec![format!("*a{}", level - 1); width].join(", ");
            text.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
        }
        text
    };
    assert!(documents(&bomb(2, 8)).is_ok(), "a few aliases are honest");
    let expected = "anchors and aliases make too much of this text; write out what '*name' stands for";
    refused(&bomb(10, 12), expected);
    refused(&bomb(2, 200), expected);
    let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(1_000_000), vec!["*a"; 999].join(", "));
    refused(&long, "an object has more than 3145728 bytes; split");
    let merges: String =
        (1..200).map(|level| format!("a{level}: &a{level} {{<<: [*a{0}, *a{0}]}}\n", level - 1)).collect();
    refused(&format!("a0: &a0 {{x: 1}}\n{merges}"), expected);
    // Many small bombs are one large one.
    let nearly = bomb(2, 10);
    assert!(documents(&nearly).is_ok());
    let manifest = read(&format!("{nearly}---\n").repeat(200));
    assert!(manifest.documents.len() < 60, "{}", manifest.documents.len());
    let manifest = read(&"a: *b\n---\n".repeat(200));
    assert_eq!((manifest.errors.len(), manifest.documents.len()), (MAX_ERRORS, 0));
}

#[test]
fn sizes_are_bounded() {
    let large = "x".repeat(10_000_000);
    let expected = "an object has more than 3145728 bytes; split it";
    refused(&format!("{{\"a\": \"{large}\"}}"), expected);
    refused(&format!("a: {large}\n"), expected);
    refused(&format!("kind: List\nitems:\n- a: {large}\n"), expected);
    let half = "x".repeat(2_000_000);
    refused(&format!("a: {half}\nb: {half}\n"), "document 1, line 1: an object has about 4000");
    // A list of objects may be larger than one.
    assert_eq!(documents(&format!("kind: List\nitems:\n- a: {half}\n- a: {half}\n")).unwrap().len(), 2);
    refused(
        &" ".repeat(MAX_TEXT_BYTES + 1),
        "document 1, line 1: the text has 67108865 bytes; 67108864 is the most; split it",
    );
    refused(&format!("{{\"a\": [{}1]}}", "1,".repeat(MAX_NODES)), "document 1, line 1, column");
    refused(&"{\"a\":1}".repeat(MAX_DOCUMENTS + 1), "document 200001, line 1: there are more than 200000 objects");
}

fn value() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        "[ -~]{0,12}",
        "\\PC{0,6}",
        "(yes|no|null|~|0x1f|012|1e3|\\.inf|---|\\.\\.\\.|- a|a: b|#|<<|[{}&*!|>%@`\"'])",
        "[\\x00-\\x20\u{85}\u{2028}\u{feff}a]{0,4}"
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        text.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::btree_map(text.clone(), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().filter(|(key, _)| key != "items").collect())),
        ]
    })
}

fn object() -> impl Strategy<Value = Value> {
    proptest::collection::btree_map("[a-z]{1,5}", value(), 1..6).prop_map(|map| json!({ "object": map }))
}

proptest! {
    #[test]
    fn what_was_written_is_read(objects in proptest::collection::vec(object(), 0..4)) {
        let compact: String = objects.iter().map(Value::to_string).collect();
        let pretty: Vec<String> = objects.iter().map(|object| serde_json::to_string_pretty(object).unwrap()).collect();
        for text in [compact, pretty.join("\n"), pretty.join("\n---\n")] {
            prop_assert_eq!(documents(&text).map_err(|error| error.to_string()), Ok(objects.clone()), "{}", text);
        }
    }

    #[test]
    fn no_text_is_too_odd(text in prop_oneof!["\\PC{0,200}", "[-a:{}\\[\\]&*!|>'\"%#?<, \n\t]{0,200}", "(---|\\.\\.\\.|[ab]: |- |\\{|\\[|&a |\\*a|<<: |\n| |\"a\"){0,60}"]) {
        let manifest = read(&text);
        prop_assert_eq!(documents(&text).is_ok(), manifest.errors.is_empty());
        let lines = text.lines().count().max(1) + 1;
        for error in &manifest.errors {
            prop_assert!(error.line >= 1 && error.line <= lines, "{error} of {lines} lines");
        }
    }

    #[test]
    fn no_bytes_are_too_odd(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(text) = text(&bytes) {
            let _bounded = read(text);
        }
    }
}
