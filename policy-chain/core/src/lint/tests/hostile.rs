//! Nothing that a file may hold makes a check fail.

use std::sync::OnceLock;

use proptest::prelude::*;
use serde_json::{Map, Number, Value, json};

use super::{CASES, Document, GOOD, Role, check, documents, sections};

/// All objects of the other tests.
fn seeds() -> &'static [Value] {
    static SEEDS: OnceLock<Vec<Value>> = OnceLock::new();
    SEEDS.get_or_init(all_seeds)
}

fn all_seeds() -> Vec<Value> {
    let cases = CASES.split("\n=== ").skip(1).map(|case| case.split_once('\n').unwrap().1.to_owned());
    let examples = sections().into_iter().filter(|(_, id, _)| id != "unreadable").map(|(_, _, example)| example);
    let texts = cases.chain(examples).chain([GOOD.to_owned()]);
    texts.flat_map(|text| documents("f", &text, Role::Checked)).map(|document| document.value).collect()
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum::<usize>(),
        _ => 0,
    }
}

/// Puts something else in the place of the `at`-th value.
fn replace(value: &mut Value, at: &mut usize, by: &Value) {
    if *at == 0 {
        *value = by.clone();
    }
    *at = at.wrapping_sub(1);
    match value {
        Value::Array(list) => list.iter_mut().for_each(|value| replace(value, at, by)),
        Value::Object(map) => map.values_mut().for_each(|value| replace(value, at, by)),
        _ => {}
    }
}

fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(|number| Value::Number(Number::from(number))),
        prop_oneof![Just("0.0.0.0/0"), Just("::/0"), Just("a[0].b"), Just(""), Just("80"), Just("*"), Just("Deny")]
            .prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        let key = prop_oneof![
            Just("matchLabels".to_owned()),
            Just("podSelector".to_owned()),
            Just("spec".to_owned()),
            Just("ports".to_owned()),
            Just("a.b[0".to_owned()),
            ".{0,5}",
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn objects_with_anything_in_them(
        choice in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), anything()), 1..8),
    ) {
        let seeds = seeds();
        let mut all = vec![json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "shop"}})];
        for (seed, place, by) in choice {
            let mut value = seed.get(seeds).clone();
            let mut at = place.index(count(&value));
            replace(&mut value, &mut at, &by);
            all.push(value);
        }
        let document = |value| Document { file: "f".to_owned(), line: 1, value, role: Role::Checked };
        let all: Vec<Document> = all.into_iter().map(document).collect();
        let checked = check(&all);
        prop_assert_eq!(checked.objects, all.len());
        // The same again.
        prop_assert_eq!(check(&all), checked);
    }

    #[test]
    fn anything_at_all(values in prop::collection::vec(anything(), 0..4)) {
        let document = |value| Document { file: "f".to_owned(), line: 1, value, role: Role::Checked };
        let checked = check(&values.into_iter().map(document).collect::<Vec<_>>());
        prop_assert_eq!(checked.more, 0);
    }
}
