//! Changes to objects, as trees and as text, that a seed chooses.

use serde_json::{Map, Value, json};

use crate::random::Random;

/// Scalars that are an end, a beginning, or of another kind.
const TEXTS: &[&str] = &[
    "",
    "-",
    ".",
    "*",
    "**.",
    "*.example.com",
    "**.example.com",
    "example.com",
    "web",
    "app",
    "shop",
    "http",
    "dns",
    "0",
    "80",
    "65535",
    "65536",
    "-1",
    "080",
    "TCP",
    "UDP",
    "SCTP",
    "ANY",
    "ICMP",
    "IPv6",
    "In",
    "NotIn",
    "Exists",
    "Accept",
    "Deny",
    "Pass",
    "Allow",
    "Admin",
    "Baseline",
    "Ingress",
    "Egress",
    "all",
    "world",
    "world-ipv6",
    "cluster",
    "host",
    "remote-node",
    "kube-apiserver",
    "none",
    "0.0.0.0/0",
    "::/0",
    "10.0.0.0/8",
    "10.9.1.3/32",
    "10.9.1.3",
    "10.9.1.3/31",
    "10.0.0.1/33",
    "::ffff:10.0.0.0/104",
    "::ffff:10.9.1.3",
    "fd00:9:1::3/128",
    "fd00::/8",
    "203.0.113.0/24",
    "fe80::1%1",
    "010.0.0.1",
    "n1",
    "n2",
    "api",
    "reserved:host",
    "reserved:init",
    "k8s:app",
    "any:app",
    "cidr:10.0.0.0/8",
    "io.kubernetes.pod.namespace",
    "k8s:io.kubernetes.pod.namespace",
    "io.cilium.k8s.namespace.labels.team",
    "io.cilium.k8s.policy.serviceaccount",
    "kubernetes.io/metadata.name",
    "(",
    "[",
    "a{1,1000000}",
    "((a{100}){100}){100}",
    "\\pL{200}",
    "(a|b)*c{2,5}",
    "/a/.*",
    "(?i)get",
    "x*y*z*",
    "true",
    "null",
    "~",
    "y",
    "2026-11-25T22:00:00Z",
    "9999-99-99",
    "None",
    "ClusterIP",
    "ExternalName",
    "Succeeded",
    "Running",
    "True",
    "\u{0}",
    "\u{feff}",
    "\u{202e}abc",
    "\u{1f600}",
    "\u{fffd}",
    "e\u{301}",
    "\u{131}",
    "a\nb",
    "a\tb",
    "%2e%2e",
    "X-A: b",
    ": b",
    "Host",
    "EchoRequest",
];

fn scalar(random: &mut Random) -> Value {
    match random.below(12) {
        0 => Value::Null,
        1 => json!(random.one_in(2)),
        2 => json!(*random.pick(&[0, 1, -1, 80, 8080, 53, 65535, 65536, 255, 256, 1000, 1001])),
        3 => json!(*random.pick(&[i64::MIN, i64::MAX, 1 << 31, 1 << 32, -(1 << 31)])),
        4 => json!(*random.pick(&[u64::MAX, 1 << 63])),
        5 => json!(*random.pick(&[0.5, -0.0, 80.0, 1e308, 5e-324, 65535.5])),
        6 => json!("a".repeat(random.between(1, 3) * random.between(1, 400))),
        7 => json!(*random.pick(&[json!([]), json!({}), json!([null]), json!([[]]), json!([{}]), json!({"": ""})])),
        _ => json!(*random.pick(TEXTS)),
    }
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Object(map) => map.values().map(count).sum(),
        Value::Array(list) => list.iter().map(count).sum::<usize>(),
        _ => 0,
    }
}

/// The node of this number in the order of reading.
fn node<'a>(value: &'a mut Value, number: &mut usize) -> Option<&'a mut Value> {
    if *number == 0 {
        return Some(value);
    }
    *number -= 1;
    match value {
        Value::Object(map) => map.values_mut().find_map(|child| node(child, number)),
        Value::Array(list) => list.iter_mut().find_map(|child| node(child, number)),
        _ => None,
    }
}

fn some_node<'a>(value: &'a mut Value, random: &mut Random) -> &'a mut Value {
    // Not the whole, most times: what is left of an object without its kind is soon told.
    let nodes = count(value);
    let mut number = if nodes > 1 && !random.one_in(200) { random.between(1, nodes - 1) } else { 0 };
    node(value, &mut number).expect("a number of a node")
}

/// What the mutations draw from.
#[derive(Debug)]
pub(crate) struct Corpus {
    /// Objects.
    pub(crate) objects: Vec<Value>,
    /// Documents of YAML, as people write it.
    pub(crate) texts: Vec<String>,
    /// All keys that occur.
    keys: Vec<String>,
}

impl Corpus {
    pub(crate) fn new(objects: Vec<Value>, texts: Vec<String>) -> Self {
        fn keys(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(map) => map.iter().for_each(|(key, value)| {
                    found.push(key.clone());
                    keys(value, found);
                }),
                Value::Array(list) => list.iter().for_each(|value| keys(value, found)),
                _ => {}
            }
        }
        let mut found = Vec::new();
        objects.iter().for_each(|object| keys(object, &mut found));
        found.sort();
        found.dedup();
        Self { objects, texts, keys: found }
    }

    /// An object with a few changes.
    pub(crate) fn object(&self, random: &mut Random) -> Value {
        let mut object = random.pick(&self.objects).clone();
        for _ in 0..[0, 1, 1, 2, 3, 5, 10][random.below(7)] {
            self.change(&mut object, random);
        }
        object
    }

    fn change(&self, object: &mut Value, random: &mut Random) {
        if object.is_object() && random.one_in(25) {
            let other = random.pick(&self.objects);
            for field in ["apiVersion", "kind"] {
                object[field] = other[field].clone();
            }
            return;
        }
        let graft = random.maybe(4, |random| some_node(&mut random.pick(&self.objects).clone(), random).clone());
        let place = some_node(object, random);
        if let Some(graft) = graft {
            *place = graft;
            return;
        }
        match place {
            Value::Object(map) => self.change_map(map, random),
            Value::Array(list) => change_list(list, random),
            _ => *place = scalar(random),
        }
        // A map whose fields stand two deep more, a list in a list: and sometimes far deeper than anything is read.
        if random.one_in(60) {
            for _ in 0..*random.pick(&[1, 2, 30, 59, 62, 66, 120]) {
                let inner = place.take();
                *place = if random.one_in(2) { json!([inner]) } else { json!({"spec": inner}) };
            }
        }
    }

    fn change_map(&self, map: &mut Map<String, Value>, random: &mut Random) {
        let key = |map: &Map<String, Value>, random: &mut Random| {
            (!map.is_empty()).then(|| map.keys().nth(random.below(map.len())).expect("a key").clone())
        };
        match random.below(7) {
            0 | 1 => {
                if let Some(key) = key(map, random) {
                    map.remove(&key);
                }
            }
            2 => {
                if let Some(value) = key(map, random).and_then(|key| map.remove(&key)) {
                    map.insert(random.pick(&self.keys).clone(), value);
                }
            }
            3 => {
                map.insert(random.pick(&self.keys).clone(), scalar(random));
            }
            4 => {
                map.insert((*random.pick(TEXTS)).to_owned(), scalar(random));
            }
            5 => {
                if let Some(key) = key(map, random) {
                    map.insert(key, scalar(random));
                }
            }
            _ => {
                for number in 0..random.between(1, 300) {
                    map.insert(format!("key-{number}"), json!(format!("value-{}", number % 7)));
                }
            }
        }
    }
}

fn change_list(list: &mut Vec<Value>, random: &mut Random) {
    if list.is_empty() {
        list.push(scalar(random));
        return;
    }
    let at = random.below(list.len());
    match random.below(7) {
        0 => drop(list.remove(at)),
        1 => list.clear(),
        2 => list.insert(at, scalar(random)),
        3 => list.swap(at, 0),
        4 => list.push(list[at].clone()),
        5 => list[at] = scalar(random),
        _ => {
            // Blown up, each element a little different.
            let element = list[at].clone();
            let most = if random.one_in(10) { 2000 } else { 60 };
            for number in 0..random.between(1, most) {
                let mut element = element.clone();
                vary(&mut element, number);
                list.push(element);
            }
        }
    }
}

/// Another one of the same kind: what is a number, a port or an address is another one.
fn vary(value: &mut Value, number: usize) {
    match value {
        Value::Object(map) => map.values_mut().for_each(|value| vary(value, number)),
        Value::Array(list) => list.iter_mut().for_each(|value| vary(value, number)),
        Value::Number(was) => *value = json!(was.as_u64().unwrap_or(0).wrapping_add(number as u64)),
        Value::String(text) if text.contains("0.0") => {
            *text = format!("10.{}.{}.0/24", number / 256 % 256, number % 256)
        }
        Value::String(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => {
            *text = format!("{}", 1 + number % 65535)
        }
        _ => {}
    }
}

/// A text with a few changes.
pub(crate) fn text(text: &mut String, random: &mut Random) {
    const TOKENS: &[&str] = &[
        "\n",
        "---\n",
        "- ",
        ": ",
        "{",
        "}",
        "[",
        "]",
        "&a ",
        "*a",
        "<<: *a\n",
        "!!binary ",
        "|\n",
        ">-\n",
        "\"",
        "'",
        "#",
        "\t",
        "  ",
        ",",
        "? ",
        "%YAML 1.2\n",
        "...\n",
        "\u{0}",
        "\u{feff}",
        "\u{85}",
        "\u{2028}",
        "1e999",
        "0x10",
        "0o17",
        ".inf",
        ".nan",
        "y",
        "no",
        "~",
        "null",
        "2026-01-01",
        "kind: List\n",
        "items:\n",
    ];
    for _ in 0..random.between(1, 6) {
        let Some(at) = place(text, random) else { return };
        match random.below(6) {
            0 => text.insert_str(at, random.pick::<&str>(TOKENS)),
            1 => text.insert_str(at, random.pick::<&str>(TEXTS)),
            2 | 3 => {
                let end = place(text, random).expect("there is text");
                let (from, to) = (at.min(end), at.max(end));
                let to = (from..=to.min(from + random.between(1, 60))).rev().find(|at| text.is_char_boundary(*at));
                let part = text.get(from..to.unwrap_or(from)).unwrap_or_default().to_owned();
                if random.one_in(2) {
                    text.replace_range(from..from + part.len(), "");
                } else {
                    text.insert_str(from, &part.repeat(random.between(1, 40)));
                }
            }
            4 => {
                let character = char::from_u32(u32::try_from(random.next() % 0x300).unwrap()).unwrap_or('\u{fffd}');
                text.insert(at, character);
            }
            _ => text.truncate(at),
        }
    }
}

fn place(text: &str, random: &mut Random) -> Option<usize> {
    let from = random.below(text.len() + 1);
    (!text.is_empty()).then(|| (0..=from).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0))
}
