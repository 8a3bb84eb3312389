//! What the kernel need not tell: a program of classic BPF at the socket (`SO_ATTACH_FILTER`, socket(7)).
//!
//! A pod that comes makes some twenty messages, of which two or three say something. The others would be copied, woken up for, read
//! and decoded by every daemon of the node, for every pod.

use std::io;

use netlink_sys::Socket;
use socket2::{SockFilter, SockRef};

/// Types of messages (linux/rtnetlink.h).
const NEW_LINK: u32 = 16;
const NEW_ROUTE: u32 = 24;
const DELETED_ROUTE: u32 = 25;
const NEW_QDISC: u32 = 36;
const NEW_FILTER: u32 = 44;
const NEW_CHAIN: u32 = 100;
const DELETED_CHAIN: u32 = 101;

/// Octets of a message: `struct nlmsghdr`, then `struct rtmsg` or `struct ifinfomsg`, then the attributes.
const TYPE: u32 = 4 + LOW_OCTET_OF_16;
const ROUTE_TABLE: u32 = 16 + 4;
const LINK_FLAGS: u32 = 16 + 8 + LOW_OCTET_OF_32;
const LINK_CHANGE: u32 = 16 + 12;
const FIRST_ATTRIBUTE: u32 = 16 + 16;
/// Numbers are in the machine's order, and a single octet is read of them.
const LOW_OCTET_OF_16: u32 = if cfg!(target_endian = "big") { 1 } else { 0 };
const LOW_OCTET_OF_32: u32 = if cfg!(target_endian = "big") { 3 } else { 0 };

/// Routes of the machine's own addresses, and of groups and broadcast: the kernel's own business (`RT_TABLE_LOCAL`).
const TABLE_LOCAL: u32 = 255;
const IFF_UP: u32 = 1;
/// The first attribute of a link.
const IFLA_IFNAME: u32 = 3;
/// `ifi_change` of a link that is new: all that it is has changed.
const IS_NEW: u32 = u32::MAX;

/// Where a jump leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    Next,
    Route,
    Link,
    Pass,
    Drop,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// Reads an octet.
    Octet(u32),
    /// Reads four octets, which mean the same in any order.
    Word(u32),
    /// Whether what was read is this.
    Is(u32, To, To),
    /// Whether what was read has one of these bits.
    Has(u32, To, To),
    End(To),
}

/// Passes over what a watch does not tell of: what comes to the hooks of links (only what goes is told), and the table `local`. Links
/// whose names begin with `pods` are told of when they are new, down and gone, and not of the steps by which they come up.
pub(super) fn attach(socket: &Socket, pods: Option<&str>) -> io::Result<()> {
    SockRef::from(socket).attach_filter(&program(pods))
}

fn program(pods: Option<&str>) -> Vec<SockFilter> {
    use Step::{End, Has, Is, Octet, Word};
    use To::{Drop, Link, Next, Pass, Route};
    let start = [
        Octet(TYPE),
        Is(NEW_QDISC, Drop, Next),
        Is(NEW_FILTER, Drop, Next),
        Is(NEW_CHAIN, Drop, Next),
        Is(DELETED_CHAIN, Drop, Next),
        Is(NEW_ROUTE, Route, Next),
        Is(DELETED_ROUTE, Route, Next),
        Is(NEW_LINK, Link, Pass),
    ];
    let route = [Octet(ROUTE_TABLE), Is(TABLE_LOCAL, Drop, Pass)];
    let mut link = vec![End(Pass)];
    if let Some(pods) = pods {
        link = vec![
            Word(LINK_CHANGE),
            Is(IS_NEW, Pass, Next),
            Octet(LINK_FLAGS),
            Has(IFF_UP, Next, Pass),
            Octet(FIRST_ATTRIBUTE + 2 + LOW_OCTET_OF_16),
            Is(IFLA_IFNAME, Next, Pass),
        ];
        for (at, octet) in (FIRST_ATTRIBUTE + 4..).zip(pods.bytes()) {
            link.extend([Octet(at), Is(octet.into(), Next, Pass)]);
        }
        link.push(End(Drop));
    }
    let (routes, links) = (start.len(), start.len() + route.len());
    let pass = links + link.len();
    let steps = start.into_iter().chain(route).chain(link).chain([End(Pass), End(Drop)]);
    let place = |to| match to {
        Next => 0,
        Route => routes,
        Link => links,
        Pass => pass,
        Drop => pass + 1,
    };
    let code = |code: u32| u16::try_from(code).unwrap_or_default();
    let encode = |(at, step): (usize, Step)| {
        // Names have 15 octets at the most, so that all is in reach.
        let jump = |to: To| u8::try_from(place(to).saturating_sub(at + 1)).unwrap_or(u8::MAX);
        let read = |size, from| SockFilter::new(code(libc::BPF_LD | size | libc::BPF_ABS), 0, 0, from);
        let test =
            |how, value, yes, no| SockFilter::new(code(libc::BPF_JMP | how | libc::BPF_K), jump(yes), jump(no), value);
        match step {
            Octet(from) => read(libc::BPF_B, from),
            Word(from) => read(libc::BPF_W, from),
            Is(value, yes, no) => test(libc::BPF_JEQ, value, yes, no),
            Has(bits, yes, no) => test(libc::BPF_JSET, bits, yes, no),
            End(to) => SockFilter::new(code(libc::BPF_RET | libc::BPF_K), 0, 0, if to == Pass { u32::MAX } else { 0 }),
        }
    };
    steps.enumerate().map(encode).collect()
}
