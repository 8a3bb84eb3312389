//! One suite for every EC2 that was not written here for ipamd: vpcsim's, always, and LocalStack's where
//! `LOCALSTACK_ENDPOINT` names one (`./test localstack` starts it).
//!
//! Each check makes a VPC of its own by the API and then asks through [`Ec2Cloud`](sluice_ipamd_ec2::Ec2Cloud), as ipamd
//! does. What LocalStack is known to lack is named in [`peers`], with what it does instead. Such a check is tried all the
//! same, and must fail: what a newer LocalStack has learnt is to be taken off the list.

#![cfg(test)]

mod account;
mod checks;
mod peers;

use std::time::Duration;

use account::Account;
use checks::Check;
use sluice_vpcsim::ec2::Ec2;
use sluice_vpcsim::live::LiveModel;
use sluice_vpcsim::model::{Model, Settings};
use tokio::net::TcpListener;

/// The longest that a check may take.
const LONGEST: Duration = Duration::from_secs(60);

/// How a check has ended, as it is told.
async fn ended(check: &Check, url: &str) -> Result<(), String> {
    let tried = tokio::time::timeout(LONGEST, async {
        let account = Account::open(url).await?;
        (check.run)(&account).await
    });
    match tried.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(wrong)) => Err(wrong.to_string()),
        Err(_elapsed) => Err(format!("not done after {LONGEST:?}")),
    }
}

/// Makes all checks, tells of each, and fails with those that did not end as they should.
async fn passes(peer: &str, url: &str, lacks: &[(&str, &str)]) {
    for (name, _) in lacks {
        assert!(checks::ALL.iter().any(|check| check.name == *name), "{name} is no check");
    }
    let (mut passed, mut skipped, mut failed) = (0, 0, Vec::new());
    for check in checks::ALL {
        let lacking = lacks.iter().find(|(name, _)| *name == check.name);
        match (ended(check, url).await, lacking) {
            (Ok(()), None) => passed += 1,
            (Err(_), Some((name, why))) => {
                skipped += 1;
                println!("{peer}: skipped {name}: {why}");
            }
            (Err(wrong), None) => failed.push(format!("{}: {wrong}", check.name)),
            (Ok(()), Some((name, _))) => {
                failed.push(format!("{name}: passes; take it off the list of what {peer} lacks"));
            }
        }
    }
    println!("{peer} at {url}: {passed} passed, {skipped} skipped, {} failed", failed.len());
    assert!(failed.is_empty(), "{peer}:\n  {}", failed.join("\n  "));
    assert!(passed > 0, "{peer} passed nothing");
}

#[tokio::test]
async fn vpcsim_passes() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(Ec2::new(LiveModel::new(Model::new(Settings::instant()))).serve(listener));
    passes("vpcsim", &url, &[]).await;
    server.abort();
}

#[tokio::test]
async fn localstack_passes_but_for_what_it_lacks() {
    let told = std::env::var_os("LOCALSTACK_ENDPOINT").and_then(|url| url.into_string().ok());
    let Some(url) = told.filter(|url| !url.is_empty()) else {
        println!("LocalStack is not asked: LOCALSTACK_ENDPOINT is not set; `./test localstack` sets it");
        return;
    };
    passes("LocalStack", &url, peers::LOCALSTACK_LACKS).await;
}

#[test]
fn the_documentation_lists_what_localstack_lacks() {
    let page = include_str!("../../../../docs/localstack.md");
    for (name, why) in peers::LOCALSTACK_LACKS {
        let row = format!("| `{name}` | {why} |");
        assert!(page.contains(&row), "docs/localstack.md has no such row:\n{row}");
    }
    let checks = format!("one suite of {} checks", checks::ALL.len());
    assert!(page.replace('\n', " ").contains(&checks), "docs/localstack.md does not say: {checks}");
    let rows = page.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(rows, peers::LOCALSTACK_LACKS.len(), "rows of docs/localstack.md that name a check");
}

/// What stands behind the metadata service, which no peer has.
const OF_THE_METADATA_SERVICE: [&str; 3] = ["identity", "imds_enis", "vpc_cidrs"];

#[test]
fn every_call_of_ec2_that_ipamd_makes_is_checked() {
    let seam = include_str!("../../../daemon/src/cloud.rs");
    let (_, seam) = seam.split_once("pub trait Cloud").unwrap();
    let (seam, _) = seam.split_once("\n}").unwrap();
    let methods = seam.lines().filter_map(|line| line.trim_start().strip_prefix("fn ")?.split('(').next());
    let methods: Vec<&str> = methods.filter(|method| !OF_THE_METADATA_SERVICE.contains(method)).collect();
    assert!(methods.len() >= 19, "{methods:?}");
    let checks = [
        include_str!("account.rs"),
        include_str!("checks.rs"),
        include_str!("checks/ipv6.rs"),
        include_str!("checks/shared.rs"),
    ];
    for method in methods {
        // The built-in table answers before EC2 is asked.
        let called = if method == "instance_limits" { "described_limits" } else { method };
        let call = format!("cloud.{called}(");
        assert!(checks.iter().any(|text| text.contains(&call)), "no check calls {call}");
    }
}
