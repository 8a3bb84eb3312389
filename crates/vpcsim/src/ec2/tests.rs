use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;
use crate::model::{Model, Settings};

async fn served(settings: Settings) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(Ec2::new(LiveModel::new(Model::new(settings))).serve(listener));
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
