use super::*;
use crate::model::api::{AttachNetworkInterface, CreateSubnet, WantIpv4, WantIpv6};
use crate::model::behaviour::Span;
use crate::model::state::Tags;
use crate::model::{Model, SceneEni, SceneInstance, Settings};

struct World {
    live: LiveModel,
    vpc: VpcId,
    instance: InstanceId,
    macs: Vec<String>,
}

/// An m5.large at 10.0.0.10 with a second ENI that has a prefix and an IPv6 prefix.
fn world(settings: Settings) -> World {
    world_of("m5.large", (0, 1), settings)
}

/// The same of another type, with its second ENI at this card and device.
fn world_of(instance_type: &str, (card, device): (u32, u32), settings: Settings) -> World {
    let mut model = Model::new(settings);
    let cidrs = ["10.0.0.0/16".parse().unwrap(), "100.64.0.0/16".parse().unwrap()];
    let vpc = model.add_vpc(&cidrs, Some("3fff:1::/56".parse().unwrap()), Tags::new()).unwrap();
    let subnet = CreateSubnet {
        vpc: vpc.clone(),
        cidr: "10.0.0.0/24".parse().unwrap(),
        ipv6_cidr: Some("3fff:1::/64".parse().unwrap()),
        availability_zone: Some("us-east-1b".to_owned()),
        tags: Tags::new(),
    };
    let subnet = model.add_subnet(&subnet, false).unwrap();
    let instance = model
        .add_instance(&SceneInstance {
            instance_type: instance_type.to_owned(),
            subnet: subnet.clone(),
            private_ip: Some("10.0.0.10".parse().unwrap()),
            public_ip: true,
            tags: Tags::new(),
        })
        .unwrap();
    let eni = SceneEni {
        subnet,
        private_ip: Some("10.0.0.20".parse().unwrap()),
        want: WantIpv4 { prefixes: vec!["10.0.0.32/28".parse().unwrap()], ..WantIpv4::default() },
        want_ipv6: WantIpv6 { prefix_count: 1, ..WantIpv6::default() },
        place: Some((instance.clone(), card, device)),
        tags: Tags::new(),
    };
    model.add_eni(&eni).unwrap();
    let macs = model.state().attached(&instance).into_iter().map(|eni| eni.mac.to_string()).collect();
    World { live: LiveModel::new(model), vpc, instance, macs }
}

fn ask(imds: &Imds, method: &Method, path: &str, headers: &[(&'static str, &str)], source: &str) -> (u16, String) {
    let headers: HeaderMap = headers
        .iter()
        .map(|(name, value)| (hyper::header::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
        .collect();
    let answer = imds.answer(Query { method, path, headers: &headers }, source.parse().unwrap());
    (answer.status.as_u16(), answer.body)
}

fn token(imds: &Imds, source: &str) -> String {
    let (status, token) = ask(imds, &Method::PUT, "/latest/api/token", &[(TTL_HEADER, "60")], source);
    assert_eq!(status, 200);
    token
}

#[tokio::test(start_paused = true)]
async fn without_a_token_there_is_nothing() {
    let world = world(Settings::instant());
    let imds = Imds::of_vpc(world.live.clone(), world.vpc.clone());
    let from = "10.0.0.10";
    let get = |path: &str, headers: &[(&'static str, &str)]| ask(&imds, &Method::GET, path, headers, from).0;
    assert_eq!(get("/latest/meta-data/mac", &[]), 401);
    assert_eq!(get("/latest/meta-data/mac", &[(TOKEN_HEADER, "AQAEA")]), 401);
    for ttl in ["0", "21601", "x", "-1"] {
        assert_eq!(ask(&imds, &Method::PUT, "/latest/api/token", &[(TTL_HEADER, ttl)], from).0, 400, "{ttl}");
    }
    assert_eq!(ask(&imds, &Method::PUT, "/latest/api/token", &[], from).0, 400);
    let token = token(&imds, from);
    assert_eq!(get("/latest/meta-data/mac", &[(TOKEN_HEADER, &token)]), 200);
    assert_eq!(get("/latest/meta-data/mac", &[(TOKEN_HEADER, &token), ("x-forwarded-for", "1.2.3.4")]), 403);
    assert_eq!(ask(&imds, &Method::POST, "/latest/meta-data/mac", &[(TOKEN_HEADER, &token)], from).0, 405);
    assert_eq!(ask(&imds, &Method::GET, "/latest/meta-data/mac", &[(TOKEN_HEADER, &token)], "10.0.0.99").0, 404);
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!(get("/latest/meta-data/mac", &[(TOKEN_HEADER, &token)]), 401);
}

#[tokio::test]
async fn an_instance_is_told_about_itself() {
    let world = world(Settings::instant());
    let imds = Imds::of_vpc(world.live.clone(), world.vpc.clone());
    // A pod with an address out of a prefix asks in the instance's name.
    let token = token(&imds, "10.0.0.40");
    let get = |path: &str| ask(&imds, &Method::GET, path, &[(TOKEN_HEADER, &token)], "10.0.0.10");
    let second = &format!("/latest/meta-data/network/interfaces/macs/{}", world.macs[1]);
    for (path, expected) in [
        ("/latest/meta-data/instance-id", world.instance.to_string()),
        ("/2021-03-23/meta-data/instance-type", "m5.large".to_owned()),
        ("/latest/meta-data/placement/availability-zone", "us-east-1b".to_owned()),
        ("/latest/meta-data/placement/availability-zone/", "us-east-1b".to_owned()),
        ("/latest/meta-data/placement/region", "us-east-1".to_owned()),
        ("/latest/meta-data/mac", world.macs[0].clone()),
        ("/latest/meta-data/local-ipv4", "10.0.0.10".to_owned()),
        ("/latest/meta-data/public-ipv4", "203.0.113.10".to_owned()),
        ("/latest/meta-data/iam/security-credentials/", tree::ROLE.to_owned()),
        (&format!("{second}/device-number"), "1".to_owned()),
        (&format!("{second}/local-ipv4s"), "10.0.0.20".to_owned()),
        (&format!("{second}/ipv4-prefix"), "10.0.0.32/28".to_owned()),
        (&format!("{second}/subnet-ipv4-cidr-block"), "10.0.0.0/24".to_owned()),
        (&format!("{second}/vpc-ipv4-cidr-block"), "10.0.0.0/16".to_owned()),
        (&format!("{second}/vpc-ipv4-cidr-blocks"), "10.0.0.0/16\n100.64.0.0/16".to_owned()),
        (&format!("{second}/vpc-ipv6-cidr-blocks"), "3fff:1::/56".to_owned()),
        (&format!("{second}/subnet-ipv6-cidr-blocks"), "3fff:1::/64".to_owned()),
        (&format!("{second}/security-groups"), "default".to_owned()),
        (&second.replace(':', "%3A"), get(second).1),
    ] {
        assert_eq!(get(path), (200, expected), "{path}");
    }
    let mut macs: Vec<String> = world.macs.iter().map(|mac| format!("{mac}/")).collect();
    macs.sort();
    assert_eq!(get("/latest/meta-data/network/interfaces/macs/").1, macs.join("\n"));
    assert!(get("/latest/meta-data").1.contains("network/\n"));
    assert_eq!(get("/latest/"), (200, "dynamic/\nmeta-data/".to_owned()));
    let json = |path: &str| serde_json::from_str::<serde_json::Value>(&get(path).1).unwrap();
    assert_eq!(json("/latest/dynamic/instance-identity/document")["region"], "us-east-1");
    let credentials = json(&format!("/latest/meta-data/iam/security-credentials/{}", tree::ROLE));
    assert_eq!((&credentials["Code"], &credentials["Type"]), (&"Success".into(), &"AWS-HMAC".into()));
    for path in [
        "/latest/meta-data/nothing",
        "/latest/user-data",
        "/ancient/meta-data/mac",
        "/latest/meta-data/mac//",
        &format!("{second}/ipv6s"),
        &format!("{second}/network-card"),
        "/latest/meta-data/%zz",
    ] {
        assert_eq!(get(path).0, 404, "{path}");
    }
}

#[tokio::test]
async fn every_eni_of_an_instance_with_several_network_cards_says_which_it_is_on() {
    let world = world_of("p4d.24xlarge", (3, 0), Settings::instant());
    let imds = Imds::of_instance(world.live.clone(), world.instance.clone());
    let token = token(&imds, "127.0.0.1");
    let leaf = |mac: &str, name: &str| {
        let path = format!("/latest/meta-data/network/interfaces/macs/{mac}/{name}");
        ask(&imds, &Method::GET, &path, &[(TOKEN_HEADER, &token)], "127.0.0.1")
    };
    for (mac, card) in world.macs.iter().zip(["0", "3"]) {
        assert_eq!(leaf(mac, "network-card"), (200, card.to_owned()));
        assert_eq!(leaf(mac, "device-number"), (200, "0".to_owned()));
    }
}

#[tokio::test(start_paused = true)]
async fn imds_sees_late_and_only_what_shows() {
    let settings = Settings {
        time_scale: 1.0,
        imds_lag: Duration::from_secs(2),
        link: Span::from_millis(3000, 3000),
        ..Settings::instant()
    };
    let world = world(settings);
    let imds = Imds::of_instance(world.live.clone(), world.instance.clone());
    let token = token(&imds, "127.0.0.1");
    let subnet = world.live.snapshot().0.subnets.keys().next().unwrap().clone();
    tokio::time::advance(Duration::from_secs(10)).await;
    world.live.with(|model, now| {
        let eni = SceneEni {
            subnet,
            private_ip: None,
            want: WantIpv4::default(),
            want_ipv6: WantIpv6::default(),
            place: None,
            tags: Tags::new(),
        };
        let eni = model.add_eni(&eni).unwrap();
        let attach = AttachNetworkInterface { eni, instance: world.instance.clone(), card: 0, device: 2 };
        model.call(attach, now).result.unwrap();
    });
    let macs = || {
        let path = "/latest/meta-data/network/interfaces/macs/";
        ask(&imds, &Method::GET, path, &[(TOKEN_HEADER, &token)], "127.0.0.1").1.lines().count()
    };
    tokio::time::advance(Duration::from_millis(4900)).await;
    assert_eq!(macs(), 2);
    tokio::time::advance(Duration::from_millis(200)).await;
    assert_eq!(macs(), 3);
}
