//! The checks: one thing each that ipamd relies on, so that what an endpoint lacks can be named.

mod ipv6;
mod shared;

use std::collections::BTreeSet;
use std::future::Future;
use std::net::Ipv4Addr;
use std::pin::Pin;

use sluice_contract::id::{AttachmentId, EniId, SubnetId};
use sluice_ipamd_core::cloud::{
    AddressCount, CloudError, CloudErrorKind, CreateEni, Ec2Eni, InstanceLimits, InterfaceType, Unassign,
};
use sluice_ipamd_daemon::cloud::Cloud;

use crate::account::{Account, OWNER, Wrong};
use ipv6::{
    a_subnet_is_described_with_its_ipv6_cidr, an_eni_is_made_with_an_ipv6_prefix, an_ipv6_prefix_is_assigned,
    without_an_ipv6_cidr_no_ipv6_prefix_is_assigned,
};
use shared::{
    an_ended_instance_does_not_live, an_instance_lives, an_unknown_instance_does_not_live,
    interfaces_are_found_by_the_id_of_their_security_group, interfaces_are_found_by_the_name_of_their_security_group,
    interfaces_are_found_by_the_tags_of_their_instance, nobody_is_in_an_unknown_security_group,
    the_name_of_a_cluster_is_no_pattern, the_routes_of_a_vpc_are_told, what_a_cluster_has_left_is_found,
};

type Outcome = Result<(), Wrong>;

/// One check.
pub(crate) struct Check {
    pub(crate) name: &'static str,
    pub(crate) run: for<'a> fn(&'a Account) -> Pin<Box<dyn Future<Output = Outcome> + 'a>>,
}

macro_rules! checks {
    ($($name:ident)*) => {
        /// All of them.
        pub(crate) const ALL: &[Check] = &[
            $(Check { name: stringify!($name), run: |account| Box::pin($name(account)) }),*
        ];
    };
}

checks! {
    a_subnet_is_described
    a_subnet_counts_its_free_addresses
    the_subnets_of_a_zone_are_listed
    a_zone_without_subnets_lists_none
    an_unknown_subnet_is_not_found
    an_instance_type_is_described
    an_eni_is_made_with_secondary_addresses
    an_eni_is_made_with_prefixes
    an_eni_has_the_default_security_group
    an_eni_has_the_security_groups_asked_for
    a_client_token_makes_one_eni
    a_client_token_for_something_else_conflicts
    each_eni_has_a_mac_address_of_its_own
    each_address_is_handed_out_once
    an_eni_is_attached
    an_attachment_is_deleted_with_its_instance_where_asked_for
    an_eni_is_tagged
    an_eni_gets_other_security_groups
    assigned_addresses_are_on_the_eni
    assigning_answers_with_what_is_new
    prefixes_are_assigned
    addresses_are_given_back
    prefixes_are_given_back
    giving_back_twice_conflicts
    an_attached_eni_is_not_deleted
    a_detached_eni_is_deleted
    deleting_twice_is_well
    detaching_twice_finds_nothing
    what_is_attached_is_owned
    what_is_tagged_is_owned
    unknown_enis_are_left_out
    an_unknown_eni_cannot_be_changed
    a_taken_device_index_conflicts
    an_instance_holds_so_many_enis
    an_eni_holds_so_many_addresses
    a_full_subnet_makes_no_eni
    a_full_subnet_assigns_no_address
    without_a_whole_block_no_eni_with_a_prefix_is_made
    without_a_whole_block_no_prefix_is_assigned
    a_subnet_is_described_with_its_ipv6_cidr
    an_eni_is_made_with_an_ipv6_prefix
    an_ipv6_prefix_is_assigned
    without_an_ipv6_cidr_no_ipv6_prefix_is_assigned
    what_a_cluster_has_left_is_found
    the_name_of_a_cluster_is_no_pattern
    an_instance_lives
    an_unknown_instance_does_not_live
    an_ended_instance_does_not_live
    interfaces_are_found_by_the_id_of_their_security_group
    interfaces_are_found_by_the_name_of_their_security_group
    interfaces_are_found_by_the_tags_of_their_instance
    nobody_is_in_an_unknown_security_group
    the_routes_of_a_vpc_are_told
}

#[expect(clippy::needless_pass_by_value, reason = "checks compare what they have just made")]
fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: T, expected: T) -> Outcome {
    if found == expected { Ok(()) } else { Err(Wrong(format!("{what} is {found:?}, not {expected:?}"))) }
}

fn holds(what: &str, is_so: bool) -> Outcome {
    if is_so { Ok(()) } else { Err(Wrong(format!("it is not so that {what}"))) }
}

fn fails<T: std::fmt::Debug>(result: Result<T, CloudError>, kinds: &[CloudErrorKind]) -> Result<CloudError, Wrong> {
    match result {
        Err(error) if kinds.contains(&error.kind) => Ok(error),
        Err(error) => Err(Wrong(format!("it fails as {:?}, not as {kinds:?}: {error}", error.kind))),
        Ok(answer) => Err(Wrong(format!("it should fail as {kinds:?}, and answers {answer:?}"))),
    }
}

fn unknown_eni() -> EniId {
    "eni-00000000000000000".parse().expect("an id")
}

async fn attached(account: &Account, token: &str) -> Result<(Ec2Eni, AttachmentId), Wrong> {
    let made = account.eni(AddressCount::Secondary(0), token).await?;
    let attachment = account.cloud.attach_eni(&made.eni, &account.instance, 0, 1).await?;
    Ok((made, attachment))
}

async fn a_subnet_is_described(account: &Account) -> Outcome {
    let seen = account.cloud.describe_subnet(&account.subnet).await?;
    same("the id", &seen.subnet, &account.subnet)?;
    same("the CIDR", seen.cidr.to_string().as_str(), "10.0.0.0/17")?;
    same("the zone", &seen.availability_zone, &account.zone)?;
    same("the tag", seen.tags.get("kubernetes.io/role/cni").map(String::as_str), Some("1"))
}

async fn a_subnet_counts_its_free_addresses(account: &Account) -> Outcome {
    let before = account.cloud.describe_subnet(&account.subnet).await?.available;
    // Five are AWS's own, one is the instance's.
    same("free addresses", before, 32_768 - 5 - 1)?;
    account.eni(AddressCount::Secondary(3), "a").await?;
    let listed = account.cloud.subnets(&account.vpc, &account.zone).await?;
    let after = listed.iter().find(|subnet| subnet.subnet == account.subnet).map(|subnet| subnet.available);
    same("free addresses after an ENI with four", after, Some(before - 4))
}

async fn the_subnets_of_a_zone_are_listed(account: &Account) -> Outcome {
    let listed = account.cloud.subnets(&account.vpc, &account.zone).await?;
    let ids: BTreeSet<&SubnetId> = listed.iter().map(|subnet| &subnet.subnet).collect();
    same("the list", ids, [&account.subnet, &account.tiny].into())
}

async fn a_zone_without_subnets_lists_none(account: &Account) -> Outcome {
    same("the list", account.cloud.subnets(&account.vpc, "us-east-1f").await?, Vec::new())
}

async fn an_unknown_subnet_is_not_found(account: &Account) -> Outcome {
    let unknown: SubnetId = "subnet-00000000000000000".parse().expect("an id");
    fails(account.cloud.describe_subnet(&unknown).await, &[CloudErrorKind::NotFound]).map(drop)
}

async fn an_instance_type_is_described(account: &Account) -> Outcome {
    let told = account.cloud.described_limits("m5.large").await?;
    same(
        "what an m5.large holds",
        told,
        InstanceLimits { enis: 3, further_cards: Vec::new(), ipv4_per_eni: 10, prefixes: true },
    )
}

async fn an_eni_is_made_with_secondary_addresses(account: &Account) -> Outcome {
    let made = account.eni(AddressCount::Secondary(3), "a").await?;
    same("its subnet", &made.subnet, &account.subnet)?;
    same("its secondary addresses", made.secondary_ips.len(), 3)?;
    same("its prefixes", made.prefixes.len(), 0)?;
    same("its attachment", &made.attachment, &None)?;
    same("its type", made.interface_type, InterfaceType::Interface)?;
    same("its description", &made.description, &format!("aws-K8S-{}", account.instance))?;
    same("its tag", made.tags.get(OWNER).map(String::as_str), Some(account.instance.as_str()))?;
    let seen = account.seen(&made.eni).await?;
    same("what is described", &seen, &made)
}

async fn an_eni_is_made_with_prefixes(account: &Account) -> Outcome {
    let made = account.eni(AddressCount::Prefixes(2), "a").await?;
    same("its prefixes", made.prefixes.len(), 2)?;
    same("its secondary addresses", made.secondary_ips.len(), 0)
}

async fn an_eni_has_the_default_security_group(account: &Account) -> Outcome {
    let made = account.eni(AddressCount::Secondary(0), "a").await?;
    same("the number of its security groups", made.security_groups.len(), 1)
}

async fn an_eni_has_the_security_groups_asked_for(account: &Account) -> Outcome {
    let group = account.group("pods").await?;
    let order = account.order(&account.subnet, AddressCount::Secondary(0), "a");
    let made = account.cloud.create_eni(&CreateEni { security_groups: vec![group.clone()], ..order }).await?;
    same("its security groups", made.security_groups, vec![group])
}

async fn a_client_token_makes_one_eni(account: &Account) -> Outcome {
    let order = account.order(&account.subnet, AddressCount::Secondary(1), "a");
    let (first, second) = (account.cloud.create_eni(&order).await?, account.cloud.create_eni(&order).await?);
    same("the ENI of the same token", second.eni, first.eni)
}

async fn a_client_token_for_something_else_conflicts(account: &Account) -> Outcome {
    let order = account.order(&account.subnet, AddressCount::Secondary(1), "a");
    account.cloud.create_eni(&order).await?;
    let other = CreateEni { description: "other".into(), ..order };
    fails(account.cloud.create_eni(&other).await, &[CloudErrorKind::Conflict]).map(drop)
}

async fn each_eni_has_a_mac_address_of_its_own(account: &Account) -> Outcome {
    let mut macs = BTreeSet::new();
    for token in ["a", "b", "c"] {
        macs.insert(account.eni(AddressCount::Secondary(0), token).await?.mac);
    }
    same("the number of MAC addresses", macs.len(), 3)
}

/// All that the small subnet has, in two ENIs: no address twice, and none of AWS's own five.
async fn each_address_is_handed_out_once(account: &Account) -> Outcome {
    let mut addresses: BTreeSet<Ipv4Addr> = BTreeSet::new();
    for (token, count) in [("a", 4), ("b", 5)] {
        let order = account.order(&account.tiny, AddressCount::Secondary(count), token);
        let made = account.cloud.create_eni(&order).await?;
        addresses.insert(made.primary_ip);
        addresses.extend(&made.secondary_ips);
    }
    let all: BTreeSet<Ipv4Addr> = (4..15).map(|last| Ipv4Addr::new(10, 0, 128, last)).collect();
    same("what was handed out", addresses, all)
}

async fn an_eni_is_attached(account: &Account) -> Outcome {
    let (made, attachment) = attached(account, "a").await?;
    let seen = account.seen(&made.eni).await?;
    let at = seen.attachment.ok_or_else(|| Wrong("no attachment is described".into()))?;
    same("the attachment", at.attachment, attachment)?;
    same("the instance", at.instance.as_ref(), Some(&account.instance))?;
    same("the device index", (at.device, at.card), (1, 0))?;
    same("DeleteOnTermination", at.delete_on_termination, false)?;
    same("its MAC address", seen.mac, made.mac)
}

async fn an_attachment_is_deleted_with_its_instance_where_asked_for(account: &Account) -> Outcome {
    let (made, attachment) = attached(account, "a").await?;
    account.cloud.delete_on_termination(&made.eni, &attachment).await?;
    let seen = account.seen(&made.eni).await?;
    same("DeleteOnTermination", seen.attachment.map(|at| at.delete_on_termination), Some(true))
}

async fn an_eni_is_tagged(account: &Account) -> Outcome {
    let made = account.eni(AddressCount::Secondary(0), "a").await?;
    account.cloud.tag_eni(&made.eni, &[("eks:eni:owner".to_owned(), "sluice".to_owned())].into()).await?;
    let seen = account.seen(&made.eni).await?;
    same("the new tag", seen.tags.get("eks:eni:owner").map(String::as_str), Some("sluice"))?;
    same("the old tag", seen.tags.get(OWNER).map(String::as_str), Some(account.instance.as_str()))
}

async fn an_eni_gets_other_security_groups(account: &Account) -> Outcome {
    let made = account.eni(AddressCount::Secondary(0), "a").await?;
    let groups = vec![account.group("pods").await?, account.group("more").await?];
    account.cloud.set_groups(&made.eni, &groups).await?;
    let seen: BTreeSet<_> = account.seen(&made.eni).await?.security_groups.into_iter().collect();
    same("its security groups", seen, groups.into_iter().collect())
}

async fn assigned_addresses_are_on_the_eni(account: &Account) -> Outcome {
    let made = account.eni(AddressCount::Secondary(1), "a").await?;
    account.cloud.assign(&made.eni, AddressCount::Secondary(2)).await?;
    let seen = account.seen(&made.eni).await?;
    same("the number of its secondary addresses", seen.secondary_ips.len(), 3)?;
    holds("those from before are among them", seen.secondary_ips.is_superset(&made.secondary_ips))
}

async fn assigning_answers_with_what_is_new(account: &Account) -> Outcome {
    let made = account.eni(AddressCount::Secondary(1), "a").await?;
    let added = account.cloud.assign(&made.eni, AddressCount::Secondary(2)).await?;
    same("the number of addresses in the answer", (added.addresses.len(), added.prefixes.len()), (2, 0))?;
    holds("none of them is old", added.addresses.is_disjoint(&made.secondary_ips))
}

async fn prefixes_are_assigned(account: &Account) -> Outcome {
    let made = account.eni(AddressCount::Secondary(0), "a").await?;
    let added = account.cloud.assign(&made.eni, AddressCount::Prefixes(2)).await?;
    same("the number of prefixes in the answer", (added.addresses.len(), added.prefixes.len()), (0, 2))?;
    same("its prefixes", account.seen(&made.eni).await?.prefixes, added.prefixes)
}

async fn addresses_are_given_back(account: &Account) -> Outcome {
    let made = account.eni(AddressCount::Secondary(3), "a").await?;
    let back: BTreeSet<Ipv4Addr> = made.secondary_ips.iter().copied().take(2).collect();
    account.cloud.unassign(&made.eni, &Unassign { addresses: back.clone(), prefixes: BTreeSet::new() }).await?;
    let left: BTreeSet<Ipv4Addr> = made.secondary_ips.difference(&back).copied().collect();
    same("what is left", account.seen(&made.eni).await?.secondary_ips, left)
}

async fn prefixes_are_given_back(account: &Account) -> Outcome {
    let made = account.eni(AddressCount::Prefixes(2), "a").await?;
    let back = made.prefixes.iter().copied().take(1).collect();
    account.cloud.unassign(&made.eni, &Unassign { addresses: BTreeSet::new(), prefixes: back }).await?;
    same("the number of prefixes left", account.seen(&made.eni).await?.prefixes.len(), 1)
}

async fn giving_back_twice_conflicts(account: &Account) -> Outcome {
    let made = account.eni(AddressCount::Secondary(2), "a").await?;
    let back = Unassign { addresses: made.secondary_ips, prefixes: BTreeSet::new() };
    account.cloud.unassign(&made.eni, &back).await?;
    fails(account.cloud.unassign(&made.eni, &back).await, &[CloudErrorKind::Conflict]).map(drop)
}

async fn an_attached_eni_is_not_deleted(account: &Account) -> Outcome {
    let (made, _) = attached(account, "a").await?;
    fails(account.cloud.delete_eni(&made.eni).await, &[CloudErrorKind::Conflict]).map(drop)
}

async fn a_detached_eni_is_deleted(account: &Account) -> Outcome {
    let (made, attachment) = attached(account, "a").await?;
    account.cloud.detach_eni(&attachment).await?;
    same("the attachment", account.seen(&made.eni).await?.attachment, None)?;
    account.cloud.delete_eni(&made.eni).await?;
    same("what is described", account.cloud.describe_enis(&[made.eni]).await?, Vec::new())
}

async fn deleting_twice_is_well(account: &Account) -> Outcome {
    let made = account.eni(AddressCount::Secondary(0), "a").await?;
    account.cloud.delete_eni(&made.eni).await?;
    Ok(account.cloud.delete_eni(&made.eni).await?)
}

async fn detaching_twice_finds_nothing(account: &Account) -> Outcome {
    let (_, attachment) = attached(account, "a").await?;
    account.cloud.detach_eni(&attachment).await?;
    fails(account.cloud.detach_eni(&attachment).await, &[CloudErrorKind::NotFound]).map(drop)
}

async fn what_is_attached_is_owned(account: &Account) -> Outcome {
    let order = account.order(&account.subnet, AddressCount::Secondary(0), "a");
    let made = account.cloud.create_eni(&CreateEni { tags: [].into(), ..order }).await?;
    account.cloud.attach_eni(&made.eni, &account.instance, 0, 1).await?;
    let owned = account.cloud.owned_enis(&account.instance).await?;
    let owned: BTreeSet<EniId> = owned.into_iter().map(|eni| eni.eni).collect();
    same("what is owned", owned, [account.primary().await?, made.eni].into())
}

async fn what_is_tagged_is_owned(account: &Account) -> Outcome {
    let made = account.eni(AddressCount::Secondary(0), "a").await?;
    let owned = account.cloud.owned_enis(&account.instance).await?;
    let owned: BTreeSet<EniId> = owned.into_iter().map(|eni| eni.eni).collect();
    same("what is owned", owned, [account.primary().await?, made.eni].into())
}

async fn unknown_enis_are_left_out(account: &Account) -> Outcome {
    let primary = account.primary().await?;
    let seen = account.cloud.describe_enis(&[unknown_eni(), primary.clone()]).await?;
    same("what is described", seen.into_iter().map(|eni| eni.eni).collect::<Vec<_>>(), vec![primary])
}

async fn an_unknown_eni_cannot_be_changed(account: &Account) -> Outcome {
    let assigned = account.cloud.assign(&unknown_eni(), AddressCount::Secondary(1)).await;
    let error = fails(assigned, &[CloudErrorKind::NotFound])?;
    same("the code", error.code.as_str(), "InvalidNetworkInterfaceID.NotFound")
}

async fn a_taken_device_index_conflicts(account: &Account) -> Outcome {
    let made = account.eni(AddressCount::Secondary(0), "a").await?;
    let attached = account.cloud.attach_eni(&made.eni, &account.instance, 0, 0).await;
    fails(attached, &[CloudErrorKind::Conflict]).map(drop)
}

async fn an_instance_holds_so_many_enis(account: &Account) -> Outcome {
    for device in [1, 2] {
        let made = account.eni(AddressCount::Secondary(0), &device.to_string()).await?;
        account.cloud.attach_eni(&made.eni, &account.instance, 0, device).await?;
    }
    let made = account.eni(AddressCount::Secondary(0), "3").await?;
    let attached = account.cloud.attach_eni(&made.eni, &account.instance, 0, 3).await;
    fails(attached, &[CloudErrorKind::AttachmentLimit]).map(drop)
}

async fn an_eni_holds_so_many_addresses(account: &Account) -> Outcome {
    let assigned = account.cloud.assign(&account.primary().await?, AddressCount::Secondary(10)).await;
    fails(assigned, &[CloudErrorKind::AddressLimit]).map(drop)
}

/// An ENI that leaves one free address in the small subnet.
async fn crowd(account: &Account) -> Result<Ec2Eni, Wrong> {
    Ok(account.cloud.create_eni(&account.order(&account.tiny, AddressCount::Secondary(9), "crowd")).await?)
}

async fn a_full_subnet_makes_no_eni(account: &Account) -> Outcome {
    crowd(account).await?;
    let made = account.cloud.create_eni(&account.order(&account.tiny, AddressCount::Secondary(3), "a")).await;
    fails(made, &[CloudErrorKind::InsufficientAddresses]).map(drop)
}

async fn a_full_subnet_assigns_no_address(account: &Account) -> Outcome {
    let made = crowd(account).await?;
    let assigned = account.cloud.assign(&made.eni, AddressCount::Secondary(2)).await;
    fails(assigned, &[CloudErrorKind::InsufficientAddresses]).map(drop)
}

async fn without_a_whole_block_no_eni_with_a_prefix_is_made(account: &Account) -> Outcome {
    let made = account.cloud.create_eni(&account.order(&account.tiny, AddressCount::Prefixes(1), "a")).await;
    fails(made, &[CloudErrorKind::InsufficientPrefixes]).map(drop)
}

async fn without_a_whole_block_no_prefix_is_assigned(account: &Account) -> Outcome {
    let made = account.cloud.create_eni(&account.order(&account.tiny, AddressCount::Secondary(0), "a")).await?;
    let assigned = account.cloud.assign(&made.eni, AddressCount::Prefixes(1)).await;
    fails(assigned, &[CloudErrorKind::InsufficientPrefixes]).map(drop)
}
