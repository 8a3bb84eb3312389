use std::sync::Arc;

use super::{Message, Permit};
use crate::l7::dns::{Name, NamePattern};
use crate::l7::http::{Field, HttpRule, HttpRuleSpec, RawRequest, Request, Version};
use crate::l7::sni::ServerNamePattern;
use crate::model::cilium::Application;

fn http(path: &str) -> Arc<HttpRule> {
    Arc::new(HttpRule::new(HttpRuleSpec { path: Some(path.into()), ..HttpRuleSpec::default() }).unwrap())
}

#[test]
fn rules_let_only_requests_of_their_protocol_pass() {
    let fields = [Field { name: b"host", value: b"a" }];
    let raw = RawRequest { version: Version::Http11, method: b"GET", target: b"/a", authority: None, fields: &fields };
    let messages = [
        Message::Http(Request::new(raw).unwrap()),
        Message::Dns { name: Name::new("a.example").unwrap(), qtype: 1 },
        Message::ServerName(Name::new("a.example").unwrap()),
    ];
    let pattern = |text| NamePattern::cilium(text).unwrap();
    let server = |text| ServerNamePattern::new(text).unwrap();
    for (application, passing) in [
        (Application::None, [Some(None), Some(None), Some(None)]),
        (Application::Http([http("/b"), http("/a")].into()), [Some(Some(1)), None, None]),
        (Application::Http([http("/b")].into()), [None, None, None]),
        (Application::Dns([pattern("*"), pattern("a.example")].into()), [None, Some(Some(0)), None]),
        (Application::Dns([pattern("b.*")].into()), [None, None, None]),
        (Application::ServerNames([server("b"), server("*.example")].into()), [None, None, Some(Some(1))]),
        (Application::Dns([].into()), [None, None, None]),
    ] {
        for (message, passing) in messages.iter().zip(passing) {
            let permit = application.permits(message);
            assert_eq!(permit.passes(), passing.is_some(), "{application:?} {message:?}");
            match (permit, passing) {
                (Permit::All, Some(None)) | (Permit::No, None) => {}
                (Permit::Rule { index, http }, Some(Some(expected))) => {
                    assert_eq!(index, expected);
                    assert_eq!(http.is_some(), matches!(message, Message::Http(_)));
                }
                other => panic!("{application:?} {message:?} {other:?}"),
            }
        }
    }
}
