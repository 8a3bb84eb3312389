//! The answer, for people and for programs.

use std::fmt::Write as _;

use serde_json::{Value, json};
use sluice_policy_core::oracle::explain::{Matching, Standing};
use sluice_policy_core::vector::run::{Gate, gate, port_text};
use sluice_policy_core::vector::schema::Expected;

use super::{Answer, Way};
use crate::paint::Paint;

/// What becomes of it: of a Service, what becomes of all ways to it, if they agree.
fn verdict(ways: &[Way]) -> Option<Expected> {
    let first = ways.first()?.fate.verdict;
    ways.iter().all(|way| way.fate.verdict == first).then_some(first)
}

fn painted(verdict: Expected, paint: Paint) -> String {
    match verdict {
        Expected::Allow => paint.good(verdict.as_str()),
        Expected::Deny | Expected::Refuse => paint.bad(verdict.as_str()),
    }
}

fn standing(standing: Standing) -> String {
    match standing {
        Standing::Admin(priority) => format!("Admin {priority}"),
        Standing::Normal => "Normal".to_owned(),
        Standing::Baseline(priority) => format!("Baseline {priority}"),
    }
}

fn rule_text(one: &Matching) -> String {
    one.rule.as_ref().map_or_else(|| one.policy.to_string(), ToString::to_string)
}

/// For people.
pub(super) fn text(answer: &Answer, paint: Paint) -> String {
    let row = &answer.row;
    let name = |many: &sluice_policy_core::vector::schema::Many| {
        many.endpoints.first().map(ToString::to_string).unwrap_or_default()
    };
    let request = row.request.as_ref().map_or_else(String::new, |request| format!("  {request}"));
    let said = match verdict(&answer.ways) {
        Some(verdict) => painted(verdict, paint),
        None if answer.ways.is_empty() => paint.bad("no ready backend is behind the Service"),
        None => paint.bad("it depends on the backend"),
    };
    let mut text = String::new();
    let asked = format!("{} -> {}  {}{request}", name(&row.from), name(&row.to), port_text(row.protocol, row.port));
    let _infallible = writeln!(text, "{}  {said}", paint.heading(&asked));
    for way in &answer.ways {
        if answer.ways.len() > 1 {
            let backend = way.legs.last().map_or_else(String::new, |(leg, _)| gate(leg).peer);
            let _infallible = writeln!(text, "\n{}  {}", painted(way.fate.verdict, paint), paint.dim(&backend));
        }
        for (leg, rules) in &way.legs {
            let Gate { direction, subject, peer, service, answer, .. } = gate(leg);
            let service = if service { " (a Service)" } else { "" };
            let _infallible = writeln!(text, "\n  {direction} of {subject} {peer}{service}\n    {answer}");
            for one in rules {
                let mut notes = String::new();
                if let Some(name) = &one.name {
                    let _infallible = write!(notes, "  \"{name}\"");
                }
                if one.dry_run {
                    notes.push_str("  dry run");
                }
                if let Some(unusable) = &one.unusable {
                    let _infallible = write!(notes, "  cannot be used: {}: {}", unusable.path, unusable.reason);
                }
                let (at, effect) = (standing(one.standing), one.effect.as_str());
                let _infallible = writeln!(text, "      {at:<13} {effect:<8} {}{}", rule_text(one), paint.dim(&notes));
            }
        }
        if way.legs.is_empty() {
            text.push_str("\n  no pod with a gate is on this way\n");
        }
        if let Some(recorded) = way.recorded {
            let _infallible = writeln!(text, "\n  recorded, as if dry runs were in force: {}", recorded.as_str());
        }
    }
    if !answer.notes.is_empty() {
        text.push('\n');
    }
    for note in &answer.notes {
        let _infallible = writeln!(text, "{}", paint.dim(&format!("note: {note}")));
    }
    text
}

/// For programs.
pub(super) fn json(answer: &Answer) -> String {
    let row = &answer.row;
    let value = json!({
        "from": row.from.endpoints.first().map(ToString::to_string),
        "to": row.to.endpoints.first().map(ToString::to_string),
        "port": row.port,
        "protocol": row.protocol.to_string(),
        "request": row.request.as_ref().map(ToString::to_string),
        "verdict": verdict(&answer.ways).map(Expected::as_str),
        "ways": answer.ways.iter().map(way).collect::<Vec<_>>(),
        "notes": answer.notes,
    });
    format!("{value:#}\n")
}

fn way(way: &Way) -> Value {
    let gates = way.legs.iter().map(|(leg, rules)| {
        let Gate { direction, subject, peer, service, verdict, rule, answer } = gate(leg);
        json!({
            "direction": direction.as_str(),
            "subject": subject,
            "peer": peer,
            "service": service,
            "verdict": verdict,
            "rule": rule,
            "answer": answer,
            "matching": rules.iter().map(matching).collect::<Vec<_>>(),
        })
    });
    json!({
        "verdict": way.fate.verdict.as_str(),
        "recorded": way.recorded.map(Expected::as_str),
        "gates": gates.collect::<Vec<_>>(),
    })
}

fn matching(one: &Matching) -> Value {
    let (tier, priority) = match one.standing {
        Standing::Admin(priority) => ("Admin", Some(priority)),
        Standing::Normal => ("Normal", None),
        Standing::Baseline(priority) => ("Baseline", Some(priority)),
    };
    json!({
        "tier": tier,
        "priority": priority,
        "effect": one.effect.as_str(),
        "policy": one.policy.to_string(),
        "rule": one.rule.as_ref().map(ToString::to_string),
        "name": one.name.as_deref(),
        "dryRun": one.dry_run,
        "unusable": one.unusable.as_ref().map(|unusable| format!("{}: {}", unusable.path, unusable.reason)),
    })
}
