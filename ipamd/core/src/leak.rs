//! ENIs that nobody will use or free any more: those that were made for an instance that is gone, and are attached to nothing.
//!
//! One node of a cluster looks for them, for all. An ENI whose instance lives is that instance's own: it is in the journal of
//! its ipamd, or is found when that asks EC2 for what it owns, and is never touched here, however old it is and however long
//! it waits to be attached.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sluice_contract::id::{EniId, InstanceId};

use crate::cloud::Ec2Eni;
use crate::state::tag;
use crate::time::Timestamp;

/// How old an ENI is at least before it counts as leaked, and for how long it must have been seen without its instance: EC2
/// may show a new ENI before it shows the instance that it is for.
pub const LEAKED_AFTER: Duration = Duration::from_secs(15 * 60);

/// How often one looks.
pub const LOOK_EVERY: Duration = Duration::from_secs(10 * 60);

/// ENIs that are deleted after one look at most; the rest waits for the next one.
pub const AT_ONCE: usize = 50;

/// What has been seen while looking.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Search {
    /// When each ENI was first seen without its instance, and has been ever since.
    alone: BTreeMap<EniId, Timestamp>,
}

/// The instance that an unattached ENI of the cluster was made for. None: it is attached, or another cluster's, or not made by a
/// node's ipamd, or marked as not to be managed.
#[must_use]
pub fn made_for(eni: &Ec2Eni, cluster: &str) -> Option<InstanceId> {
    let said = |key: &str| eni.tags.get(key).map(String::as_str);
    let ours = said(tag::CLUSTER) == Some(cluster) && said(tag::NO_MANAGE) != Some("true");
    let instance = said(tag::INSTANCE)?;
    (ours && eni.attachment.is_none()).then(|| InstanceId::new(instance).ok())?
}

impl Search {
    /// Takes in a look at EC2, and says which ENIs have leaked: at most [`AT_ONCE`].
    ///
    /// `enis` are those of the cluster that are attached to nothing, `living` the instances among those that they were made for
    /// that EC2 has and has not terminated.
    #[must_use]
    pub fn look(
        &mut self,
        enis: &[Ec2Eni],
        cluster: &str,
        living: &BTreeSet<InstanceId>,
        now: Timestamp,
    ) -> Vec<EniId> {
        let before = std::mem::take(&mut self.alone);
        let mut leaked = Vec::new();
        for eni in enis {
            if made_for(eni, cluster).is_none_or(|instance| living.contains(&instance)) {
                continue;
            }
            let since = before.get(&eni.eni).copied().unwrap_or(now);
            self.alone.insert(eni.eni.clone(), since);
            // A tag that cannot be read says nothing; then what was seen has to do.
            let made = eni.tags.get(tag::CREATED_AT).and_then(|text| Timestamp::parse_rfc3339(text));
            let old = made.is_none_or(|made| now.since(made) >= LEAKED_AFTER);
            if old && now.since(since) >= LEAKED_AFTER && leaked.len() < AT_ONCE {
                leaked.push(eni.eni.clone());
            }
        }
        leaked
    }

    /// How many ENIs are alone by now.
    #[must_use]
    pub fn alone(&self) -> usize {
        self.alone.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::{Ec2Attachment, InterfaceType};

    const CLUSTER: &str = "prod";

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000) + Duration::from_secs(seconds)
    }

    fn eni(number: u8, instance: &str, made: Timestamp) -> Ec2Eni {
        let tags = [(tag::CLUSTER, CLUSTER), (tag::INSTANCE, instance), (tag::CREATED_AT, &made.to_string())];
        Ec2Eni {
            eni: EniId::new(format!("eni-000000000000000{number:02x}")).unwrap(),
            mac: "02:00:00:00:00:01".parse().unwrap(),
            attachment: None,
            subnet: "subnet-00000001".parse().unwrap(),
            primary_ip: [10, 0, 0, 9].into(),
            secondary_ips: BTreeSet::new(),
            prefixes: BTreeSet::new(),
            ipv6_prefixes: BTreeSet::new(),
            security_groups: Vec::new(),
            tags: tags.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
            interface_type: InterfaceType::Interface,
            description: String::new(),
            connection_tracking: None,
        }
    }

    const GONE: &str = "i-0000000000000dead";
    const LIVES: &str = "i-0000000000000001e";

    /// What is leaked after looks at these times.
    fn looks(enis: &[Ec2Eni], times: &[u64]) -> Vec<usize> {
        let living = BTreeSet::from([InstanceId::new(LIVES).unwrap()]);
        let mut search = Search::default();
        times.iter().map(|time| search.look(enis, CLUSTER, &living, at(*time)).len()).collect()
    }

    #[test]
    fn an_eni_without_its_instance_has_leaked_when_it_was_seen_so_for_long() {
        assert_eq!(looks(&[eni(1, GONE, at(0))], &[10_000, 10_600, 10_899, 10_900]), [0, 0, 0, 1]);
        // Made a moment ago: what EC2 shows of its instance may come later.
        assert_eq!(looks(&[eni(1, GONE, at(10_100))], &[10_000, 10_900, 10_999, 11_000]), [0, 0, 0, 1]);
    }

    #[test]
    fn what_may_be_in_a_journal_or_in_use_or_another_s_is_let_alone() {
        let made = at(0);
        let mut attached = eni(2, GONE, made);
        attached.attachment = Some(Ec2Attachment {
            attachment: "eni-attach-00000001".parse().unwrap(),
            instance: None,
            device: 1,
            card: 0,
            delete_on_termination: false,
        });
        let tagged = |key: &str, value: Option<&str>| {
            let mut eni = eni(3, GONE, made);
            eni.tags.remove(key);
            eni.tags.extend(value.map(|value| (key.to_owned(), value.to_owned())));
            eni
        };
        let enis = [
            eni(1, LIVES, made),
            attached,
            tagged(tag::CLUSTER, Some("other")),
            tagged(tag::CLUSTER, None),
            tagged(tag::INSTANCE, None),
            tagged(tag::INSTANCE, Some("no instance")),
            tagged(tag::NO_MANAGE, Some("true")),
        ];
        assert_eq!(looks(&enis, &[0, 100_000, 200_000]), [0, 0, 0]);
        // What says nothing of its age has the age that was seen.
        assert_eq!(looks(&[tagged(tag::CREATED_AT, Some("yesterday"))], &[0, 899, 900]), [0, 0, 1]);
    }

    #[test]
    fn one_that_was_with_its_instance_meanwhile_begins_anew() {
        let (gone, lives) = (BTreeSet::new(), BTreeSet::from([InstanceId::new(LIVES).unwrap()]));
        let enis = [eni(1, LIVES, at(0))];
        let mut search = Search::default();
        assert!(search.look(&enis, CLUSTER, &gone, at(1000)).is_empty());
        assert!(search.look(&enis, CLUSTER, &lives, at(1800)).is_empty());
        assert!(search.look(&enis, CLUSTER, &gone, at(2000)).is_empty());
        assert_eq!(search.alone(), 1);
        assert_eq!(search.look(&enis, CLUSTER, &gone, at(2900)).len(), 1);
    }

    #[test]
    fn they_are_deleted_some_at_a_time() {
        let enis: Vec<Ec2Eni> = (0..=99).map(|number| eni(number, GONE, at(0))).collect();
        assert_eq!(looks(&enis, &[0, 900]), [0, AT_ONCE]);
    }
}
