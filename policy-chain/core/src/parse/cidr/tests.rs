use serde_json::Value;

use super::{CidrForm, cidr};
use crate::parse::cursor::{Cursor, Report};

fn read(text: &str, form: CidrForm) -> (Option<String>, Vec<String>) {
    let value = Value::String(text.to_owned());
    let mut report = Report::default();
    let net = cidr(&Cursor { value: &value, path: "c".to_owned() }, &mut report, form);
    let told = report.into_issues().into_iter().map(|issue| format!("{:?} {}", issue.severity, issue.message));
    (net.ok().map(|net| net.to_string()), told.collect())
}

#[test]
fn blocks() {
    const NONE: &str = "is not an address block, such as 10.0.0.0/8 or fd00::/8";
    const MAPPED: &str = "is an IPv4 block written as IPv6; write it as IPv4";
    let good = |net: &str| (Some(net.to_owned()), Vec::new());
    let warned = |net: &str, why: &str| (Some(net.to_owned()), vec![format!("Warning {why}; it is used as {net}")]);
    let bad = |severity: &str, text: &str, why: &str| (None, vec![format!("{severity} {text:?} {why}")]);
    for form in [CidrForm::Sloppy, CidrForm::Strict, CidrForm::Unchecked] {
        for text in ["0.0.0.0/0", "10.0.0.0/8", "10.1.2.3/32", "::/0", "fd00::/8", "2001:db8::1/128"] {
            assert_eq!(read(text, form), good(text));
        }
        // Text that is good but not short is no fault.
        assert_eq!(read("FD00:0:0:0:0:0:0:0/8", form), good("fd00::/8"));
        assert_eq!(read("192.168.1.1/4", form), warned("192.0.0.0/4", "\"192.168.1.1/4\" has host bits"));
        assert_eq!(read("2001:db8::1/32", form), warned("2001:db8::/32", "\"2001:db8::1/32\" has host bits"));
        let severity = if form == CidrForm::Unchecked { "Unusable" } else { "Refused" };
        for text in [
            "",
            "/",
            "10.0.0.0",
            "10.0.0.0/",
            "/8",
            "10.0.0.0/33",
            "::/129",
            "10.0.0/8",
            "10.0.0.0.0/8",
            "10.0.0.0/8/8",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            " 10.0.0.0/8",
            "10.0.0.0/8 ",
            "10.0.0.0/256",
            "fe80::1%eth0/64",
            "256.0.0.0/8",
            "a.b.c.d/8",
            "...../8",
            ":::/0",
            "10..0.0/8",
        ] {
            assert_eq!(read(text, form), bad(severity, text, NONE));
        }
        let long = format!("10.0.0.0/{}8", "0".repeat(1000));
        assert_eq!(read(&long, form).0, None);
    }

    let sloppy = |text: &str| read(text, CidrForm::Sloppy);
    assert_eq!(sloppy("010.000.0.08/08"), warned("10.0.0.0/8", "\"010.000.0.08/08\" has host bits"));
    assert_eq!(sloppy("010.0.0.0/8"), warned("10.0.0.0/8", "\"010.0.0.0/8\" has zeros before its numbers"));
    assert_eq!(sloppy("10.0.0.0/08"), warned("10.0.0.0/8", "\"10.0.0.0/08\" has zeros before its numbers"));
    let mapped = "is an IPv4 block written as IPv6";
    assert_eq!(sloppy("::ffff:10.0.0.0/104"), warned("10.0.0.0/8", &format!("\"::ffff:10.0.0.0/104\" {mapped}")));
    assert_eq!(sloppy("::ffff:1.2.3.4/128"), warned("1.2.3.4/32", &format!("\"::ffff:1.2.3.4/128\" {mapped}")));
    assert_eq!(sloppy("::ffff:a00:1/104"), warned("10.0.0.0/8", &format!("\"::ffff:a00:1/104\" {mapped}")));
    assert_eq!(sloppy("::ffff:0:0/96"), warned("0.0.0.0/0", &format!("\"::ffff:0:0/96\" {mapped}")));
    // Wider than all of IPv4: an IPv6 block, in which no packet's address of IPv4 lies.
    assert_eq!(sloppy("::ffff:1.2.3.4/64"), warned("::/64", "\"::ffff:1.2.3.4/64\" has host bits"));

    for (form, severity) in [(CidrForm::Strict, "Refused"), (CidrForm::Unchecked, "Unusable")] {
        for text in ["010.0.0.0/8", "10.0.0.0/08"] {
            assert_eq!(read(text, form), bad(severity, text, NONE));
        }
        for text in ["::ffff:10.0.0.0/104", "::ffff:1.2.3.4/64"] {
            assert_eq!(read(text, form), bad(severity, text, MAPPED));
        }
    }
}
