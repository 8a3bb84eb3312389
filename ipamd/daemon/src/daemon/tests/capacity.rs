//! How many pods a node can hold, and how many its kubelet takes.

use super::burst::burst;
use super::*;
use crate::cluster::Told;
use crate::inbox::Input;

/// An instance type, settings, and the ENIs and addresses that a node of it can hold with them.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], (u32, u32));

#[tokio::test(start_paused = true)]
async fn what_a_node_can_hold_is_shown_as_the_settings_have_it() {
    let prefixes = ("ENABLE_PREFIX_DELEGATION", "true");
    let two = ("MAX_ENI", "2");
    let v6 = [("ENABLE_IPv4", "false"), ("ENABLE_IPv6", "true")];
    let trunk = [("ENABLE_POD_ENI", "true"), ("MY_NODE_NAME", "n1")];
    let cases: [Case<'_>; 9] = [
        ("m5.large", &[], (3, 27)),
        ("m5.large", &[prefixes], (3, 27 * 16)),
        ("m5.large", &[two], (2, 18)),
        ("m5.large", &[prefixes, two], (2, 18 * 16)),
        // A place is kept for the trunk.
        ("m5.large", &trunk, (3, 18)),
        ("m5.large", &[("ENABLE_IPv6", "true")], (3, 27)),
        ("m5.large", &v6, (3, 1022)),
        ("c6in.32xlarge", &[], (8, 8 * 49)),
        ("c6in.32xlarge", &[("ENABLE_MULTI_NIC", "true")], (16, 16 * 49)),
    ];
    for (kind, settings, expected) in cases {
        let mut world = World::with(Settings::aws(), kind, "10.0.1.0/24");
        for (name, value) in settings {
            world.set(name, value);
        }
        let node = world.settled().await;
        let view = node.view().await;
        assert_eq!((view.pool.max_enis, view.pool.max_addresses), expected, "{kind} {settings:?}");
        let shown = view.node.unwrap();
        assert_eq!(shown.limited_by_setting, settings.contains(&two), "{kind} {settings:?}");
        let helps = !settings.contains(&prefixes) && !settings.contains(&v6[0]);
        assert_eq!(shown.prefixes_would_help, helps, "{kind} {settings:?}");
        node.metrics.set_pool(&view.pool);
        assert_eq!(node.counted("awscni_ip_max"), u64::from(expected.1));
        assert_eq!(node.counted("awscni_eni_max"), u64::from(expected.0));
        node.stop().await;
    }
}

/// The VPC CNI adds one ENI after the other until it has as many addresses as the kubelet takes pods: 29, 58, 87, 116.
#[tokio::test(start_paused = true)]
async fn the_pool_ends_where_the_kubelet_takes_no_more_pods() {
    let tell = async |node: &Node, pods: u32| node.handle.send(Input::Told(Told::MaxPods(pods))).await;
    let mut world = World::new("m5.4xlarge");
    let node = world.settled().await;
    assert_eq!(node.view().await.node.unwrap().max_pods, None);
    tell(&node, 110).await;
    burst(&world, &node, "p", 90).await;
    let held = |view: &View| (view.pool.enis, view.pool.total);
    let view = node.wait("a settled pool", View::is_settled).await;
    assert_eq!((held(&view), view.pool.free), ((4, 116), 26));
    assert_eq!(view.node.unwrap().max_pods, Some(110));
    // It is known after a restart, with no API server.
    node.kill().await;
    let node = world.start().await;
    assert_eq!(node.view().await.node.unwrap().max_pods, Some(110));
    let view = node.wait("a settled pool", View::is_settled).await;
    assert_eq!(held(&view), (4, 116));
    // And followed: by the type it is 234, and one ENI's worth is kept spare.
    tell(&node, 234).await;
    node.wait("one ENI more", |view| view.is_settled() && held(view) == (5, 145)).await;
    world.agrees(&node).await;
    node.stop().await;
}
