//! UDP in others' names, as the DNS proxy speaks it.

use std::collections::HashMap;
use std::io::IoSliceMut;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
use sluice_policy_bpf::layout::DropReason;
use sluice_proxy::flow::Direction;
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::world::*;

/// Forwards what comes to a listener, and the answers back.
pub(crate) async fn forward(socket: std::net::UdpSocket) {
    let socket = UdpSocket::from_std(socket).unwrap();
    let mut known: HashMap<(SocketAddr, SocketAddr), std::rc::Rc<UdpSocket>> = HashMap::new();
    loop {
        socket.readable().await.unwrap();
        let Ok((bytes, client, server)) = socket.try_io(Interest::READABLE, || receive(&socket)) else { continue };
        let upstream = known.entry((client, server)).or_insert_with(|| {
            let (upstream, reply) = datagrams(client, server);
            let upstream = std::rc::Rc::new(upstream);
            let answers = std::rc::Rc::clone(&upstream);
            tokio::task::spawn_local(async move {
                let mut buffer = vec![0; 65536];
                while let Ok(length) = answers.recv(&mut buffer).await {
                    reply.send_to(&buffer[..length], client).unwrap();
                }
            });
            upstream
        });
        upstream.send(&bytes).await.unwrap();
    }
}

/// A datagram, who sent it, and to whom.
fn receive(socket: &UdpSocket) -> std::io::Result<(Vec<u8>, SocketAddr, SocketAddr)> {
    let mut buffer = vec![0; 65536];
    let mut space = nix::cmsg_space!(libc::sockaddr_in6);
    let (length, client, server) = {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
        let server = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Ipv4OrigDstAddr(at) => Some(SocketAddr::new(
                std::net::Ipv4Addr::from(u32::from_be(at.sin_addr.s_addr)).into(),
                u16::from_be(at.sin_port),
            )),
            ControlMessageOwned::Ipv6OrigDstAddr(at) => {
                Some(SocketAddr::new(std::net::Ipv6Addr::from(at.sin6_addr.s6_addr).into(), u16::from_be(at.sin6_port)))
            }
            _ => None,
        });
        let from = message.address.unwrap();
        let client = match (from.as_sockaddr_in(), from.as_sockaddr_in6()) {
            (Some(v4), _) => SocketAddr::from((v4.ip(), v4.port())),
            (_, Some(v6)) => SocketAddr::from((v6.ip(), v6.port())),
            _ => unreachable!("a datagram of another family"),
        };
        (message.bytes, client, server.expect("its original destination"))
    };
    buffer.truncate(length);
    Ok((buffer, client, server))
}

/// A server that says who has asked, and what.
async fn answer(party: &Party, address: &'static str) {
    party
        .run(move || async move {
            let socket = UdpSocket::bind(address).await.unwrap();
            tokio::task::spawn_local(async move {
                let mut buffer = vec![0; 65536];
                loop {
                    let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
                    let mut said = format!("{client}\n").into_bytes();
                    said.extend_from_slice(&buffer[..length]);
                    socket.send_to(&said, client).await.unwrap();
                }
            });
        })
        .await;
}

#[test]
fn queries_and_answers_go_in_the_names_of_client_and_server() {
    on_a_node(|| async {
        let mut world = World::new().await;
        for address in ["10.0.2.9:53", "[2001:db8:0:2::9]:53"] {
            answer(&world.vpc, address).await;
        }
        answer(world.party("c"), "10.0.0.103:53").await;
        world.tell(&policy("a", "a", &[Direction::Egress]));
        let a = world.party("a").clone();
        let asked = ask(&a, "10.0.2.9:53", 10).await;
        assert!(asked.is_err(), "there is no proxy yet");
        assert!(world.drops(DropReason::NoProxy) > 0);
        let _proxy = Proxy::start().await;
        // The last one comes in fragments.
        for (to, length) in
            [("10.0.2.9:53", 30), ("[2001:db8:0:2::9]:53", 30), ("10.0.0.103:53", 30), ("10.0.2.9:53", 20_000)]
        {
            let (own, seen, heard) =
                ask(&a, to, length).await.unwrap_or_else(|error| panic!("{to}, {length}: {error}"));
            assert_eq!(own, seen, "{to}: the server sees the client as it is");
            assert_eq!(heard, length);
        }
        assert_eq!(world.counted("spoofed"), 0);
        // Nobody answers: the pod hears it as without the proxy.
        let refused = a
            .run(|| async {
                let socket = UdpSocket::bind("10.0.0.101:0").await.unwrap();
                socket.connect("10.0.0.102:53").await.unwrap();
                socket.send(b"x").await.unwrap();
                tokio::time::timeout(SILENCE, socket.recv(&mut [0; 8])).await.is_ok_and(|answer| answer.is_ok())
            })
            .await;
        assert!(!refused);
        remove_places().await;
    });
}

/// The client's address, the one that the server saw, and the length of what came back.
async fn ask(from: &Party, to: &'static str, length: usize) -> std::io::Result<(SocketAddr, SocketAddr, usize)> {
    from.run(move || async move {
        let any = if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(to).await?;
        socket.send(&vec![b'q'; length]).await?;
        let mut buffer = vec![0; 65536];
        let received = tokio::time::timeout(SILENCE * 4, socket.recv(&mut buffer)).await;
        let received = received.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))?;
        let text = &buffer[..received];
        let end = text.iter().position(|byte| *byte == b'\n').unwrap();
        let seen: SocketAddr = std::str::from_utf8(&text[..end]).unwrap().parse().unwrap();
        Ok((socket.local_addr()?, seen, received - end - 1))
    })
    .await
}
