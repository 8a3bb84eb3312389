//! Against the real kernel, in namespaces made for it (root).

use std::net::IpAddr;

use sluice_contract::id::IfName;

use super::*;
use crate::desired::LinkSettings;
use crate::netlink::VethSpec;
use crate::plan::{Op, Planned};
use crate::state::host_prefix;

fn name(text: &str) -> IfName {
    IfName::new(text).unwrap()
}

async fn veth(host: &Host, near: &str, mac: MacAddr) -> Link {
    let far = name(&format!("{near}-far"));
    let near = name(near);
    let spec = VethSpec {
        name: &near,
        mac: Some(mac),
        up: true,
        peer_name: &far,
        peer_mac: None,
        peer_namespace: None,
        mtu: 1500,
    };
    host.netlink().create_veth(&spec).await.unwrap()
}

fn step(op: Op) -> Planned {
    Planned::new(op, "test")
}

#[tokio::test]
async fn every_change_is_seen_and_a_repeat_is_none() {
    let host = Host::of(Namespace::new_unbound().unwrap()).unwrap();
    let old = veth(&host, "old", MacAddr([2, 0, 0, 0, 0, 1])).await;
    let mut watch = Watch::open(host.namespace(), Watched::ALL).await.unwrap();
    assert!(watch.links().iter().any(|link| link.name == old.name));
    watch.settle().await;

    let pod: IpAddr = "10.0.1.60".parse().unwrap();
    let rule = Rule::from(1536, host_prefix(pod), 2);
    let route = Route::on_link(254, host_prefix(pod), old.name.clone());
    let neighbour = Neighbour::permanent(old.name.clone(), pod, MacAddr([2, 0, 0, 0, 0, 9]));
    let steps = [
        step(Op::AddRule(rule.clone())),
        step(Op::SetRoute { route: route.clone(), before: None }),
        step(Op::SetNeighbour { neighbour: neighbour.clone(), before: None }),
    ];
    host.execute(&steps).await.unwrap();
    let mut events = watch.settle().await;
    events.retain(|event| !matches!(event, Event::Address(..) | Event::Link(..)));
    // IPv6 autoconfiguration of the new link has routes of its own.
    events.retain(|event| !matches!(event, Event::Route(_, route) if route.destination.addr().is_ipv6()));
    assert_eq!(
        events,
        [
            Event::Rule(Change::New, rule.clone()),
            Event::Route(Change::New, route),
            Event::Neighbour(Change::New, neighbour)
        ]
    );
    let gone = [step(Op::AddRule(rule.clone())), step(Op::DeleteRule(rule.clone()))];
    let done = host.execute(&gone).await.unwrap();
    assert_eq!(done.unchanged, 1);
    let rules: Vec<Event> = watch.settle().await.into_iter().filter(|event| matches!(event, Event::Rule(..))).collect();
    assert_eq!(rules, [Event::Rule(Change::Gone, rule)], "a rule that was there is not added again");
}

#[tokio::test]
async fn a_link_is_waited_for_by_its_address() {
    let host = Host::of(Namespace::new_unbound().unwrap()).unwrap();
    let mac = MacAddr([2, 0, 0, 0, 7, 7]);
    let plug = async {
        tokio::task::yield_now().await;
        veth(&host, "other", MacAddr([2, 0, 0, 0, 7, 8])).await;
        veth(&host, "eth1", mac).await
    };
    let (found, made) = tokio::join!(host.wait_for_link(mac, Duration::from_secs(10)), plug);
    assert_eq!(found.unwrap().index, made.index);
    assert_eq!(
        host.wait_for_link(mac, Duration::from_secs(10)).await.unwrap().name,
        name("eth1"),
        "it is there already"
    );
    let never = MacAddr([2, 0, 0, 0, 9, 9]);
    let error = host.wait_for_link(never, Duration::from_millis(20)).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "no link with the address 02:00:00:00:09:09 within 20 ms: is the network interface attached?"
    );
}

#[tokio::test]
async fn who_is_too_slow_is_told_so() {
    let host = Host::of(Namespace::new_unbound().unwrap()).unwrap();
    let mut watch = Watch::open(host.namespace(), Watched::ALL).await.unwrap();
    let rule = |n: u32| Rule::from(1000 + n, host_prefix("10.0.0.1".parse().unwrap()), 2);
    // More than the socket's buffer in the kernel holds.
    let steps: Vec<Planned> = (0..5000).map(|n| step(Op::AddRule(rule(n)))).collect();
    host.execute(&steps).await.unwrap();
    let events = watch.settle().await;
    assert!(events.contains(&Event::Lost), "{} events", events.len());
    host.execute(&[step(Op::DeleteRule(rule(0)))]).await.unwrap();
    assert_eq!(watch.settle().await, [Event::Rule(Change::Gone, rule(0))], "it goes on");
}

#[tokio::test]
async fn of_a_pods_link_it_is_told_that_it_is_new_down_and_gone() {
    let host = Host::of(Namespace::new_unbound().unwrap()).unwrap();
    // Its own addresses come and go when the kernel likes.
    let no_ipv6 = || std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    host.namespace().run(no_ipv6).unwrap().unwrap();
    let mut watch = Watch::open_for_node(host.namespace(), Watched::ALL, "eni").await.unwrap();
    let mut all = Watch::open(host.namespace(), Watched::ALL).await.unwrap();
    let pod = veth(&host, "enia", MacAddr([2, 0, 0, 0, 0, 1])).await;
    let other = veth(&host, "enx", MacAddr([2, 0, 0, 0, 0, 2])).await;
    let up = |name: &IfName, up| {
        let to = LinkSettings { dev: name.clone(), up: Some(up), mtu: None };
        step(Op::SetLink { before: to.clone(), to })
    };
    let far = [&pod, &other].map(|link| name(&format!("{}-far", link.name)));
    host.execute(&far.each_ref().map(|far| up(far, true))).await.unwrap();
    // What is told of the two, as whether it is up; and how much is told in all.
    let told = async |watch: &mut Watch| {
        let (messages, _) = watch.messages_so_far().await;
        let count = messages.len();
        let events: Vec<Event> = messages.into_iter().filter_map(|message| watch.event(message)).collect();
        let of = |name: &IfName| -> Vec<(Change, bool)> {
            let of = events.iter().filter_map(|event| match event {
                Event::Link(change, link) if link.name == *name => Some((*change, link.up)),
                _ => None,
            });
            of.collect()
        };
        (of(&pod.name), of(&other.name), count)
    };
    // That the far end is up the kernel tells of the near one a moment later, in one message or two.
    let (mut steps, mut others, mut count) = told(&mut watch).await;
    let (mut all_steps, mut all_others, mut all_count) = told(&mut all).await;
    let end = std::time::Instant::now() + Duration::from_secs(10);
    while all_steps.len() < 2 || all_others.len() < 2 || others.len() != all_others.len() {
        assert!(std::time::Instant::now() < end, "{all_steps:?}, {others:?}, {all_others:?}");
        for (watch, steps, others, count) in [
            (&mut all, &mut all_steps, &mut all_others, &mut all_count),
            (&mut watch, &mut steps, &mut others, &mut count),
        ] {
            let more = told(watch).await;
            steps.extend(more.0);
            others.extend(more.1);
            *count += more.2;
        }
    }
    assert_eq!(steps, [(Change::New, true)], "this one is made up");
    assert_eq!(others, all_others, "without a prefix all is told of every link");
    assert!(count < all_count, "{count} of {all_count}");

    host.execute(&[up(&pod.name, false)]).await.unwrap();
    assert!(told(&mut watch).await.0.contains(&(Change::New, false)), "it is down");
    host.execute(&[up(&pod.name, true)]).await.unwrap();
    assert_eq!(told(&mut watch).await.0, []);
    host.netlink().delete_link(pod.index).await.unwrap();
    assert!(told(&mut watch).await.0.iter().any(|(change, _)| *change == Change::Gone));
    // The link's own address is in the table local, of which nothing is told.
    let address = Address::new(other.name.clone(), "10.0.0.9/32".parse().unwrap());
    host.execute(&[step(Op::AddAddress(address))]).await.unwrap();
    let (messages, _) = watch.messages_so_far().await;
    assert_eq!(messages.len(), 1, "{messages:?}");
}

#[tokio::test]
async fn what_is_taken_off_the_hooks_is_told() {
    use crate::bpf::testing::{DROP, load};
    use crate::tc::{Existing, Hook, Program, Slot};
    use std::os::fd::AsFd as _;

    let host = Host::of(Namespace::new_unbound().unwrap()).unwrap();
    let link = veth(&host, "eth1", MacAddr([2, 0, 0, 0, 0, 1])).await;
    let mut watch = Watch::open(host.namespace(), Watched { hooks: true, ..Watched::LINKS }).await.unwrap();
    watch.settle().await;
    let program = load(&DROP);
    let program = Program { fd: program.as_fd(), name: "test" };
    host.netlink().attach(link.index, Slot::GATE, &[(Hook::Egress, program)], Existing::Keep).await.unwrap();
    assert_eq!(watch.settle().await, [], "what is put there is not");
    assert!(host.netlink().remove_filter(link.index, Hook::Egress, Slot::GATE).await.unwrap());
    assert!(watch.settle().await.contains(&Event::Hooks(link.index)));
    let deleted = host.namespace().run(|| {
        let arguments = ["qdisc", "del", "dev", "eth1", "clsact"];
        std::process::Command::new("tc").args(arguments).status().expect("tc is needed (iproute2)").success()
    });
    assert!(deleted.unwrap());
    assert!(watch.settle().await.contains(&Event::Hooks(link.index)));
}
