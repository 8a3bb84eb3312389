//! Parts that objects other than policies have in common. Their fields that nobody needs are not looked at; those that are
//! needed have to be right, and may be missing where the API allows it.

use std::net::IpAddr;

use super::cursor::{Cursor, Fields, Report};
use crate::flow::Protocol;
use crate::model::Text;

/// The fields of a part, if it is there.
pub(super) fn section<'a>(fields: &mut Fields<'a>, report: &mut Report, name: &'static str) -> Option<Fields<'a>> {
    fields.take(name)?.fields(report).ok()
}

/// The elements of a list; none if it is not there.
pub(super) fn list<'a>(fields: &mut Fields<'a>, report: &mut Report, name: &'static str) -> Vec<Cursor<'a>> {
    fields.take(name).and_then(|field| field.elements(report).ok()).unwrap_or_default()
}

/// A string; none if it is not there or empty, which the API does not tell apart here.
pub(super) fn text<'a>(fields: &mut Fields<'a>, report: &mut Report, name: &'static str) -> Option<Cursor<'a>> {
    fields.take(name).filter(|field| field.text(report).is_ok_and(|text| !text.is_empty()))
}

/// A string that is kept; none if it is not there or empty.
pub(super) fn owned(fields: &mut Fields<'_>, report: &mut Report, name: &'static str) -> Option<Text> {
    text(fields, report, name).and_then(|field| field.value.as_str().map(Into::into))
}

/// Whether a string is there and is this one.
pub(super) fn is(fields: &mut Fields<'_>, report: &mut Report, name: &'static str, expected: &str) -> bool {
    fields.take(name).is_some_and(|field| field.text(report).is_ok_and(|text| text == expected))
}

/// `true` or `false`, or what holds if it is not there.
pub(super) fn boolean(fields: &mut Fields<'_>, report: &mut Report, name: &'static str, missing: bool) -> bool {
    fields.take(name).and_then(|field| field.boolean(report).ok()).unwrap_or(missing)
}

/// An IP address, IPv4-mapped ones as IPv4.
pub(super) fn address(field: &Cursor<'_>, report: &mut Report) -> Option<IpAddr> {
    let text = field.text(report).ok()?;
    match text.parse::<IpAddr>() {
        Ok(address) => Some(address.to_canonical()),
        Err(_) => {
            report.refused(&field.path, format!("{} is not an IP address", field.shown()));
            None
        }
    }
}

/// `protocol` of a port; TCP if it is not there.
pub(super) fn protocol(fields: &mut Fields<'_>, report: &mut Report) -> Option<Protocol> {
    let Some(field) = text(fields, report, "protocol") else { return Some(Protocol::TCP) };
    match field.value.as_str() {
        Some("TCP") => Some(Protocol::TCP),
        Some("UDP") => Some(Protocol::UDP),
        Some("SCTP") => Some(Protocol::SCTP),
        _ => {
            report.refused(&field.path, format!("{} is not TCP, UDP or SCTP", field.shown()));
            None
        }
    }
}

/// The number of a port.
pub(super) fn port(field: &Cursor<'_>, report: &mut Report) -> Option<u16> {
    field.number(report, 1, 65_535).ok().and_then(|number| u16::try_from(number).ok())
}

#[cfg(test)]
mod tests;
