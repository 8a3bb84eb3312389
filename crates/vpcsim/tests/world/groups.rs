//! Security groups as packets meet them, set by EC2's calls. Needs root.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use sluice_contract::id::{EniId, SecurityGroupId};
use sluice_vpcsim::model::Reply;
use sluice_vpcsim::model::api::{
    AuthorizeSecurityGroupIngress, CreateSecurityGroup, EniAttribute, ModifyNetworkInterfaceAttribute, Request,
    RevokeSecurityGroupEgress, RevokeSecurityGroupIngress,
};
use sluice_vpcsim::model::state::{Permission, Tags};
use sluice_vpcsim::probe;
use sluice_vpcsim::world::World;

use crate::privileged;

const SCENE: &str = "
time_scale: 0
throttle: false
vpcs:
  main:
    cidrs: [10.0.0.0/16]
    internet_gateway: true
    enforce_security_groups: true
    subnets: {public: {cidr: 10.0.1.0/24, routes: {0.0.0.0/0: internet-gateway}}}
instances:
  a: {type: t3.micro, subnet: main/public, public_address: true}
  b: {type: t3.micro, subnet: main/public, public_address: true}
internet_hosts: [198.51.100.10]
";
const INTERNET: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
const PORT: u16 = probe::ECHO_PORT;
/// Long enough for an answer on a loaded machine, short enough to wait for one that must not come.
const SHORT: Duration = Duration::from_secs(1);

struct Ground {
    world: World,
    /// ENI, private and public address of `a` and `b`.
    machines: [(EniId, Ipv4Addr, Ipv4Addr); 2],
}

impl Ground {
    async fn up() -> Self {
        let world = World::up(&SCENE.parse().unwrap()).await.unwrap();
        let machines = ["a", "b"].map(|name| {
            let id = world.instance(name).unwrap();
            world.look(|model, _| {
                let eni = model.state().attached(id).remove(0);
                (eni.id.clone(), eni.primary, eni.association.as_ref().unwrap().public_ip)
            })
        });
        for (name, (_, address, _)) in ["a", "b"].into_iter().zip(&machines) {
            let to = SocketAddrV4::new(*address, PORT);
            let node = world.node(name).unwrap();
            node.run_async(move || probe::serve_in_background(to)).await.unwrap().unwrap();
        }
        Self { world, machines }
    }

    async fn call(&self, request: impl Into<Request>) -> Reply {
        self.world.call(request).await.unwrap_or_else(|failure| panic!("{failure:?}"))
    }

    /// Whether a machine opens a connection.
    async fn reaches(&self, from: &str, to: Ipv4Addr) -> bool {
        let to = SocketAddrV4::new(to, PORT);
        self.world.node(from).unwrap().run_async(move || probe::tcp(None, to, SHORT)).await.unwrap().is_ok()
    }

    async fn is_reached_from_outside(&self, machine: usize) -> bool {
        let to = SocketAddrV4::new(self.machines[machine].2, PORT);
        self.world.internet().await.run(move || probe::tcp(None, to, SHORT)).await.unwrap().is_ok()
    }

    fn default_group(&self) -> SecurityGroupId {
        let vpc = self.world.vpc("main").unwrap();
        self.world.look(|model, _| model.state().vpcs[vpc].default_security_group.clone())
    }
}

fn tcp(port: i32, cidr: &str) -> Permission {
    Permission {
        protocol: "tcp".into(),
        from_port: Some(port),
        to_port: Some(port),
        cidrs: vec![cidr.parse().unwrap()],
        ..Permission::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn packets_obey_the_groups_of_both_ends_and_answers_follow_their_connection() {
    if !privileged() {
        return;
    }
    let ground = Ground::up().await;
    let [(_, a, _), (other, b, _)] = ground.machines.clone();
    // The default group: its members let each other in, and everything out; answers come in.
    assert!(ground.reaches("a", b).await && ground.reaches("b", a).await);
    assert!(ground.reaches("a", INTERNET).await);
    assert!(!ground.is_reached_from_outside(0).await);

    // Another group for b: it is no member any more, nobody is let in, and it lets all out.
    let vpc = ground.world.vpc("main").unwrap().clone();
    let create = CreateSecurityGroup { vpc, name: "web".into(), description: "web".into(), tags: Tags::new() };
    let Reply::SecurityGroup(web) = ground.call(create).await else { panic!("a group") };
    let attribute = EniAttribute::Groups(vec![web.id.clone()]);
    ground.call(ModifyNetworkInterfaceAttribute { eni: other, attribute }).await;
    assert!(!ground.reaches("a", b).await, "web lets nobody in");
    assert!(!ground.reaches("b", a).await, "b is no member of the default group");
    assert!(ground.reaches("b", INTERNET).await);

    // A port for everybody, one way.
    let open = vec![tcp(i32::from(PORT), "0.0.0.0/0")];
    ground.call(AuthorizeSecurityGroupIngress { group: web.id.clone(), permissions: open.clone() }).await;
    assert!(ground.reaches("a", b).await && ground.is_reached_from_outside(1).await);
    assert!(!ground.reaches("b", a).await);
    // A group as peer.
    let group = ground.default_group();
    let from_web = Permission { protocol: "-1".into(), groups: vec![web.id.clone()], ..Permission::default() };
    ground.call(AuthorizeSecurityGroupIngress { group: group.clone(), permissions: vec![from_web] }).await;
    assert!(ground.reaches("b", a).await);

    // What is taken back holds no longer, on the way in and on the way out.
    ground.call(RevokeSecurityGroupIngress { group: web.id.clone(), permissions: open }).await;
    assert!(!ground.reaches("a", b).await && !ground.is_reached_from_outside(1).await);
    let everything = ground.world.look(|model, _| model.state().security_groups[&web.id].egress.clone());
    ground.call(RevokeSecurityGroupEgress { group: web.id, permissions: everything }).await;
    assert!(!ground.reaches("b", a).await && !ground.reaches("b", INTERNET).await);
    assert!(ground.reaches("a", INTERNET).await, "another group's rules are its own");
}
