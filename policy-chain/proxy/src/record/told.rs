//! Records as policyd is told them.

use std::time::SystemTime;

use sluice_contract::proxy::Pod;
use sluice_contract::proxy::record::{AT_ONCE, Kind as ToldKind, Record as Told, Records};
use sluice_policy_core::flow::Direction;
use sluice_policy_core::l7::http::Version;

use super::ring::Ring;
use super::{Kind, Record};

/// The newest records with numbers above `after`, as many as are told at once, and the number of the last; none: there are
/// no new ones.
pub(crate) fn since(ring: &Ring, after: u64) -> Option<(Records, u64)> {
    let new = ring.after(after, AT_ONCE);
    let (last, _) = new.last()?;
    let told = u64::try_from(new.len()).unwrap_or(u64::MAX);
    let lost = last.saturating_sub(after).saturating_sub(told);
    Some((Records { lost, records: new.iter().map(|(_, record)| of(record)).collect() }, *last))
}

fn of(record: &Record) -> Told {
    let Record { flow, backend, pod, time, kind, passes, rule, reason, would_pass, latency, bytes: _ } = record;
    let micros = |duration: std::time::Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let told = match kind {
        Kind::Http { asked, status, version, .. } => ToldKind::Http {
            method: asked.method().to_owned(),
            path: asked.path().to_owned(),
            host: asked.host().to_owned(),
            status: *status,
            version: match version {
                Version::Http10 => "HTTP/1.0",
                Version::Http11 => "HTTP/1.1",
                Version::Http2 => "HTTP/2",
            }
            .to_owned(),
        },
        Kind::Dns { name, qtype, rcode, addresses } => {
            ToldKind::Dns { name: name.to_string(), qtype: *qtype, rcode: *rcode, addresses: addresses.to_vec() }
        }
        Kind::Tls { server_name } => ToldKind::Tls { server_name: server_name.as_deref().map(str::to_owned) },
        Kind::Connection => ToldKind::Connection,
    };
    Told {
        time_us: micros(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()),
        egress: flow.direction == Direction::Egress,
        pod: pod.as_ref().map(|pod| Pod { namespace: pod.namespace.to_string(), name: pod.name.to_string() }),
        client: flow.client,
        server: flow.server,
        backend: backend.filter(|backend| *backend != flow.server),
        // A question that came by TCP is not told from one by UDP.
        udp: matches!(kind, Kind::Dns { .. }),
        kind: told,
        passes: *passes,
        rule: rule.as_deref().map(str::to_owned),
        reason: reason.to_string(),
        would_pass: *would_pass,
        latency_us: micros(*latency),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Recorder as _;
    use crate::record::tests::request;

    #[test]
    fn the_newest_are_told_and_the_others_are_counted() {
        let ring = Ring::new(10_000, 1);
        assert_eq!(since(&ring, 0), None);
        (0..AT_ONCE + 10).for_each(|_| ring.record(request("/", true)));
        let (told, last) = since(&ring, 0).unwrap();
        assert_eq!((told.lost, told.records.len(), last), (10, AT_ONCE, u64::try_from(AT_ONCE).unwrap() + 10));
        assert_eq!(since(&ring, last), None);
        ring.record(request("/new", false));
        let (told, _) = since(&ring, last).unwrap();
        assert_eq!((told.lost, told.records.len()), (0, 1));
        let ToldKind::Http { path, status, .. } = &told.records[0].kind else { panic!("it is HTTP") };
        assert_eq!((path.as_str(), *status, told.records[0].passes), ("/new", Some(403), false));
    }
}
