use std::borrow::Cow;

use proptest::prelude::*;

use super::canonical;

#[test]
fn what_strict_readers_take_for_one_resource_has_one_form() {
    for (given, form) in [
        // As it came.
        ("/", "/"),
        ("/a/b.c/d-e_f~g", "/a/b.c/d-e_f~g"),
        ("/a/", "/a/"),
        ("/a?", "/a?"),
        ("/a?x=1&y=/../%2F", "/a?x=1&y=/../%2F"),
        ("/a?b?c", "/a?b?c"),
        ("/a?filter[x]=\\{|}", "/a?filter[x]=\\{|}"),
        ("/!$&'()*+,;=:@", "/!$&'()*+,;=:@"),
        ("/app;v=1/x;y", "/app;v=1/x;y"),
        ("/;jsessionid=1", "/;jsessionid=1"),
        ("/...", "/..."),
        ("/.well-known/x", "/.well-known/x"),
        ("/..a/a../.a", "/..a/a../.a"),
        // RFC 3986, 6.2.2.1 and 6.2.2.2.
        ("/%41%62%2d%2E%5f%7e%39", "/Ab-._~9"),
        ("/%c3%a9", "/%C3%A9"),
        ("/%3f%23%25%20", "/%3F%23%25%20"),
        ("/%252e%252E", "/%252e%252E"),
        ("/a?%41=%2f%c3", "/a?A=%2F%C3"),
        // RFC 3986, 5.4.1 and 5.4.2, against /b/c/d.
        ("/b/c/./g", "/b/c/g"),
        ("/b/c/.", "/b/c/"),
        ("/b/c/./", "/b/c/"),
        ("/b/c/..", "/b/"),
        ("/b/c/../", "/b/"),
        ("/b/c/../g", "/b/g"),
        ("/b/c/../..", "/"),
        ("/b/c/../../g", "/g"),
        ("/b/c/../../../g", "/g"),
        ("/../g", "/g"),
        ("/b/c/g;x=1/./y", "/b/c/g;x=1/y"),
        ("/b/c/g;x=1/../y", "/b/c/y"),
        // CVE-2019-9901: what the gate does not resolve, the server behind it does.
        ("/public/../admin", "/admin"),
        ("/public/%2e%2e/admin", "/admin"),
        ("/public/.%2E/admin", "/admin"),
        ("/public/x/%2e./%2e%2e/../admin", "/admin"),
        // Slashes merge (as Envoy's merge_slashes).
        ("//admin", "/admin"),
        ("/a//b///c", "/a/b/c"),
        ("//", "/"),
        ("/a/.//b", "/a/b"),
        ("/a/..//b", "/b"),
        // What may not stand in a path, but has one meaning.
        ("/a[b]{c}|d^e`f\"g<h>i", "/a%5Bb%5D%7Bc%7D%7Cd%5Ee%60f%22g%3Ch%3Ei"),
    ] {
        assert_eq!(canonical(given).as_deref(), Ok(form), "{given}");
    }
}

#[test]
fn what_has_two_readings_is_refused() {
    for (given, why) in [
        // CVE-2021-29492; with an escaped one the client is sent elsewhere.
        ("/public%2f..%2fadmin", "escaped slash"),
        ("/public/..%2Fadmin", "escaped slash"),
        ("/public%5c..%5Cadmin", "escaped slash"),
        ("/public\\..\\admin", "backslash"),
        // CVE-2021-32779.
        ("/admin#/../public", "fragment"),
        ("/admin?x#y", "fragment"),
        ("/a#", "fragment"),
        // Merged before, or after.
        ("/a//../b", "empty"),
        ("/a//b/../../c", "empty"),
        ("//../b", "empty"),
        ("/a/./..//../b//../c", "empty"),
        // Servlet containers cut parameters before they look for dot segments.
        ("/public/..;/admin", "parameters"),
        ("/public/..;x=1/admin", "parameters"),
        ("/public/%2e%2e;/admin", "parameters"),
        ("/public/..%3b/admin", "parameters"),
        ("/public/.;/admin", "parameters"),
        ("/public/..;", "parameters"),
        ("/;/admin", "parameters"),
        ("/%3Bx/admin", "parameters"),
        // CVE-2019-9900 was a NUL.
        ("/a%00.html", "control"),
        ("/a%0d%0aHost:%20b", "control"),
        ("/a%7f", "control"),
        ("/a?x=%00", "NUL"),
        ("/a\0", "control"),
        ("/a b", "space"),
        ("/a?b c", "space"),
        ("/a\t", "control"),
        ("/a\r\nX: y", "control"),
        ("/a\x7f", "control"),
        ("/é", "ASCII"),
        ("/a?é", "ASCII"),
        // Not hexadecimal, or not all there.
        ("/%", "hexadecimal"),
        ("/%4", "hexadecimal"),
        ("/%zz", "hexadecimal"),
        ("/%u002e", "hexadecimal"),
        ("/%+1", "hexadecimal"),
        ("/a?100%", "hexadecimal"),
        // RFC 3629, 10: CA-2001-12.
        ("/%c0%ae%c0%ae/admin", "longer"),
        ("/%C0%AFadmin", "longer"),
        ("/%e0%80%ae", "longer"),
        ("/%f0%80%80%ae", "longer"),
        ("/a?x=%c0%af", "longer"),
    ] {
        let error = canonical(given).unwrap_err();
        assert!(error.reason().contains(why), "{given}: {error}");
    }
}

#[test]
fn a_long_path_takes_linear_time() {
    for part in ["/..", "/a/..", "/a//", "/%2e%2e", "/a/./b/..", "/;"] {
        let text = part.repeat(20_000);
        if let Ok(form) = canonical(&text) {
            assert!(form.len() <= text.len());
        }
    }
}

/// Targets from parts that mean something to someone.
fn targets() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        "/", "/", "/", "a", "b", "A", ".", ".", "..", "/..", "/.", "%2e", "%2E", "%41", "%62", "%c3%a9", "%2F", "%5c",
        "\\", ";", ";x", "%3b", "?", "#", "%", "%0", "%00", "%0a", "%25", "%252e", "%c0%ae", "|", "[", " ", "é", "~",
        "*", ":",
    ]);
    prop::collection::vec(part, 0..12).prop_map(|parts| format!("/{}", parts.concat()))
}

/// Targets that are refused by chance only.
fn orderly() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec("[a-c.]{1,3}|[a-c]{1,2};v|%[cd]3%[ab]9|\\.|\\.\\.", 0..6)
}

/// `remove_dot_segments` word by word (RFC 3986, 5.2.4).
fn remove_dot_segments(path: &str) -> String {
    let (mut input, mut output) = (path.to_owned(), String::new());
    while !input.is_empty() {
        if let Some(rest) = input.strip_prefix("/./") {
            input = format!("/{rest}");
        } else if input == "/." {
            input = "/".to_owned();
        } else if input.starts_with("/../") || input == "/.." {
            input = format!("/{}", input.get(4..).unwrap_or_default());
            output.truncate(output.rfind('/').unwrap_or(0));
        } else {
            let end = input.match_indices('/').map(|(slash, _)| slash).find(|slash| *slash > 0).unwrap_or(input.len());
            output.push_str(input.get(..end).unwrap_or_default());
            input.drain(..end);
        }
    }
    output
}

fn merge_slashes(path: &str) -> String {
    let mut path = path.to_owned();
    while path.contains("//") {
        path = path.replace("//", "/");
    }
    path
}

/// Decodes what `wanted` says.
fn decode(path: &str, wanted: impl Fn(u8) -> bool) -> Vec<u8> {
    let (bytes, mut out, mut at) = (path.as_bytes(), Vec::new(), 0);
    while at < bytes.len() {
        let value = (bytes[at] == b'%')
            .then(|| path.get(at + 1..at + 3).and_then(|digits| u8::from_str_radix(digits, 16).ok()))
            .flatten();
        match value {
            Some(value) if wanted(value) => {
                out.push(value);
                at += 3;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    out
}

fn decode_all(path: &str) -> String {
    decode(path, |_| true).into_iter().map(char::from).collect()
}

fn without_parameters(path: &str) -> String {
    path.split('/').map(|segment| segment.split(';').next().unwrap()).collect::<Vec<_>>().join("/")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn a_form_is_its_own_form_and_has_nothing_to_resolve(target in targets()) {
        if let Ok(form) = canonical(&target) {
            prop_assert_eq!(canonical(&form), Ok(form.clone()), "{}", target);
            let (path, _) = form.split_once('?').unwrap_or((&form, ""));
            prop_assert!(path.starts_with('/') && !path.contains("//"), "{} {}", target, form);
            prop_assert!(path.split('/').all(|segment| segment != "." && segment != ".."), "{} {}", target, form);
            let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/%".contains(&byte);
            prop_assert!(path.bytes().all(legal), "{} {}", target, form);
            prop_assert!(!form.contains('#'));
        }
    }

    /// Servers decode, merge, resolve and cut in different orders: the one behind us, whichever it is, reads the form as
    /// the gate did.
    #[test]
    fn every_server_reads_a_form_the_same(target in targets()) {
        if let Ok(form) = canonical(&target) {
            let (path, _) = form.split_once('?').unwrap_or((&form, ""));
            prop_assert_eq!(remove_dot_segments(path), path);
            let decoded = decode_all(path);
            prop_assert_eq!(remove_dot_segments(&merge_slashes(&decoded)), decoded.clone(), "decodes first: {}", target);
            prop_assert_eq!(decoded.replace('\\', "/"), decoded.clone(), "backslashes: {}", target);
            for cut in [without_parameters(path), without_parameters(&decoded)] {
                prop_assert_eq!(remove_dot_segments(&merge_slashes(&cut)), cut, "cuts parameters: {}", target);
            }
        }
    }

    /// What is not refused means the same whether slashes are merged before or after; what means two things is refused.
    #[test]
    fn both_orders_of_merging_agree_or_the_target_is_refused(parts in prop::collection::vec("/|/|a|b|\\.|\\.\\.|/\\.\\.", 0..10)) {
        let target = format!("/{}", parts.concat());
        let before = remove_dot_segments(&merge_slashes(&target));
        let after = merge_slashes(&remove_dot_segments(&target));
        match canonical(&target) {
            Ok(form) => {
                prop_assert_eq!(&form, &before, "{}", target);
                prop_assert_eq!(&form, &after, "{}", target);
            }
            Err(_) => prop_assert!(target.contains("//"), "{}", target),
        }
        if before != after {
            prop_assert!(canonical(&target).is_err(), "{}", target);
        }
    }

    /// The equivalences of RFC 3986, 6.2.2, applied at random.
    #[test]
    fn equivalent_targets_have_one_form(segments in orderly(), choices in prop::collection::vec(0..8u8, 40)) {
        let plain = format!("/{}", segments.join("/"));
        let mut choices = choices.into_iter();
        let mut other = String::new();
        for segment in &segments {
            match choices.next() {
                Some(0) => other.push_str("/."),
                Some(1) => other.push_str("/x/.."),
                Some(2) if segment != ".." => other.push('/'),
                _ => {}
            }
            other.push('/');
            for character in segment.chars() {
                let unreserved = character.is_ascii_alphanumeric() || character == '.';
                match choices.next() {
                    Some(0) if unreserved && !segment.contains('%') => other.push_str(&format!("%{:02x}", u32::from(character))),
                    Some(1) if unreserved && !segment.contains('%') => other.push_str(&format!("%{:02X}", u32::from(character))),
                    Some(2) if segment.contains('%') => other.push(character.to_ascii_uppercase()),
                    _ => other.push(character),
                }
            }
        }
        let other = if other.is_empty() { "/".to_owned() } else { other };
        // An empty segment before a later ".." may be refused; never may it become something else.
        if let (Ok(one), Ok(two)) = (canonical(&plain), canonical(&other)) {
            prop_assert_eq!(one, two, "{} {}", plain, other);
        }
    }

    #[test]
    fn nothing_panics(target in "/.{0,80}", odd in "/[ -~]{0,80}") {
        std::hint::black_box(canonical(&target).is_ok());
        if let Ok(Cow::Borrowed(form)) = canonical(&odd) {
            prop_assert_eq!(form, &odd);
        }
    }
}
