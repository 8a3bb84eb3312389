//! The VPC changes while pods run: its security groups, the primary ENI's, and its CIDRs.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use sluice_contract::id::SecurityGroupId;
use sluice_tests::bed::{Bed, BedError, INTERNET, add_pods, ask, scene, serve};
use sluice_tests::privileged::privileged;
use sluice_vpcsim::deployment::{Deployment, Pod};
use sluice_vpcsim::model::api::{
    AttachNetworkInterface, AuthorizeSecurityGroupIngress, CreateNetworkInterface, CreateSecurityGroup, CreateSubnet,
    EniAttribute, ModifyNetworkInterfaceAttribute, RevokeSecurityGroupIngress,
};
use sluice_vpcsim::model::state::{Eni, Permission, Tags};
use sluice_vpcsim::model::{Reply, Request};
use sluice_vpcsim::probe::{self, ECHO_PORT};
use sluice_vpcsim::world::Service;
use tokio::process::Command;

/// How long ipamd may take to act on what it looks at once a minute.
const LEARNT: Duration = Duration::from_secs(180);

async fn call(bed: &Bed, request: impl Into<Request>) -> Reply {
    bed.world.call(request).await.unwrap()
}

/// Looks again and again until something holds; what others have changed by then, packets have followed.
async fn until(bed: &Bed, node: &Deployment, what: &str, holds: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < LEARNT, "{what}: not within {LEARNT:?}\n{}", node.log_tail(40));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bed.world.edit(|_, _| ()).await;
}

/// Whether a pod reaches another one; then in its own name.
async fn reaches(node: &Deployment, from: &Pod, to: &Pod) -> bool {
    match ask(node, from, to.address).await {
        Ok(seen) => {
            assert_eq!(seen, from.address);
            true
        }
        Err(BedError::Unreachable { .. }) => false,
        Err(error) => panic!("{error}"),
    }
}

/// The ENIs of a node, as EC2 knows them, the primary one first.
fn enis(bed: &Bed, node: &str) -> Vec<Eni> {
    let id = bed.world.instance(node).unwrap();
    bed.world.look(|model, _| model.state().attached(id).into_iter().cloned().collect())
}

/// Two pods that serve, on the primary ENI and on the second one.
async fn one_on_each_eni(bed: &Bed, node: &Deployment) -> [Pod; 2] {
    let mut pods = add_pods(node, "default", "p", 10).await.unwrap();
    let pods = [pods.remove(0), pods.remove(8)];
    assert_eq!(pods.each_ref().map(|pod| bed.device_of(pod.address)), [Some(0), Some(1)]);
    for pod in &pods {
        serve(node, pod).await.unwrap();
    }
    pods
}

/// The groups of the primary ENI are followed on all ENIs (`follow_groups` of the planner), and packets of pods meet them on each.
#[tokio::test(flavor = "multi_thread")]
async fn pods_on_each_eni_meet_the_security_groups_that_the_primary_has_by_now() {
    if !privileged() {
        return;
    }
    let bed = Bed::up(&scene(0.1), &[("MAX_ENI", "2")]).await.unwrap();
    let (here, there) = (bed.node("node-a").unwrap(), bed.node("node-b").unwrap());
    let pods = one_on_each_eni(&bed, here).await;
    let other = there.add("default", "other").await.unwrap();
    serve(there, &other).await.unwrap();
    let vpc = bed.world.vpc("main").unwrap().clone();
    let (group, members) = bed.world.look(|model, _| {
        let group = model.state().vpcs[&vpc].default_security_group.clone();
        let ingress = &model.state().security_groups[&group].ingress;
        let members = ingress.iter().find(|permission| permission.groups == [group.clone()]).unwrap();
        (group, members.clone())
    });
    let in_by_members = || vec![members.clone()];
    for pod in &pods {
        assert!(reaches(there, &other, pod).await && reaches(here, pod, &other).await, "{}", pod.address);
    }

    // The group's members let each other in no longer: no ENI does, and what stays on a node meets no group.
    call(&bed, RevokeSecurityGroupIngress { group: group.clone(), permissions: in_by_members() }).await;
    for pod in &pods {
        assert!(!reaches(there, &other, pod).await && !reaches(here, pod, &other).await, "{}", pod.address);
    }
    assert!(reaches(here, &pods[0], &pods[1]).await);
    let (_, public) = bed.addresses_of("node-a").unwrap();
    for pod in &pods {
        assert_eq!(ask(here, pod, INTERNET).await.unwrap(), public, "what goes out is another matter");
    }
    call(&bed, AuthorizeSecurityGroupIngress { group: group.clone(), permissions: in_by_members() }).await;
    for pod in &pods {
        assert!(reaches(there, &other, pod).await && reaches(here, pod, &other).await, "{}", pod.address);
    }

    // Another group for the primary ENI, which lets nobody in: the other one gets it from ipamd.
    let create = CreateSecurityGroup { vpc, name: "web".into(), description: "web".into(), tags: Tags::new() };
    let Reply::SecurityGroup(web) = call(&bed, create).await else { panic!("a group") };
    let have = |group: &SecurityGroupId| enis(&bed, "node-a").iter().all(|eni| eni.groups == [group.clone()]);
    let primary = enis(&bed, "node-a").remove(0).id;
    let change =
        |groups| ModifyNetworkInterfaceAttribute { eni: primary.clone(), attribute: EniAttribute::Groups(groups) };
    call(&bed, change(vec![web.id.clone()])).await;
    until(&bed, here, "the groups of the second ENI", async || have(&web.id)).await;
    for pod in &pods {
        assert!(!reaches(there, &other, pod).await, "{}: nobody is let in", pod.address);
        assert!(!reaches(here, pod, &other).await, "{}: it is no member of the other's group", pod.address);
    }
    let from = |group: &SecurityGroupId| {
        vec![Permission { protocol: "-1".into(), groups: vec![group.clone()], ..Permission::default() }]
    };
    call(&bed, AuthorizeSecurityGroupIngress { group: web.id.clone(), permissions: from(&group) }).await;
    for pod in &pods {
        assert!(reaches(there, &other, pod).await, "{}: the other's group is let in", pod.address);
        assert!(!reaches(here, pod, &other).await, "{}: and not the other way round", pod.address);
    }
    call(&bed, AuthorizeSecurityGroupIngress { group, permissions: from(&web.id) }).await;
    for pod in &pods {
        assert!(reaches(here, pod, &other).await, "{}", pod.address);
    }
    assert_eq!(bed.world.dropped().await.unwrap(), []);
}

/// Associates `cidr` with the VPC of the machine `host`, and gives this an ENI in a subnet of it, with an echo server. Its address.
async fn host_in(bed: &Bed, cidr: Ipv4Net, subnet: Ipv4Net) -> Ipv4Addr {
    let vpc = bed.world.vpc("main").unwrap().clone();
    bed.world.edit(|model, _| model.add_vpc_cidr(&vpc, cidr)).await.unwrap();
    let zone = Some("us-east-1a".to_owned());
    let create = CreateSubnet { vpc, cidr: subnet, ipv6_cidr: None, availability_zone: zone, tags: Tags::new() };
    let Reply::Subnet(made) = call(bed, create).await else { panic!("a subnet") };
    let Reply::NetworkInterface(eni) = call(bed, CreateNetworkInterface::new(made.id)).await else { panic!("an ENI") };
    let instance = bed.world.instance("host").unwrap().clone();
    call(bed, AttachNetworkInterface { eni: eni.id.clone(), instance, card: 0, device: 1 }).await;
    let link = bed.world.link_of(&eni.id).await.unwrap();
    let machine = bed.world.node("host").unwrap();
    let (own, router) = (eni.primary, subnet.hosts().next().unwrap());
    let length = subnet.prefix_len();
    // What a distribution does with a second ENI: it answers by the one that it was asked at.
    for line in [
        format!("link set {link} up"),
        format!("address add {own}/{length} dev {link}"),
        format!("route add default via {router} dev {link} table 100"),
        format!("rule add from {own} lookup 100"),
    ] {
        let mut command = Command::new("ip");
        command.args(line.split_whitespace()).stdout(Stdio::null()).stderr(Stdio::piped());
        let output = machine.spawn(command).await.unwrap().wait_with_output().await.unwrap();
        assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let to = SocketAddr::from((own, ECHO_PORT));
    machine.run_async(move || probe::serve_in_background(to)).await.unwrap().unwrap();
    own
}

/// Issue F: the VPC's CIDRs are what they are now, not what they were when the node started.
#[tokio::test(flavor = "multi_thread")]
async fn a_cidr_that_the_vpc_gets_later_is_reached_in_pods_own_names_without_a_restart() {
    if !privileged() {
        return;
    }
    let scene = scene(0.1).replace("instances:\n", "instances:\n  host: {type: t3.micro, subnet: main/nodes}\n");
    let bed = Bed::up_on(&scene, |name| name == "node-a", &[("MAX_ENI", "2")]).await.unwrap();
    let node = bed.node("node-a").unwrap();
    let pods = one_on_each_eni(&bed, node).await;
    let (own, _) = bed.addresses_of("node-a").unwrap();
    // The node does not hear of it yet.
    bed.world.stop_service(Service::Imds).await;
    let host = host_in(&bed, "100.64.0.0/16".parse().unwrap(), "100.64.1.0/24".parse().unwrap()).await;
    for pod in &pods {
        assert_eq!(ask(node, pod, host).await.unwrap(), own, "as what is outside, in the node's name");
    }
    bed.world.start_service(Service::Imds).await.unwrap();
    for pod in &pods {
        let in_its_own = async || ask(node, pod, host).await.is_ok_and(|seen| seen == pod.address);
        until(&bed, node, "the pod's own address", in_its_own).await;
    }
    assert_eq!(bed.world.dropped().await.unwrap(), [], "and by the ENI that has it");
}
