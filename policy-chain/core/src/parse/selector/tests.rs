use serde_json::Value;

use super::label_selector;
use crate::model::selector::{LabelSelector, Operator, Requirement};
use crate::parse::Severity;
use crate::parse::cursor::{Cursor, Report};
use crate::parse::tests::yaml;

fn read(text: &str, grammar: Severity) -> (Option<LabelSelector>, Vec<String>) {
    let value: Value = yaml(text);
    let mut report = Report::default();
    let selector = label_selector(&Cursor { value: &value, path: "s".to_owned() }, &mut report, grammar);
    let told = report.into_issues().into_iter().map(|issue| format!("{:?} {issue}", issue.severity));
    (selector.ok(), told.collect())
}

fn label(key: &str, operator: Operator, values: &[&str]) -> Requirement {
    Requirement { key: key.into(), operator, values: values.iter().map(|&value| value.into()).collect() }
}

/// The same condition is one, however it is written.
#[test]
fn requirements_are_sorted_and_single() {
    let expected = LabelSelector {
        requirements: vec![
            label("a", Operator::In, &["x"]),
            label("a", Operator::In, &["x", "y"]),
            label("b", Operator::Exists, &[]),
            label("b", Operator::DoesNotExist, &[]),
        ],
    };
    let text = "
matchLabels: {a: x}
matchExpressions:
- {key: b, operator: DoesNotExist}
- {key: a, operator: In, values: [x]}
- {key: b, operator: Exists, values: null}
- {key: a, operator: In, values: [y, x, y]}
";
    assert_eq!(read(text, Severity::Refused), (Some(expected), Vec::new()));
    for all in ["{}", "{matchLabels: {}}", "{matchLabels: null, matchExpressions: []}"] {
        assert_eq!(read(all, Severity::Refused), (Some(LabelSelector::default()), Vec::new()), "{all}");
    }
}

#[test]
fn keys_and_values() {
    let long = "a".repeat(63);
    let prefix = format!("{}.{}.{}.{}", "a".repeat(61), "b".repeat(63), "c".repeat(63), "d".repeat(63));
    let good_keys =
        ["a", "A", "0", "a-b_c.d", "x.y/z", "kubernetes.io/metadata.name", &long, &format!("{prefix}/{long}")];
    let bad_keys = [
        "",
        "-a",
        "a-",
        ".a",
        "a b",
        "a/",
        "/a",
        "a/b/c",
        "A.b/c",
        "a_b/c",
        "a..b/c",
        "ä",
        &format!("{long}a"),
        &format!("{prefix}x/a"),
        "io.cilium:k",
    ];
    let good_values = ["", "a", "A.b_c-9", &long];
    let bad_values = ["-a", "a-", "a b", "a/b", "ä", " ", &format!("{long}a")];
    let both = |key: &str, value: &str| {
        let labels = format!("{{matchLabels: {{{key:?}: {value:?}}}}}");
        let expressions = format!("{{matchExpressions: [{{key: {key:?}, operator: NotIn, values: [{value:?}]}}]}}");
        let found = [labels, expressions].map(|text| read(&text, Severity::Refused));
        found.map(|(selector, told)| (selector.is_some(), told.len()))
    };
    for key in good_keys {
        assert_eq!(both(key, "v"), [(true, 0); 2], "{key}");
    }
    for key in bad_keys {
        assert_eq!(both(key, "v"), [(false, 1); 2], "{key}");
    }
    for value in good_values {
        assert_eq!(both("k", value), [(true, 0); 2], "{value}");
    }
    for value in bad_values {
        assert_eq!(both("k", value), [(false, 1); 2], "{value}");
    }
}

/// apimachinery, `ValidateLabelSelectorRequirement`.
#[test]
fn what_is_told() {
    const KEY: &str = "1 to 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends; a DNS name and '/' \
                       may be before";
    const VALUE: &str = "at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends, or nothing";
    const PREFIX: &str = "what is before '/' has to be a DNS name of at most 253 lower case characters";
    let rows: Vec<(&str, Vec<String>)> = vec![
        ("[]", vec!["Refused s: [] is not an object".to_owned()]),
        ("{matchLabels: []}", vec!["Refused s.matchLabels: [] is not an object".to_owned()]),
        ("{matchLabels: {a: 1}}", vec!["Refused s.matchLabels: \"a\": 1 is not a string".to_owned()]),
        ("{matchLabels: {a: null}}", vec!["Refused s.matchLabels: \"a\": null is not a string".to_owned()]),
        ("{matchLabels: {a b: c}}", vec![format!("Grammar s.matchLabels: \"a b\" is not a label key: {KEY}")]),
        ("{matchLabels: {A/b: c}}", vec![format!("Grammar s.matchLabels: \"A/b\" is not a label key: {PREFIX}")]),
        ("{matchLabels: {a: b c}}", vec![format!("Grammar s.matchLabels: \"b c\" is not a label value: {VALUE}")]),
        ("{matchExpressions: {}}", vec!["Refused s.matchExpressions: {} is not a list".to_owned()]),
        ("{matchExpressions: [null]}", vec!["Refused s.matchExpressions[0]: null is not an object".to_owned()]),
        (
            "{matchExpressions: [{}]}",
            vec![
                "Refused s.matchExpressions[0].key: is missing".to_owned(),
                "Refused s.matchExpressions[0].operator: is missing".to_owned(),
            ],
        ),
        (
            "{matchExpressions: [{key: a, operator: in, values: [b]}]}",
            vec![
                "Grammar s.matchExpressions[0].operator: \"in\" is none of In, NotIn, Exists, DoesNotExist".to_owned(),
            ],
        ),
        (
            "{matchExpressions: [{key: a, operator: In}]}",
            vec!["Grammar s.matchExpressions[0].values: is empty; In and NotIn need a value".to_owned()],
        ),
        (
            "{matchExpressions: [{key: a, operator: NotIn, values: []}]}",
            vec!["Grammar s.matchExpressions[0].values: is empty; In and NotIn need a value".to_owned()],
        ),
        (
            "{matchExpressions: [{key: a, operator: Exists, values: [b]}]}",
            vec![
                "Grammar s.matchExpressions[0].values: is not empty; Exists and DoesNotExist have no values".to_owned(),
            ],
        ),
        (
            "{matchExpressions: [{key: a, operator: DoesNotExist, values: [b]}]}",
            vec![
                "Grammar s.matchExpressions[0].values: is not empty; Exists and DoesNotExist have no values".to_owned(),
            ],
        ),
        (
            "{matchExpressions: [{key: a, operator: In, values: [b, 1]}]}",
            vec!["Refused s.matchExpressions[0].values[1]: 1 is not a string".to_owned()],
        ),
        (
            "{matchExpressions: [{key: a, operator: In, values: b}]}",
            vec!["Refused s.matchExpressions[0].values: \"b\" is not a list".to_owned()],
        ),
        (
            "{matchExpressions: [{key: a, operator: Exists, value: b}]}",
            vec!["Unusable s.matchExpressions[0].value: this field is not known (value \"b\")".to_owned()],
        ),
        // Removed from the API after v0.1.1; to leave it out would be to select every namespace.
        ("{sameLabels: [a]}", vec!["Unusable s.sameLabels: this field is not known (value [\"a\"])".to_owned()]),
    ];
    for grammar in [Severity::Refused, Severity::Unusable] {
        for (text, expected) in &rows {
            let expected: Vec<String> =
                expected.iter().map(|line| line.replace("Grammar", &format!("{grammar:?}"))).collect();
            assert_eq!(read(text, grammar), (None, expected), "{text}");
        }
    }
}
