//! Limits on what a link sends: a token bucket (`tbf`) as its root qdisc.
//!
//! A link's root qdisc and the clsact that programs stand on are two things: one leaves the other alone. What a pod gets is limited where
//! the host sends it, at the host's end of its veth; what it sends, at its own end. So neither needs an `ingress` qdisc, whose place is
//! clsact's, nor a link in between.

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcHeader, TcMessage, TcOption};

use crate::netlink::{Netlink, NetlinkError, Request};

/// `TCA_TBF_PARMS`, `TCA_TBF_RATE64`, `TCA_TBF_BURST` (`linux/pkt_sched.h`).
const PARMS: u16 = 1;
const RATE64: u16 = 4;
const BURST: u16 = 6;
/// `TC_LINKLAYER_ETHERNET`: the kernel works out itself how long a packet takes.
const ETHERNET: u8 = 1;
/// How long a packet may wait in the bucket; what would wait longer is dropped. As the bandwidth plugin has it.
const WAIT_MILLIS: u64 = 25;
/// The header of an Ethernet frame, in bytes.
const HEADER: u32 = 14;

/// A limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Bytes a second; not 0.
    pub rate: u64,
    /// Bytes that may go at once.
    pub burst: u32,
}

impl Limit {
    /// A limit from bits a second and bits at once, as CNI has them; none for no rate. A burst that is not given, or that is the largest
    /// number of the runtimes that have none to give, is a tenth of a second's worth. It is a whole packet at least, else none would
    /// ever go.
    #[must_use]
    pub fn of_bits(rate: u64, burst: u64, mtu: u32) -> Option<Self> {
        let rate = rate / 8;
        let given = Some(burst / 8).filter(|bytes| *bytes > 0 && burst < i32::MAX.unsigned_abs().into());
        let burst = u32::try_from(given.unwrap_or(rate / 10)).unwrap_or(u32::MAX);
        (rate > 0).then_some(Self { rate, burst: burst.max(mtu.saturating_add(HEADER)) })
    }
}

impl Netlink {
    /// Limits what a link sends, in the place of whatever limit it has.
    ///
    /// # Errors
    /// [`NetlinkError`]; `ENOENT` where the kernel has no token bucket.
    pub async fn limit(&self, index: u32, limit: Limit) -> Result<(), NetlinkError> {
        let handle = TcHandle { major: 1, minor: 0 };
        let header = TcHeader { index: index.cast_signed(), parent: TcHandle::ROOT, handle, ..TcHeader::default() };
        let option = |kind, value: Vec<u8>| TcOption::Other(DefaultNla::new(kind, value));
        let attributes = vec![
            TcAttribute::Kind("tbf".to_owned()),
            TcAttribute::Options(vec![
                option(PARMS, parameters(limit)),
                option(RATE64, limit.rate.to_ne_bytes().to_vec()),
                option(BURST, limit.burst.to_ne_bytes().to_vec()),
            ]),
        ];
        let message = TcMessage::from_parts(header, attributes);
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.change(Request::change(RouteNetlinkMessage::NewQueueDiscipline(message), flags)).await
    }
}

/// `struct tc_tbf_qopt`: two rates, and how much may wait. The rate is the smaller of what fits and what is said in 64 bits; bucket and packet
/// size are said in bytes elsewhere.
fn parameters(limit: Limit) -> Vec<u8> {
    let waiting = limit.rate.saturating_mul(WAIT_MILLIS) / 1000 + u64::from(limit.burst);
    let rate = u32::try_from(limit.rate).unwrap_or(u32::MAX);
    let mut bytes = vec![0, ETHERNET];
    bytes.extend([0; 6]);
    bytes.extend(rate.to_ne_bytes());
    bytes.extend([0; 12]);
    bytes.extend(u32::try_from(waiting).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes
}

#[cfg(test)]
mod tests {
    use sluice_contract::id::IfName;

    use super::*;
    use crate::host::Host;
    use crate::netlink::VethSpec;
    use crate::netns::Namespace;

    #[test]
    fn a_burst_holds_a_packet_and_is_a_tenth_of_a_second_where_none_is_given() {
        let limit = |rate, burst| Limit::of_bits(rate, burst, 9001);
        assert_eq!(limit(0, 8000), None);
        assert_eq!(limit(80_000_000, 0), Some(Limit { rate: 10_000_000, burst: 1_000_000 }));
        assert_eq!(
            limit(80_000_000, i32::MAX.unsigned_abs().into()),
            Some(Limit { rate: 10_000_000, burst: 1_000_000 })
        );
        assert_eq!(limit(80_000_000, 8_000_000), Some(Limit { rate: 10_000_000, burst: 1_000_000 }));
        assert_eq!(limit(8_000_000, 8), Some(Limit { rate: 1_000_000, burst: 9015 }));
    }

    #[tokio::test]
    async fn a_link_has_its_limit_beside_the_hooks_and_a_new_one_takes_its_place() {
        let namespace = Namespace::new_unbound().expect("the tests run as root");
        let other = Namespace::new_unbound().unwrap();
        let host = Host::of(namespace.clone()).unwrap();
        let spec = VethSpec {
            name: &IfName::new("a").unwrap(),
            mac: None,
            up: true,
            peer_name: &IfName::new("b").unwrap(),
            peer_mac: None,
            peer_namespace: Some(&other),
            mtu: 1500,
        };
        let link = host.netlink().create_veth(&spec).await.unwrap();
        let shown = || {
            let run = || std::process::Command::new("tc").args(["qdisc", "show", "dev", "a"]).output();
            let output = namespace.run(run).unwrap().expect("apt-get install iproute2");
            String::from_utf8(output.stdout).unwrap()
        };
        host.netlink().ensure_clsact(link.index).await.unwrap();
        host.netlink().limit(link.index, Limit { rate: 1_250_000, burst: 125_000 }).await.unwrap();
        assert!(shown().contains("tbf 1: root") && shown().contains("rate 10Mbit"), "{}", shown());
        // More than 32 bits of bytes a second.
        host.netlink().limit(link.index, Limit { rate: 12_500_000_000, burst: 125_000_000 }).await.unwrap();
        assert!(shown().contains("rate 100Gbit") && shown().contains("clsact"), "{}", shown());
        assert_eq!(shown().lines().count(), 2, "{}", shown());
    }
}
