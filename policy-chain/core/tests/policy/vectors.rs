//! The vectors of tests/scenarios/policy, by the oracle and by the compiler: every one passes, and none is left out.

use std::path::Path;

use sluice_policy_core::cluster::Cluster;
use sluice_policy_core::flow::{Judgement, Query, Reason, Verdict};
use sluice_policy_core::oracle;
use sluice_policy_core::oracle::explain::{Effect, Standing, matching};
use sluice_policy_core::settings::Settings;
use sluice_policy_core::vector::judge::{Afresh, Compiled, Judge};
use sluice_policy_core::vector::run::{Counts, Judges, Outcome};
use sluice_policy_core::vector::schema::{Mode, Suite};
use sluice_policy_core::vector::{self, read};

fn suite(name: &str) -> Suite {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/scenarios/policy").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    read(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn by_oracle() -> Box<dyn Judge> {
    Box::new(Afresh::new(Settings::default(), oracle::judge))
}

fn by_compiler() -> Box<dyn Judge> {
    Box::new(Compiled::new(Settings::default()))
}

/// Runs a file and shows what failed.
fn run(name: &str, judges: Judges<'_>) -> Outcome {
    let outcome = vector::run(&suite(name), judges);
    assert_eq!(outcome.faulty, []);
    for failure in outcome.failures.iter().take(20) {
        println!("{failure:#?}");
    }
    outcome
}

/// The probes of netpol.yaml: 58,840 by pod IP, 389 of them in vectors that nobody can judge; and those of e2e/, legacy/ and
/// cyclonus/ through Services too.
fn netpol(judges: Judges<'_>) {
    let outcome = run("netpol.yaml", judges);
    let counts = |passed, undefined| Counts { passed, failed: 0, undefined, skipped: 0 };
    assert_eq!(outcome.by_mode.get(&Mode::PodIp), Some(&counts(58_451, 389)));
    assert_eq!(outcome.by_mode.get(&Mode::ServiceIp), Some(&counts(57_538, 0)));
    let undefined: Vec<(&str, &str)> =
        outcome.undefined.iter().map(|one| (one.vector.as_ref(), one.tag.as_ref())).collect();
    assert_eq!(
        undefined,
        [
            ("pa/06-ingress-same-labels-port-range", "legacy-schema-v0.1.1"),
            ("pa/08-ordering-matters-for-overlapping-rules-order-1", "legacy-schema-v0.1.1"),
            ("pa/20-banp-deny-all-after-anp", "legacy-schema-v0.1.1"),
            ("knp-bats/3-icmpv6-ingress", "implementation-defined-in-k8s"),
            ("aws-cnp/05-same-priority-deny-over-accept", "tie-undefined-upstream"),
            ("edge/15-hostnetwork-not-subject", "implementation-defined-in-k8s"),
        ]
    );
}

#[test]
fn every_vector_passes_by_the_compiler_and_the_oracle() {
    netpol(Judges { judge: &by_compiler, beside: Some(&by_oracle) });
}

/// Our own: L7, ICMP, names and their time, Services, nodes, what is special to cilium.io, dry runs.
#[test]
fn every_vector_of_our_own_passes_by_the_compiler_and_the_oracle() {
    let outcome = run("sluice.yaml", Judges { judge: &by_compiler, beside: Some(&by_oracle) });
    assert_eq!(outcome.counts, Counts { passed: 242, failed: 0, undefined: 0, skipped: 0 });
}

/// The verdict that follows from the list of matching rules, and whether it is drawn from one at all.
fn first_that_decides(cluster: &Cluster, settings: &Settings, query: &Query) -> (&'static str, Option<Reason>) {
    let found: Vec<_> = matching(cluster, settings, query).into_iter().filter(|one| !one.dry_run).collect();
    let tier = |wanted: fn(&Standing) -> bool| {
        let mut of = found.iter().filter(move |one| wanted(&one.standing));
        of.next().map(|one| (one.effect, Reason::Rule(one.rule.clone().unwrap())))
    };
    let word = |effect: Effect| if effect == Effect::Deny { "deny" } else { "allow" };
    if let Some((effect, rule)) = tier(|standing| matches!(standing, Standing::Admin(_)))
        && effect != Effect::Pass
    {
        return (word(effect), Some(rule));
    }
    let normal = found.iter().find(|one| one.standing == Standing::Normal);
    match normal.map(|one| (one.effect, one)) {
        Some((Effect::Isolate, one)) => return ("deny", Some(Reason::Isolated(one.policy.clone()))),
        Some((Effect::Proxy, one)) => return ("redirect", Some(Reason::Rule(one.rule.clone().unwrap()))),
        Some((effect, one)) => return (word(effect), Some(Reason::Rule(one.rule.clone().unwrap()))),
        None => {}
    }
    match tier(|standing| matches!(standing, Standing::Baseline(_))) {
        Some((Effect::Pass, _)) | None => ("allow", None),
        Some((effect, rule)) => (word(effect), Some(rule)),
    }
}

/// `sluice explain` lists all that matches; the first of the list has to be what decides.
fn explained(cluster: &Cluster, settings: &Settings, query: &Query) -> Judgement {
    let judgement = oracle::judge(cluster, settings, query);
    let audited = cluster.pods.get(&query.subject).is_some_and(|pod| pod.audit);
    let by_policy = match judgement.reason {
        Reason::Rule(_) | Reason::Isolated(_) | Reason::NoPolicy => true,
        Reason::OwnNode | Reason::OwnAddress | Reason::Service | Reason::TooLarge | Reason::Unknown => false,
    };
    let service = cluster.services.values().any(|service| service.addresses.contains(&query.peer))
        || cluster.nodes.values().any(|node| node.addresses.contains(&query.peer) && query.port >= 30_000);
    let hairpin = query.origin == sluice_policy_core::flow::Origin::Hairpin;
    if by_policy && !service && !audited && !hairpin {
        let (verdict, reason) = first_that_decides(cluster, settings, query);
        // What is only looked at passes as without it.
        let seen = matches!(&judgement.verdict, Verdict::Redirect(proxied) if proxied.see.is_some() && proxied.lists.is_empty());
        let said = if seen && verdict == "allow" { "allow" } else { judgement.verdict.as_str() };
        assert_eq!(said, verdict, "{query:?}: {judgement:?}");
        assert_eq!(judgement.reason, reason.unwrap_or(Reason::NoPolicy), "{query:?}: {judgement:?}");
    }
    judgement
}

#[test]
fn what_is_listed_first_decides() {
    let explained = |cluster: &Cluster, settings: &Settings, query: &Query| {
        let judgement = oracle::judge(cluster, settings, query);
        if judgement.verdict == Verdict::Defer { judgement } else { explained(cluster, settings, query) }
    };
    let make = || Box::new(Afresh::new(Settings::default(), explained)) as Box<dyn Judge>;
    let mut netpol = suite("netpol.yaml");
    netpol.vectors.retain(|vector| !["e2e/", "legacy/", "cyclonus/"].iter().any(|of| vector.id.starts_with(of)));
    // A judge without memory cuts the two connections that a name opened which has ended since.
    for (suite, cut) in [(netpol, 0), (suite("sluice.yaml"), 2)] {
        let outcome = vector::run(&suite, Judges { judge: &make, beside: None });
        assert_eq!(outcome.counts.failed, cut);
    }
}
