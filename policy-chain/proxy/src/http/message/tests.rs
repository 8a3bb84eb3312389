use sluice_policy_core::l7::http::RawRequest;

use super::*;

fn fields<'a>(list: &[(&'a str, &'a str)]) -> Vec<Field<'a>> {
    list.iter().map(|(name, value)| Field { name: name.as_bytes(), value: value.as_bytes() }).collect()
}

fn plan(method: &str, version: Version, list: &[(&str, &str)]) -> Result<RequestPlan, &'static str> {
    let fields = fields(list);
    let target = if method == "CONNECT" { "a:1" } else { "/" };
    let raw =
        RawRequest { version, method: method.as_bytes(), target: target.as_bytes(), authority: None, fields: &fields };
    plan_request(&Request::new(raw).unwrap(), version)
}

#[test]
fn connections_persist_as_their_version_has_it() {
    let persists = |version, value| plan("GET", version, &[("Host", "a"), ("Connection", value)]).unwrap().persists;
    assert!(persists(Version::Http11, "") && persists(Version::Http11, "x, keep-alive"));
    assert!(!persists(Version::Http11, "keep-alive, CLOSE"));
    assert!(!persists(Version::Http10, "") && persists(Version::Http10, "Keep-Alive"));
}

#[test]
fn upgrades_to_other_http_and_to_tls_are_not_offered() {
    let offers = |version, connection, upgrade| {
        let list = [("Host", "a"), ("Connection", connection), ("Upgrade", upgrade)];
        plan("GET", version, &list).map(|plan| (plan.offers_upgrade, plan.lost_upgrade)).unwrap()
    };
    assert_eq!(offers(Version::Http11, "upgrade", "websocket"), (true, false));
    assert_eq!(offers(Version::Http11, "upgrade", "H2C, WebSocket"), (true, true));
    assert_eq!(offers(Version::Http11, "upgrade", "h2c, HTTP/2.0, h2, TLS/1.2"), (false, true));
    assert_eq!(offers(Version::Http11, "close", "websocket"), (false, false));
    assert_eq!(offers(Version::Http10, "upgrade", "websocket"), (false, false));
}

#[test]
fn a_tunnel_has_no_body() {
    assert!(plan("CONNECT", Version::Http11, &[("Host", "a:1"), ("Content-Length", "0")]).is_ok());
    assert!(plan("CONNECT", Version::Http11, &[("Host", "a:1"), ("Content-Length", "1")]).is_err());
    assert!(plan("POST", Version::Http11, &[("Host", "a"), ("Content-Length", "9223372036854775807")]).is_ok());
    assert!(plan("POST", Version::Http11, &[("Host", "a"), ("Content-Length", "9223372036854775808")]).is_err());
}

#[test]
fn edits_are_made_in_their_order() {
    let edits = [
        Edit::Add { name: "A", value: "1" },
        Edit::Delete { name: "a" },
        Edit::Add { name: "B", value: "2" },
        Edit::Replace { name: "b", value: "3" },
        Edit::Add { name: "B", value: "4" },
    ];
    assert_eq!(added(&edits), [("b", "3"), ("B", "4")]);
}
