//! Random requests, of which rules have some.

use sluice_policy_core::l7::Message;
use sluice_policy_core::l7::dns::Name;
use sluice_policy_core::l7::http::{Field, RawRequest, Request, Version};
use sluice_policy_core::model::cilium::Application;

use super::Random;
use super::objects::{NAMES, one_of};

/// Makes a request, mostly one of the protocol that these application rules are for, and does something with it.
pub(crate) fn with_request<T>(
    random: &mut Random,
    application: &Application,
    then: impl FnOnce(&'static str, &Message<'_>) -> T,
) -> T {
    let of_rules = match application {
        Application::Http(_) => 0,
        Application::Dns(_) => 1,
        Application::None | Application::ServerNames(_) => 2,
    };
    let name = Name::new(&one_of(random, &NAMES)).unwrap();
    match if random.one_in(10) { random.below(3) } else { of_rules } {
        0 => {
            let method = one_of(random, &["GET", "POST", "PUT", "PATCH"]);
            let target = one_of(random, &["/", "/public/a", "/public/a?b=c", "/public/../", "/private", "/public"]);
            let host = one_of(random, &["example.com", "a.example.com", "example.com:8080", "example.org"]);
            let key = random.maybe(2, |random| one_of(random, &["1", "2"]));
            let mut fields = vec![Field { name: b"Host", value: host.as_bytes() }];
            fields.extend(key.iter().map(|key| Field { name: b"X-Key", value: key.as_bytes() }));
            let raw = RawRequest {
                version: Version::Http11,
                method: method.as_bytes(),
                target: target.as_bytes(),
                authority: None,
                fields: &fields,
            };
            then("http", &Message::Http(Request::new(raw).expect("a request with one reading")))
        }
        1 => then("dns", &Message::Dns { name, qtype: 1 }),
        _ => then("server name", &Message::ServerName(name)),
    }
}
