use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;
use crate::model::api::{CreateSubnet, WantIpv4, WantIpv6};
use crate::model::state::Tags;
use crate::model::{Model, SceneEni, SceneInstance, Settings};

async fn served(settings: Settings) -> SocketAddr {
    served_model(Model::new(settings)).await
}

async fn served_model(model: Model) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(Ec2::new(LiveModel::new(model)).serve(listener));
    address
}

/// Sends a request as it is and reads until the server closes.
async fn raw(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

async fn send(address: SocketAddr, method: &str, path: &str, body: &str) -> String {
    let length = body.len();
    raw(
        address,
        &format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"),
    )
    .await
}

async fn call(address: SocketAddr, parameters: &str) -> String {
    send(address, "POST", "/", &format!("Version=2016-11-15&{parameters}")).await
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    text.split_once(before).unwrap_or_else(|| panic!("no {before} in {text}")).1.split_once(after).unwrap().0
}

#[tokio::test]
async fn a_vpc_is_made_and_told() {
    let address = served(Settings::instant()).await;
    let made = call(address, "Action=CreateVpc&CidrBlock=10.0.0.0%2F16&TagSpecification.1.ResourceType=vpc&TagSpecification.1.Tag.1.Key=a%26b&TagSpecification.1.Tag.1.Value=%3Cc%3E").await;
    assert!(made.starts_with("HTTP/1.1 200"), "{made}");
    assert!(made.contains("<CreateVpcResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\">"), "{made}");
    assert!(made.contains("<key>a&amp;b</key><value>&lt;c&gt;</value>"), "{made}");
    let vpc = between(&made, "<vpcId>", "</vpcId>").to_owned();
    let made = call(address, &format!("Action=CreateSubnet&VpcId={vpc}&CidrBlock=10.0.1.0%2F24")).await;
    assert_eq!(between(&made, "<availableIpAddressCount>", "<"), "251");
    let told = send(address, "GET", "/?Action=DescribeVpcs&Version=2016-11-15&VpcId.1=".to_owned().as_str(), "").await;
    assert!(told.contains("InvalidVpcID.Malformed"), "{told}");
    let told = send(address, "GET", &format!("/?Action=DescribeVpcs&Version=2016-11-15&VpcId.1={vpc}"), "").await;
    assert_eq!(between(&told, "<vpcId>", "<"), vpc);
    let calls = send(address, "GET", "/_vpcsim/calls?since=1", "").await;
    assert!(calls.contains("\"total\":4") && calls.contains("\"caller\":\"127.0.0.1\""), "{calls}");
}

#[tokio::test]
async fn errors_are_ec2s_own() {
    let address = served(Settings::instant()).await;
    for (parameters, status, code) in [
        ("Action=MakeCoffee", "400", "InvalidAction"),
        ("", "400", "MissingAction"),
        ("Action=CreateSubnet&VpcId=vpc-0123456789abcdef0&CidrBlock=x", "400", "InvalidParameterValue"),
        ("Action=CreateSubnet&VpcId=vpc-0123456789abcdef0&CidrBlock=10.0.0.0%2F24", "400", "InvalidVpcID.NotFound"),
        ("Action=DescribeVpcs&Nonsense=1", "400", "UnknownParameter"),
        ("Action=DescribeVpcs&DryRun=true", "412", "DryRunOperation"),
        ("Action=DescribeVpcs&VpcId.1=%ZZ", "400", "MalformedQueryString"),
        (
            "Action=AttachNetworkInterface&NetworkInterfaceId=eni-0123456789abcdef0&InstanceId=i-0123456789abcdef0",
            "400",
            "MissingParameter",
        ),
    ] {
        let answer = call(address, parameters).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{parameters}: {answer}");
        assert_eq!(between(&answer, "<Code>", "<"), code, "{parameters}");
    }
    let answer = send(address, "POST", "/", "Action=DescribeVpcs&Version=2010-01-01").await;
    assert_eq!(between(&answer, "<Code>", "<"), "NoSuchVersion");
    assert!(send(address, "PUT", "/", "").await.starts_with("HTTP/1.1 405"));
    assert!(send(address, "GET", "/_vpcsim/nothing", "").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn network_cards_are_told_of_types_and_of_attachments() {
    let mut model = Model::new(Settings::instant());
    let vpc = model.add_vpc(&["10.0.0.0/16".parse().unwrap()], None, Tags::new()).unwrap();
    let cidr = "10.0.1.0/24".parse().unwrap();
    let subnet = CreateSubnet { vpc, cidr, ipv6_cidr: None, availability_zone: None, tags: Tags::new() };
    let subnet = model.add_subnet(&subnet, false).unwrap();
    let instance = SceneInstance {
        instance_type: "c6in.32xlarge".to_owned(),
        subnet: subnet.clone(),
        private_ip: None,
        public_ip: false,
        tags: Tags::new(),
    };
    let instance = model.add_instance(&instance).unwrap();
    let eni = SceneEni {
        subnet,
        private_ip: None,
        want: WantIpv4::default(),
        want_ipv6: WantIpv6::default(),
        place: Some((instance, 1, 0)),
        tags: Tags::new(),
    };
    let eni = model.add_eni(&eni).unwrap();
    let address = served_model(model).await;

    let types = call(address, "Action=DescribeInstanceTypes&InstanceType.1=c6in.32xlarge").await;
    assert_eq!(between(&types, "<maximumNetworkInterfaces>", "<"), "16");
    assert_eq!(between(&types, "<maximumNetworkCards>", "<"), "2");
    for card in 0..2 {
        let told = format!(
            "<networkCardIndex>{card}</networkCardIndex><maximumNetworkInterfaces>8</maximumNetworkInterfaces>"
        );
        assert!(types.contains(&told), "{types}");
    }
    let place = |told: &str| {
        let attachment = between(told, "<deviceIndex>", "</attachment>");
        (attachment.starts_with("0<"), between(attachment, "<networkCardIndex>", "<").to_owned())
    };
    let told = call(address, &format!("Action=DescribeNetworkInterfaces&NetworkInterfaceId.1={eni}")).await;
    assert_eq!(place(&told), (true, "1".to_owned()));
    let filter = "Filter.1.Name=attachment.network-card-index&Filter.1.Value.1=1";
    let told = call(address, &format!("Action=DescribeNetworkInterfaces&{filter}")).await;
    assert_eq!(between(&told, "<networkInterfaceId>", "<"), eni.as_str());
    // An instance's ENIs come by card and device.
    let told = call(address, "Action=DescribeInstances").await;
    let (_, second) = told.split_once("</attachment>").unwrap();
    assert_eq!((place(&told), place(second)), ((true, "0".to_owned()), (true, "1".to_owned())));
}

#[tokio::test]
async fn a_body_has_a_limit() {
    let address = served(Settings::instant()).await;
    let size = LARGEST_REQUEST + 1;
    let answer =
        raw(address, &format!("POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n"))
            .await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(raw(address, "rubbish\r\n\r\n").await.starts_with("HTTP/1.1 400"));
}

#[tokio::test]
async fn faults_are_set_over_http() {
    let address = served(Settings::instant()).await;
    let fault =
        r#"{"action":"DescribeVpcs","effect":{"error":{"code":"RequestLimitExceeded","status":503}},"count":1}"#;
    assert!(send(address, "POST", "/_vpcsim/faults", fault).await.starts_with("HTTP/1.1 200"));
    assert!(send(address, "POST", "/_vpcsim/faults", "{}").await.starts_with("HTTP/1.1 400"));
    assert!(call(address, "Action=DescribeVpcs").await.starts_with("HTTP/1.1 503"));
    assert!(call(address, "Action=DescribeVpcs").await.starts_with("HTTP/1.1 200"));
    assert!(send(address, "POST", "/_vpcsim/settings", r#"{"time_scale":-1}"#).await.starts_with("HTTP/1.1 400"));
    assert!(send(address, "POST", "/_vpcsim/settings", r#"{"throttle":false}"#).await.starts_with("HTTP/1.1 200"));
}

fn parameter() -> impl Strategy<Value = (String, String)> {
    let name = proptest::sample::select(vec![
        "NetworkInterfaceId",
        "InstanceId",
        "SubnetId",
        "VpcId",
        "GroupId",
        "CidrBlock",
        "DeviceIndex",
        "MaxResults",
        "NextToken",
        "Filter",
        "Filter.1.Name",
        "Filter.1.Value.1",
        "Filter.x.Name",
        "TagSpecification.1.ResourceType",
        "TagSpecification.1.Tag.1.Key",
        "Tag.1.Key",
        "ResourceId.1",
        "IpPermissions.1.IpProtocol",
        "ImageId",
        "MinCount",
        "IpPermissions.1.Groups.1.GroupId",
        "MaxCount",
        "InstanceType",
        "InstanceType.1",
        "ClientToken",
        "NetworkInterface.1.SubnetId",
        "PrivateIpAddresses.1.PrivateIpAddress",
        "SecondaryPrivateIpAddressCount",
        "Ipv4PrefixCount",
        "Ipv4Prefix.1",
        "PrivateIpAddress.1",
        "Attachment.DeleteOnTermination",
        "Description.Value",
        "AttachmentId",
        "Force",
        "DryRun",
        "GroupName.1",
        "NetworkInterfaceId.4294967296",
        "VpcId.1",
        ".",
        "1",
        "",
    ]);
    let value = prop_oneof![
        proptest::sample::select(vec![
            "",
            "0",
            "1",
            "-1",
            "4294967295",
            "4294967296",
            "true",
            "10.0.0.0/16",
            "10.0.0.0/33",
            "10.0.0.5",
            "::/0",
            "eni-0123456789abcdef0",
            "i-0123456789abcdef0",
            "subnet-0123456789abcdef0",
            "vpc-0123456789abcdef0",
            "vpc",
            "m5.large",
            "network-interface",
            "subnet-id",
            "tag:",
            "tag-key",
            "*?*\\",
            "ff",
            "zz",
        ])
        .prop_map(str::to_owned),
        any::<String>(),
    ];
    (name.prop_map(str::to_owned), value)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is asked, the answer is a reply or an error of EC2's kind, and well-formed.
    #[test]
    fn any_parameters_have_an_answer(
        action in proptest::sample::select(Action::ALL),
        parameters in proptest::collection::vec(parameter(), 0..8),
    ) {
        let encode = |text: &str| text.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
        let mut body = format!("Action={action}&Version=2016-11-15");
        for (name, value) in &parameters {
            body.push_str(&format!("&{}={}", encode(name), encode(value)));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _guard = runtime.enter();
        let api = Ec2::new(LiveModel::new(Model::new(Settings::instant())));
        let answer = runtime.block_on(api.call(body.as_bytes(), "test")).unwrap();
        prop_assert!(matches!(answer.status().as_u16(), 200 | 400 | 412), "{}", answer.status());
        let bytes = runtime.block_on(http_body_util::BodyExt::collect(answer.into_body())).unwrap().to_bytes();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        prop_assert_eq!(text.matches('<').count(), text.matches('>').count());
    }

    #[test]
    fn any_bytes_have_an_answer(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _guard = runtime.enter();
        let api = Ec2::new(LiveModel::new(Model::new(Settings::instant())));
        let answer = runtime.block_on(api.call(&body, "test")).unwrap();
        prop_assert_eq!(answer.status().as_u16(), 400);
    }
}

#[test]
fn the_documentation_lists_what_is_answered_and_what_has_no_effect() {
    let page = include_str!("../../../../docs/localstack.md").replace('\n', " ");
    let mut actions: Vec<&str> = Action::ALL.iter().map(|action| action.as_str()).collect();
    actions.sort_unstable();
    for list in [actions, decode::WITHOUT_EFFECT.to_vec()] {
        let list = list.join(", ");
        assert!(page.contains(&list), "docs/localstack.md does not list: {list}");
    }
    let types = format!("the {} of [`limits.rs`]", crate::limits::INSTANCE_TYPES.len());
    assert!(page.contains(&types), "docs/localstack.md does not say: {types}");
}
