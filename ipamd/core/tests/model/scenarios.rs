//! Scenarios: `tests/scenarios/NAME.scn` says what happens, `NAME.golden` what is planned then and why.
//!
//! A changed plan shows as a changed golden file. With `UPDATE_GOLDENS` set in the environment the files are written anew.
//!
//! ```text
//! node ENIS IPV4_PER_ENI            the instance type; comes first
//! set NAME=VALUE...                 targets, by VPC CNI's names
//! subnet CIDR [whole-prefixes=no]   the primary ENI's subnet; `no`: others hold one address of each /28
//! start                             the daemon starts
//! bound COUNT                       pods are bound to the node and will ask next
//! add COUNT | del COUNT             pods; the oldest go first
//! die COUNT                         pods end and their DEL is lost
//! run SECONDS | settle              time passes
//! next FATE...                      of the calls to come: done, lost, late, throttled, denied, unavailable, conflict
//! crash [without-checkpoint]        kill -9, start
//! look                              the daemon looks at the kernel
//! others take COUNT | others leave  addresses of the subnet
//! imds [late | lacks DEVICE]        IMDS is heard: as it is, as it was, without an ENI
//! ```

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use ipnet::Ipv4Net;
use sluice_ipamd_core::cloud::{CloudErrorKind, InstanceLimits};
use sluice_ipamd_core::plan::Targets;
use sluice_ipamd_core::state::Event;
use sluice_ipamd_core::time::Timestamp;

use crate::life::{Fate, Life, owner, subnet_id};

struct Scene {
    limits: InstanceLimits,
    targets: Targets,
    cidr: Ipv4Net,
    whole_prefixes: bool,
    life: Option<Life>,
    fates: Rc<RefCell<VecDeque<Fate>>>,
    started: Timestamp,
    pods: u32,
    alive: VecDeque<String>,
    told: usize,
    refused: usize,
    out: String,
}

impl Scene {
    fn new() -> Self {
        Self {
            limits: InstanceLimits { enis: 3, further_cards: Vec::new(), ipv4_per_eni: 10, prefixes: true },
            targets: Targets::default(),
            cidr: "10.0.0.0/20".parse().unwrap(),
            whole_prefixes: true,
            life: None,
            fates: Rc::default(),
            started: Timestamp::default(),
            pods: 0,
            alive: VecDeque::new(),
            told: 0,
            refused: 0,
            out: String::new(),
        }
    }

    fn set(&mut self, assignment: &str) {
        let (name, value) = assignment.split_once('=').unwrap();
        let number = || value.parse().unwrap();
        match name {
            "ENABLE_PREFIX_DELEGATION" => self.targets.prefixes = value == "true",
            "WARM_ENI_TARGET" => self.targets.warm_enis = number(),
            "WARM_PREFIX_TARGET" => self.targets.warm_prefixes = number(),
            "WARM_IP_TARGET" => self.targets.warm_ips = number(),
            "MINIMUM_IP_TARGET" => self.targets.minimum_ips = number(),
            "MAX_ENI" => self.targets.max_enis = Some(number()),
            "MAX_PODS" => self.targets.max_pods = number(),
            other => panic!("no target {other}"),
        }
        if let Some(life) = &mut self.life {
            life.targets = self.targets.clone();
        }
    }

    fn start(&mut self) {
        let mut life = Life::with_subnet(self.limits.clone(), self.targets.clone(), self.cidr);
        let fates = Rc::clone(&self.fates);
        life.fates = Box::new(move |_| fates.borrow_mut().pop_front().unwrap_or(Fate::Done));
        if !self.whole_prefixes {
            let free = life.ec2.free(&subnet_id(1));
            let one_of_each = free.into_iter().filter(|address| address.octets()[3] % 16 == 9);
            life.ec2.subnets.get_mut(&subnet_id(1)).unwrap().others.extend(one_of_each);
        }
        self.started = life.now;
        life.pump();
        self.life = Some(life);
    }

    fn take(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["node", enis, ipv4] => {
                self.limits.enis = enis.parse().unwrap();
                self.limits.ipv4_per_eni = ipv4.parse().unwrap();
            }
            ["set", ..] => words[1..].iter().for_each(|assignment| self.set(assignment)),
            ["subnet", cidr] => self.cidr = cidr.parse().unwrap(),
            ["subnet", cidr, "whole-prefixes=no"] => {
                (self.cidr, self.whole_prefixes) = (cidr.parse().unwrap(), false);
            }
            ["start"] => self.start(),
            ["next", ..] => self.fates.borrow_mut().extend(words[1..].iter().map(|word| fate(word))),
            _ => self.act(&words),
        }
    }

    fn act(&mut self, words: &[&str]) {
        let life = self.life.as_mut().expect("start comes first");
        match words {
            ["add", count] => {
                for _ in 0..count.parse::<u32>().unwrap() {
                    self.pods += 1;
                    life.add(&format!("pod{}", self.pods));
                    self.alive.push_back(format!("pod{}", self.pods));
                }
                life.pump();
            }
            ["bound", count] => {
                let coming = self.pods + 1..=self.pods + count.parse::<u32>().unwrap();
                life.apply(Event::PodsBound(coming.map(|pod| owner(&format!("pod{pod}")).pod.clone()).collect()));
                life.pump();
            }
            ["del", count] => {
                for pod in self.alive.drain(..count.parse::<usize>().unwrap()) {
                    life.del(&pod);
                }
                life.pump();
            }
            ["die", count] => {
                for pod in self.alive.drain(..count.parse::<usize>().unwrap()) {
                    life.pods.retain(|attachment, _| attachment.container.as_str() != pod);
                }
            }
            ["run", seconds] => life.run(Duration::from_secs_f64(seconds.parse().unwrap())),
            ["settle"] => life.settle(),
            ["crash", ..] => {
                for finding in life.crash(|| true, words.len() == 1) {
                    writeln!(self.out, "    found: {finding}").unwrap();
                }
                life.pump();
            }
            ["look"] => {
                for finding in life.look() {
                    writeln!(self.out, "    found: {finding}").unwrap();
                }
                life.pump();
            }
            ["others", "take", count] => {
                let free = life.ec2.free(&subnet_id(1));
                let taken = free.into_iter().take(count.parse().unwrap());
                life.ec2.subnets.get_mut(&subnet_id(1)).unwrap().others.extend(taken);
            }
            ["others", "leave"] => life.ec2.subnets.get_mut(&subnet_id(1)).unwrap().others.clear(),
            ["imds"] => {
                life.hear_imds();
                life.pump();
            }
            ["imds", "late"] => {
                life.hear_late_imds();
                life.pump();
            }
            ["imds", "lacks", device] => {
                life.hear_imds_without(device.parse().unwrap());
                life.pump();
            }
            other => panic!("no such line: {other:?}"),
        }
    }

    /// What has been planned since the last line, and what there is now.
    fn tell(&mut self) {
        let Some(life) = &mut self.life else { return };
        for entry in &life.log[self.told..] {
            writeln!(self.out, "    {entry}").unwrap();
        }
        self.told = life.log.len();
        for refusal in &life.refused[self.refused..] {
            writeln!(self.out, "    refused: {} {}", refusal.code, refusal.message).unwrap();
        }
        self.refused = life.refused.len();
        let tally = life.state.ledger().tally(life.now);
        writeln!(
            self.out,
            "  = {} s: ENIs {:?}, {} assigned, {} free, {} cooling, {} quarantined, {} pending, {} wait",
            life.now.since(self.started).as_secs_f64(),
            life.held(),
            tally.assigned,
            tally.free,
            tally.cooling,
            tally.quarantined,
            tally.pending,
            life.queue.waiting(),
        )
        .unwrap();
        if let Some(cause) = &life.plan.held_up {
            writeln!(self.out, "    held up: {cause}").unwrap();
        }
    }
}

fn fate(word: &str) -> Fate {
    match word {
        "done" => Fate::Done,
        "lost" => Fate::Lost,
        "late" => Fate::Late,
        "throttled" => Fate::Refused(CloudErrorKind::Throttled),
        "denied" => Fate::Refused(CloudErrorKind::Denied),
        "unavailable" => Fate::Refused(CloudErrorKind::Unavailable),
        "conflict" => Fate::Refused(CloudErrorKind::Conflict),
        other => panic!("no fate {other}"),
    }
}

fn play(script: &str) -> String {
    let mut scene = Scene::new();
    for line in script.lines().map(str::trim_end).filter(|line| !line.is_empty()) {
        writeln!(scene.out, "{line}").unwrap();
        if !line.starts_with('#') {
            scene.take(line);
            scene.tell();
        }
    }
    scene.out
}

#[test]
fn scenarios_are_planned_as_their_goldens_say() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut scripts: Vec<PathBuf> = std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    scripts.retain(|path| path.extension().is_some_and(|extension| extension == "scn"));
    scripts.sort();
    assert!(!scripts.is_empty());
    let mut changed = Vec::new();
    for script in scripts {
        let played = play(&std::fs::read_to_string(&script).unwrap());
        let golden = script.with_extension("golden");
        if std::env::var_os("UPDATE_GOLDENS").is_some() {
            std::fs::write(&golden, &played).unwrap();
        }
        let expected = std::fs::read_to_string(&golden).unwrap_or_default();
        if expected != played {
            let line = expected.lines().zip(played.lines()).position(|(old, new)| old != new);
            let line = line.unwrap_or_else(|| expected.lines().count().min(played.lines().count()));
            changed.push(format!(
                "{} line {}:\n- {}\n+ {}",
                golden.display(),
                line + 1,
                expected.lines().nth(line).unwrap_or("(end)"),
                played.lines().nth(line).unwrap_or("(end)"),
            ));
        }
    }
    assert!(changed.is_empty(), "set UPDATE_GOLDENS to write them anew\n{}", changed.join("\n"));
}
