//! The instance metadata service: who this node is, and what is attached to it (reference/vpc-cni.md 3.3).
//!
//! Every list is read with one GET a key, one after the other: the service allows 1,024 packets a second for everything
//! on the node, and the pods want their share.

use std::fmt::Display;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use aws_config::imds::client::Client;
use aws_config::provider_config::ProviderConfig;
use aws_sdk_ec2::config::BehaviorVersion;
use ipnet::{Ipv4Net, Ipv6Net};
use sluice_contract::id::MacAddr;
use sluice_ipamd_core::cloud::{Api, CloudError, CloudErrorKind, ImdsEni, InstanceIdentity};

use crate::config::{InvalidSetting, Settings};
use crate::decode::is_delegated;
use crate::error::{cloud_error, of_imds};

/// How long a connection may take. The service is on the same host.
const CONNECT: Duration = Duration::from_secs(1);
/// How long one GET may take, its token included.
const GET: Duration = Duration::from_secs(2);
/// How long a GET may take with its second try, which an expired token and a 5xx have.
const WHOLE: Duration = Duration::from_secs(4);

/// What it says to a token that has run out, or that it does not know.
const NO_SUCH_TOKEN: &str = "Http401";

/// The most network interfaces that are looked at; no instance holds more.
const MOST_ENIS: usize = 512;

/// The metadata service as ipamd reads it.
#[derive(Debug, Clone)]
pub(crate) struct Imds {
    endpoint: Option<String>,
    behavior: BehaviorVersion,
    /// The one with the token that is in use.
    client: Arc<RwLock<Client>>,
}

impl Imds {
    /// A client. Nothing is sent.
    ///
    /// # Errors
    /// When the endpoint is no URI.
    pub(crate) fn new(settings: &Settings, behavior: BehaviorVersion) -> Result<Self, InvalidSetting> {
        let endpoint = settings.imds_endpoint.clone();
        let client = Arc::new(RwLock::new(client_of(endpoint.as_deref(), behavior)?));
        Ok(Self { endpoint, behavior, client })
    }

    /// Who this node is.
    pub(crate) async fn identity(&self) -> Result<InstanceIdentity, CloudError> {
        let primary_mac: MacAddr = self.value("mac").await?;
        Ok(InstanceIdentity {
            instance: self.value("instance-id").await?,
            instance_type: self.word("instance-type").await?,
            availability_zone: self.word("placement/availability-zone").await?,
            region: self.region().await?,
            primary_mac,
            vpc: self.value(&mac_key(primary_mac, "vpc-id")).await?,
        })
    }

    /// The region of the instance.
    pub(crate) async fn region(&self) -> Result<String, CloudError> {
        self.word("placement/region").await
    }

    /// The VPC's IPv4 CIDRs.
    pub(crate) async fn vpc_cidrs(&self) -> Result<Vec<Ipv4Net>, CloudError> {
        let primary: MacAddr = self.value("mac").await?;
        let cidrs: Vec<Ipv4Net> = self.list(&mac_key(primary, "vpc-ipv4-cidr-blocks")).await?;
        Ok(cidrs.into_iter().map(|cidr| cidr.trunc()).collect())
    }

    /// The attached ENIs. One that vanishes while it is read, or is shown in part only, is left out: it is on its way, or
    /// gone, and the metadata service is never the witness that something is not there.
    pub(crate) async fn enis(&self) -> Result<Vec<ImdsEni>, CloudError> {
        let primary: MacAddr = self.value("mac").await?;
        let index = self.get("network/interfaces/macs/").await?;
        let mut enis = Vec::new();
        for line in lines(&index).take(MOST_ENIS) {
            let mac = parse("network/interfaces/macs/", line.trim_end_matches('/'))?;
            match self.eni(mac, primary).await {
                Ok(eni) => enis.push(eni),
                Err(error) if error.kind == CloudErrorKind::NotFound && mac != primary => {
                    tracing::debug!(%mac, missing = %error.message, "the metadata service shows an interface in part");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(enis)
    }

    async fn eni(&self, mac: MacAddr, primary: MacAddr) -> Result<ImdsEni, CloudError> {
        let key = |name| mac_key(mac, name);
        // 404 for an interface without IPv4 addresses (efa-only): it is shown, so that its place counts as taken.
        let addresses: Vec<Ipv4Addr> = match self.list(&key("local-ipv4s")).await {
            Err(error) if mac != primary => none_if_missing(error)?,
            addresses => addresses?,
        };
        let mut addresses = addresses.into_iter();
        let primary_ip = addresses.next().unwrap_or(Ipv4Addr::UNSPECIFIED);
        if mac == primary && primary_ip.is_unspecified() {
            let message = format!("{} is empty", key("local-ipv4s"));
            return Err(cloud_error(Api::Imds, CloudErrorKind::Other, "MalformedAnswer", &message));
        }
        let device = self.value(&key("device-number")).await?;
        let prefixes: Vec<Ipv4Net> = self.list(&key("ipv4-prefix")).await.or_else(none_if_missing)?;
        let ipv6: Vec<Ipv6Net> = self.list(&key("ipv6-prefix")).await.or_else(none_if_missing)?;
        let card: Vec<u32> = self.list(&key("network-card")).await.or_else(none_if_missing)?;
        let cidr = match self.value::<Ipv4Net>(&key("subnet-ipv4-cidr-block")).await {
            // A subnet of IPv6 only has none.
            Err(error) if error.kind == CloudErrorKind::NotFound && primary_ip.is_unspecified() => Ipv4Net::default(),
            cidr => cidr?.trunc(),
        };
        Ok(ImdsEni {
            eni: self.value(&key("interface-id")).await?,
            mac,
            // As VPC CNI: some types have shown another number.
            device: if mac == primary { 0 } else { device },
            card: card.first().copied().unwrap_or(0),
            subnet: self.value(&key("subnet-id")).await?,
            subnet_cidr: cidr,
            primary_ip,
            secondary_ips: addresses.collect(),
            prefixes: prefixes.into_iter().map(|prefix| prefix.trunc()).collect(),
            ipv6_prefixes: ipv6.into_iter().map(|prefix| prefix.trunc()).filter(is_delegated).collect(),
            security_groups: self.list(&key("security-group-ids")).await.or_else(none_if_missing)?,
        })
    }

    async fn get(&self, key: &str) -> Result<String, CloudError> {
        let path = format!("/latest/meta-data/{key}");
        let client = self.client.read().unwrap_or_else(PoisonError::into_inner).clone();
        let error = match client.get(path.as_str()).await.map_err(|error| of_imds(key, &error)) {
            Err(error) if error.code == NO_SUCH_TOKEN => error,
            body => return body.map(Into::into),
        };
        // The service does not know the token any more, as after a start of its own. A client keeps one until it runs out, which
        // is in hours; another client gets another.
        let Ok(renewed) = client_of(self.endpoint.as_deref(), self.behavior) else { return Err(error) };
        tracing::info!("the metadata service does not know its token any more: asking for another");
        self.client.write().unwrap_or_else(PoisonError::into_inner).clone_from(&renewed);
        renewed.get(path).await.map(Into::into).map_err(|error| of_imds(key, &error))
    }

    async fn value<T: FromStr<Err: Display>>(&self, key: &str) -> Result<T, CloudError> {
        parse(key, self.get(key).await?.trim())
    }

    /// A value that is one word of printable characters.
    async fn word(&self, key: &str) -> Result<String, CloudError> {
        let word: String = self.value(key).await?;
        if word.is_empty() || word.len() > 128 || !word.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(unreadable(key, &word, &"it must be one word"));
        }
        Ok(word)
    }

    async fn list<T: FromStr<Err: Display>>(&self, key: &str) -> Result<Vec<T>, CloudError> {
        let text = self.get(key).await?;
        lines(&text).map(|line| parse(key, line)).collect()
    }
}

/// A client, which gets its token when it is first asked.
fn client_of(endpoint: Option<&str>, behavior: BehaviorVersion) -> Result<Client, InvalidSetting> {
    let provider = ProviderConfig::default().with_behavior_version(Some(behavior));
    let mut builder = Client::builder()
        .configure(&provider)
        .max_attempts(2)
        .connect_timeout(CONNECT)
        .read_timeout(GET)
        .operation_attempt_timeout(GET)
        .operation_timeout(WHOLE);
    if let Some(endpoint) = endpoint {
        builder = builder.endpoint(endpoint).map_err(|_bad_uri| InvalidSetting::new("imds_endpoint", endpoint))?;
    }
    Ok(builder.build())
}

fn mac_key(mac: MacAddr, name: &str) -> String {
    format!("network/interfaces/macs/{mac}/{name}")
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty())
}

fn parse<T: FromStr<Err: Display>>(key: &str, text: &str) -> Result<T, CloudError> {
    text.parse().map_err(|error| unreadable(key, text, &error))
}

fn unreadable(key: &str, text: &str, why: &dyn Display) -> CloudError {
    let text: String = text.chars().take(80).collect();
    cloud_error(Api::Imds, CloudErrorKind::Other, "MalformedAnswer", &format!("{key} is {text:?}: {why}"))
}

/// A key that is not there stands for an empty list.
fn none_if_missing<T>(error: CloudError) -> Result<Vec<T>, CloudError> {
    if error.kind == CloudErrorKind::NotFound { Ok(Vec::new()) } else { Err(error) }
}
