//! Where the pool settles: each row of the tables of reference/vpc-cni.md 2.7, reached by a burst and pod by pod, and left
//! again.

use sluice_ipamd_core::cloud::InstanceLimits;
use sluice_ipamd_core::plan::Targets;

use crate::life::Life;

const T3_SMALL: InstanceLimits = InstanceLimits { enis: 3, further_cards: Vec::new(), ipv4_per_eni: 4, prefixes: true };
const P3DN: InstanceLimits = InstanceLimits { enis: 15, further_cards: Vec::new(), ipv4_per_eni: 50, prefixes: true };

/// No target but these.
fn targets(prefixes: bool, warm_units: u32, warm_ips: u32, minimum_ips: u32) -> Targets {
    Targets { prefixes, warm_enis: warm_units, warm_prefixes: warm_units, warm_ips, minimum_ips, ..Targets::default() }
}

/// Pods, addresses or prefixes of each ENI, unused addresses.
type Row = (u32, Vec<u32>, u32);

fn settles(name: &str, limits: &InstanceLimits, targets: &Targets, rows: &[Row]) {
    let state = |life: &Life| {
        let tally = life.state.ledger().tally(life.now);
        (tally.assigned, life.held(), tally.free)
    };
    for row in rows {
        let mut burst = Life::new(limits.clone(), targets.clone());
        for pod in 0..row.0 {
            burst.add(&format!("pod{pod}"));
        }
        burst.settle();
        assert_eq!(state(&burst), *row, "{name} by a burst\n{}", burst.log.join("\n"));
        assert_eq!(burst.refused, []);
    }
    let mut slow = Life::new(limits.clone(), targets.clone());
    slow.settle();
    let mut pods = 0;
    for row in rows {
        while pods < row.0 {
            slow.add(&format!("pod{pods}"));
            slow.run(std::time::Duration::from_secs(8));
            pods += 1;
        }
        slow.settle();
        assert_eq!(state(&slow), *row, "{name} pod by pod\n{}", slow.log.join("\n"));
    }
    while pods > 0 {
        pods -= 1;
        slow.del(&format!("pod{pods}"));
        slow.run(std::time::Duration::from_secs(3));
    }
    slow.settle();
    assert_eq!(state(&slow), rows[0], "{name} emptied again\n{}", slow.log.join("\n"));
    assert_eq!(slow.ec2.blunders, Vec::<String>::new());
}

#[test]
fn p08_secondary_addresses_settle_as_in_the_published_table() {
    settles(
        "t3.small WARM_ENI=1",
        &T3_SMALL,
        &targets(false, 1, 0, 0),
        &[(0, vec![3], 3), (5, vec![3, 3, 3], 4), (9, vec![3, 3, 3], 0)],
    );
    settles(
        "t3.small WARM_IP=1 MIN=1",
        &T3_SMALL,
        &targets(false, 1, 1, 1),
        &[(0, vec![1], 1), (5, vec![3, 3], 1), (9, vec![3, 3, 3], 0)],
    );
    settles(
        "t3.small WARM_IP=2 MIN=5",
        &T3_SMALL,
        &targets(false, 1, 2, 5),
        &[(0, vec![3, 2], 5), (5, vec![3, 3, 1], 2), (9, vec![3, 3, 3], 0)],
    );
    settles(
        "p3dn.24xlarge WARM_ENI=1",
        &P3DN,
        &targets(false, 1, 0, 0),
        &[(0, vec![49], 49), (3, vec![49, 49], 95), (95, vec![49, 49, 49], 52)],
    );
    settles(
        "p3dn.24xlarge WARM_IP=5 MIN=10",
        &P3DN,
        &targets(false, 1, 5, 10),
        &[(0, vec![10], 10), (7, vec![12], 5), (15, vec![20], 5), (45, vec![49, 1], 5)],
    );
}

#[test]
fn p08_prefixes_settle_as_in_the_published_table() {
    settles(
        "t3.small WARM_PREFIX=1",
        &T3_SMALL,
        &targets(true, 1, 0, 0),
        &[(0, vec![1], 16), (5, vec![2], 27), (16, vec![2], 16), (17, vec![3], 31), (58, vec![3, 2], 22)],
    );
    settles(
        "t3.small PD WARM_IP=1 MIN=1",
        &T3_SMALL,
        &targets(true, 0, 1, 1),
        &[(0, vec![1], 16), (5, vec![1], 11), (17, vec![2], 15), (58, vec![3, 1], 6)],
    );
    settles(
        "t3.small PD WARM_IP=7 MIN=20",
        &T3_SMALL,
        &targets(true, 0, 7, 20),
        &[(0, vec![2], 32), (5, vec![2], 27), (17, vec![2], 15), (58, vec![3, 2], 22)],
    );
    settles(
        "p3dn.24xlarge WARM_PREFIX=1",
        &P3DN,
        &targets(true, 1, 0, 0),
        &[(0, vec![1], 16), (3, vec![2], 29), (95, vec![7], 17)],
    );
    settles(
        "p3dn.24xlarge PD WARM_IP=5 MIN=10",
        &P3DN,
        &targets(true, 0, 5, 10),
        &[(0, vec![1], 16), (7, vec![1], 9), (15, vec![2], 17), (45, vec![4], 19)],
    );
}
