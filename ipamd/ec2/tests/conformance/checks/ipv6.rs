//! Prefixes of IPv6.

use sluice_ipamd_core::cloud::{AddressCount, CloudErrorKind, CreateEni};
use sluice_ipamd_daemon::cloud::Cloud;

use super::{Outcome, fails, holds, same};
use crate::account::Account;

pub(super) async fn a_subnet_is_described_with_its_ipv6_cidr(account: &Account) -> Outcome {
    let (subnet, cidr) = account.subnet_with_ipv6().await?;
    same("its IPv6 CIDR", account.cloud.describe_subnet(&subnet).await?.ipv6_cidr, Some(cidr))?;
    same("that of one without", account.cloud.describe_subnet(&account.subnet).await?.ipv6_cidr, None)
}

pub(super) async fn an_eni_is_made_with_an_ipv6_prefix(account: &Account) -> Outcome {
    let (subnet, cidr) = account.subnet_with_ipv6().await?;
    let order = account.order(&subnet, AddressCount::Secondary(1), "a");
    let made = account.cloud.create_eni(&CreateEni { ipv6_prefix: true, ..order }).await?;
    same("the number of its IPv6 prefixes", made.ipv6_prefixes.len(), 1)?;
    let lies = made.ipv6_prefixes.iter().all(|prefix| prefix.prefix_len() == 80 && cidr.contains(prefix));
    holds("it is a /80 of the subnet", lies)?;
    same("the number of its secondary addresses", made.secondary_ips.len(), 1)
}

pub(super) async fn an_ipv6_prefix_is_assigned(account: &Account) -> Outcome {
    let (subnet, cidr) = account.subnet_with_ipv6().await?;
    let order = account.order(&subnet, AddressCount::Secondary(0), "a");
    let made = account.cloud.create_eni(&order).await?;
    same("the number of IPv6 prefixes before", made.ipv6_prefixes.len(), 0)?;
    let added = account.cloud.assign_ipv6_prefix(&made.eni).await?;
    holds("it is a /80 of the subnet", added.prefix_len() == 80 && cidr.contains(&added))?;
    same("its IPv6 prefixes", account.seen(&made.eni).await?.ipv6_prefixes, [added].into())
}

pub(super) async fn without_an_ipv6_cidr_no_ipv6_prefix_is_assigned(account: &Account) -> Outcome {
    let made = account.eni(AddressCount::Secondary(0), "a").await?;
    let refused = account.cloud.assign_ipv6_prefix(&made.eni).await;
    fails(refused, &[CloudErrorKind::Conflict, CloudErrorKind::Other]).map(drop)
}
