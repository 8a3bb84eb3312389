//! Large packets, fragments and what ICMP tells.

use sluice_policy_bpf::layout::DropReason;
use sluice_proxy::flow::Direction;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::world::*;

/// Sends so many bytes and hears them again.
async fn bulk(from: &Party, to: &'static str, bytes: usize) {
    from.run(move || async move {
        let mut stream = TcpStream::connect(to).await.unwrap();
        hello(&mut stream).await.unwrap();
        let (mut read, mut write) = stream.split();
        let say = async {
            let mut left = bytes;
            let chunk: Vec<u8> = (0..=u8::MAX).cycle().take(65536).collect();
            while left > 0 {
                let now = left.min(chunk.len());
                write.write_all(&chunk[..now]).await.unwrap();
                left -= now;
            }
            write.shutdown().await.unwrap();
        };
        let hear = async {
            let (mut heard, mut buffer) = (0_usize, vec![0; 65536]);
            loop {
                match read.read(&mut buffer).await.unwrap() {
                    0 => return heard,
                    length => {
                        for (offset, byte) in buffer[..length].iter().enumerate() {
                            assert_eq!(usize::from(*byte), (heard + offset) % 65536 % 256);
                        }
                        heard += length;
                    }
                }
            }
        };
        let ((), heard) = tokio::join!(say, hear);
        assert_eq!(heard, bytes);
    })
    .await;
}

#[test]
fn bulk_with_large_segments_goes_both_ways_whole() {
    on_a_node(|| async {
        let mut world = World::new().await;
        let mut proxy = Proxy::start().await;
        for address in ["10.0.0.103:8080", "[2001:db8::103]:8080"] {
            world.party("c").serve(address).await;
        }
        world.tell(&policy("a", "a", &[Direction::Egress]));
        world.tell(&policy("c", "c", &[Direction::Ingress]));
        for to in ["10.0.0.103:8080", "[2001:db8::103]:8080"] {
            bulk(world.party("a"), to, 20_000_000).await;
            let directions = [proxy.next().await.flow.direction, proxy.next().await.flow.direction];
            assert!(directions.contains(&Direction::Egress) && directions.contains(&Direction::Ingress));
        }
        assert_eq!(world.drops(DropReason::Malformed), 0);
        remove_places().await;
    });
}

/// Somewhere on the way only 1,300 bytes fit: a router says so, to the pod, and the proxy is who has to hear it.
#[test]
fn a_smaller_mtu_on_the_way_is_learned_by_the_proxy() {
    on_a_node(|| async {
        let mut world = World::new().await;
        let mut proxy = Proxy::start().await;
        sh(
            Some(&world.vpc.namespace),
            "ip link add f0 mtu 1300 type veth peer name f1 mtu 1300
             ip link set f0 up; ip addr add 10.0.3.1/24 dev f0; ip addr add 2001:db8:0:3::1/64 dev f0 nodad",
        );
        let far = far(&world).await;
        for address in ["10.0.3.2:8080", "[2001:db8:0:3::2]:8080"] {
            far.serve(address).await;
        }
        world.tell(&policy("a", "a", &[Direction::Egress]));
        world.tell(&policy("b", "b", &[Direction::Egress]));
        for name in ["a", "b"] {
            for to in ["10.0.3.2:8080", "[2001:db8:0:3::2]:8080"] {
                bulk(world.party(name), to, 3_000_000).await;
                assert_eq!(proxy.next().await.flow.direction, Direction::Egress);
            }
        }
        remove_places().await;
    });
}

/// A host behind the VPC's router.
async fn far(world: &World) -> Party {
    let namespace = sluice_hostnet::netns::Namespace::new_unbound().unwrap();
    let vpc = sluice_hostnet::host::Host::of(world.vpc.namespace.clone()).unwrap();
    let name = sluice_contract::id::IfName::new("f1").unwrap();
    let link = vpc.netlink().link_by_name(&name).await.unwrap().unwrap();
    vpc.netlink().move_link(link.index, &namespace).await.unwrap();
    sh(
        Some(&namespace),
        "ip link set lo up; ip link set f1 up; ip addr add 10.0.3.2/24 dev f1; ip addr add 2001:db8:0:3::2/64 dev f1 nodad
         ip route add default via 10.0.3.1; ip -6 route add default via 2001:db8:0:3::1
         ethtool -K f1 tso off gso off gro off 2>/dev/null || true",
    );
    Party::of(namespace)
}
