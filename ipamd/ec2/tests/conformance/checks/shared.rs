//! What one node asks for all of its cluster.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use sluice_contract::id::{EniId, InstanceId, SecurityGroupId};
use sluice_ipamd_core::cloud::{AddressCount, CreateEni, Ec2Eni};
use sluice_ipamd_core::shared::{Group, Member, VpcRoute};
use sluice_ipamd_daemon::cloud::Cloud;

use super::{Outcome, attached, same};
use crate::account::{Account, Wrong};

/// The tag that names the cluster.
const CLUSTER: &str = "cluster.k8s.amazonaws.com/name";

/// A new ENI that carries the name of a cluster.
async fn of_cluster(account: &Account, token: &str, cluster: &str) -> Result<EniId, Wrong> {
    let mut order = account.order(&account.subnet, AddressCount::Secondary(0), token);
    order.tags.insert(CLUSTER.to_owned(), cluster.to_owned());
    Ok(account.cloud.create_eni(&order).await?.eni)
}

async fn left(account: &Account, cluster: &str) -> Result<BTreeSet<EniId>, Wrong> {
    Ok(account.cloud.unattached_enis(cluster).await?.into_iter().map(|eni| eni.eni).collect())
}

pub(super) async fn what_a_cluster_has_left_is_found(account: &Account) -> Outcome {
    // All accounts of vpcsim are one.
    let ours = format!("prod-{}", account.vpc);
    let (loose, used) = (of_cluster(account, "a", &ours).await?, of_cluster(account, "b", &ours).await?);
    of_cluster(account, "c", &format!("{ours}-2")).await?;
    account.eni(AddressCount::Secondary(0), "d").await?;
    account.cloud.attach_eni(&used, &account.instance, 0, 1).await?;
    same("what it has left", left(account, &ours).await?, [loose].into())
}

/// Its asterisk and its backslash mean themselves.
pub(super) async fn the_name_of_a_cluster_is_no_pattern(account: &Account) -> Outcome {
    let (plain, odd) = (format!("prod-{}-1", account.vpc), format!(r"prod-{}*\", account.vpc));
    of_cluster(account, "a", &plain).await?;
    let loose = of_cluster(account, "b", &odd).await?;
    same("what it has left", left(account, &odd).await?, [loose].into())
}

async fn living(account: &Account, further: Option<InstanceId>) -> Result<BTreeSet<InstanceId>, Wrong> {
    let asked = further.into_iter().chain([account.instance.clone()]).collect();
    Ok(account.cloud.living(&asked).await?)
}

pub(super) async fn an_instance_lives(account: &Account) -> Outcome {
    same("who lives", living(account, None).await?, [account.instance.clone()].into())
}

pub(super) async fn an_unknown_instance_does_not_live(account: &Account) -> Outcome {
    let unknown = "i-00000000000000000".parse().expect("an id");
    same("who lives", living(account, Some(unknown)).await?, [account.instance.clone()].into())
}

pub(super) async fn an_ended_instance_does_not_live(account: &Account) -> Outcome {
    account.end_instance().await?;
    same("who lives", living(account, None).await?, BTreeSet::new())
}

/// An ENI in a security group of its own, and what a policy that means this group is to find.
async fn grouped(account: &Account) -> Result<(SecurityGroupId, String, Member), Wrong> {
    // All accounts of vpcsim are one.
    let name = format!("db-{}", account.vpc);
    let group = account.group(&name).await?;
    let order = account.order(&account.subnet, AddressCount::Secondary(2), "a");
    let made = account.cloud.create_eni(&CreateEni { security_groups: vec![group.clone()], ..order }).await?;
    account.eni(AddressCount::Secondary(0), "b").await?;
    let member = Member { groups: [(group.to_string(), name.clone())].into(), cidrs: cidrs(&made) };
    Ok((group, name, member))
}

fn cidrs(eni: &Ec2Eni) -> BTreeSet<IpNet> {
    let addresses = eni.secondary_ips.iter().copied().chain([eni.primary_ip]);
    addresses.map(|address| IpNet::from(IpAddr::V4(address))).collect()
}

pub(super) async fn interfaces_are_found_by_the_id_of_their_security_group(account: &Account) -> Outcome {
    let (group, _, member) = grouped(account).await?;
    let asked = Group { ids: [group.to_string()].into(), ..Group::default() };
    same("who is in it", account.cloud.members(&asked).await?, vec![member])
}

pub(super) async fn interfaces_are_found_by_the_name_of_their_security_group(account: &Account) -> Outcome {
    let (_, name, member) = grouped(account).await?;
    let asked = Group { names: [name].into(), ..Group::default() };
    same("who is in it", account.cloud.members(&asked).await?, vec![member])
}

pub(super) async fn interfaces_are_found_by_the_tags_of_their_instance(account: &Account) -> Outcome {
    // One that is attached to it and one that is not, beside its first.
    let (second, _) = attached(account, "a").await?;
    account.eni(AddressCount::Secondary(0), "b").await?;
    let role = format!("db-{}", account.vpc);
    account.tag(account.instance.as_str(), "role", &role).await?;
    let asked = Group { tags: [("role".to_owned(), role)].into(), ..Group::default() };
    let found = account.cloud.members(&asked).await?;
    let found: BTreeSet<IpNet> = found.into_iter().flat_map(|member| member.cidrs).collect();
    let first = account.seen(&account.primary().await?).await?;
    same("what they send from", found, cidrs(&first).into_iter().chain(cidrs(&second)).collect())
}

pub(super) async fn nobody_is_in_an_unknown_security_group(account: &Account) -> Outcome {
    let asked = Group { ids: ["sg-00000000000000000".to_owned()].into(), ..Group::default() };
    same("who is in it", account.cloud.members(&asked).await?, Vec::new())
}

/// A new VPC has one route, to itself; those of other VPCs are not its own.
pub(super) async fn the_routes_of_a_vpc_are_told(account: &Account) -> Outcome {
    let own = VpcRoute { destination: "10.0.0.0/16".parse().expect("a network"), target: "local".to_owned() };
    account.subnet_with_ipv6().await?;
    same("its routes", account.cloud.routes(&account.vpc).await?, vec![own])
}
