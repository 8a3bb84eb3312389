use super::*;
use crate::fixture::{at, eni, eni_id, ip, owner, state};
use crate::ledger::Owner;
use crate::state::Event;

/// As reference/vpc-cni.md 2.5 shows it.
const DOCUMENT: &str = r#"{"version":"vpc-cni-ipam/1","allocations":[
    {"networkName":"aws-cni","containerID":"c0ffee","ifName":"eth0","ipv4":"192.168.9.106",
     "allocationTimestamp":1711111111000000000,
     "metadata":{"k8sPodNamespace":"kube-system","k8sPodName":"coredns-1","interfacesCount":1}},
    {"networkName":"_migrated-from-cri","containerID":"beef","ifName":"unknown","ipv4":"192.168.9.107","metadata":{}}]}"#;

fn refused(document: &str) -> String {
    crate::recover::with_sources(&read(document.as_bytes()).unwrap_err())
}

#[test]
fn the_vpc_cnis_allocations_are_read() {
    let read = read(DOCUMENT.as_bytes()).unwrap();
    let [first, second] = &read[..] else { panic!("{read:?}") };
    assert_eq!(first.attachment.to_string(), "c0ffee/eth0@aws-cni");
    assert_eq!((first.address, first.since_nanos), (ip("192.168.9.106"), 1_711_111_111_000_000_000));
    assert_eq!(first.pod.to_string(), "kube-system/coredns-1");
    assert_eq!(second.attachment.to_string(), "beef/eth0@aws-cni", "as a DEL will name it");
    assert_eq!(super::read(br#"{"version":"vpc-cni-ipam/1"}"#).unwrap(), []);
}

#[test]
fn what_is_wrong_with_them_is_said() {
    assert_eq!(
        refused(r#"{"version":"vpc-cni-ipam/2","allocations":7}"#),
        "the VPC CNI's allocations are of version \"vpc-cni-ipam/2\", and \"vpc-cni-ipam/1\" is read"
    );
    let with = |from: &str, to: &str| refused(&DOCUMENT.replace(from, to));
    assert!(with("192.168.9.107", "192.168.9").starts_with("ipv4 of allocation 1 is \"192.168.9\": invalid IPv4"));
    assert!(with("\"c0ffee\"", "\"../x\"").starts_with("containerID of allocation 0 is \"../x\": container id"));
    assert_eq!(with("\"ipv4\":\"192.168.9.107\",", ""), "ipv4 of allocation 1 is \"\": there is no address");
    assert_eq!(with("9.107", "9.106"), "allocation 1 names 192.168.9.106, which another one has");
    assert!(with("[", "").starts_with("the VPC CNI's allocations cannot be read: "));
    let long = vec![b' '; SIZE_LIMIT + 1];
    assert!(matches!(read(&long), Err(AwsNodeError::TooLong(_))));
}

#[test]
fn what_is_handed_back_reads_as_it_was() {
    let mut state = state(vec![eni(1, &["10.0.0.0/28"]), eni(2, &["10.0.1.1/32"])]);
    for (address, name) in [("10.0.0.3", "a"), ("10.0.1.1", "b"), ("10.0.0.4", "gone")] {
        state.apply(Event::Assign(ip(address), owner(name)), at(1)).unwrap();
    }
    state.apply(Event::Release(owner("gone").attachment.clone(), crate::fixture::COOLDOWN), at(2)).unwrap();
    let written = write(state.ledger()).unwrap();
    assert_eq!(written.keys().collect::<Vec<_>>(), [&0]);
    let text = String::from_utf8(written[&0].clone()).unwrap();
    assert!(text.starts_with(
        r#"{"version":"vpc-cni-ipam/1","allocations":[{"networkName":"aws-cni","containerID":"a","ifName":"eth0","ipv4":"10.0.0.3","allocationTimestamp":1700000001000000000,"metadata":{"k8sPodNamespace":"default","k8sPodName":"a","interfacesCount":1}}"#
    ), "{text}");
    let back = read(&written[&0]).unwrap();
    let seen: Vec<_> = back.iter().map(|one| (one.address, one.pod.name.as_str())).collect();
    assert_eq!(seen, [(ip("10.0.0.3"), "a"), (ip("10.0.1.1"), "b")]);
}

#[test]
fn a_pod_on_two_cards_is_in_two_files_by_its_first_interface() {
    let mut state = state(vec![eni(1, &["10.0.0.0/28"]), eni(2, &["10.0.1.1/32"])]);
    let first = owner("a");
    let further = Owner { attachment: nic::attachment(&first.attachment, 1).unwrap(), ..Owner::clone(&first) };
    state.apply(Event::Assign(ip("10.0.0.3"), first), at(1)).unwrap();
    state.apply(Event::Assign(ip("10.0.1.1"), further.into()), at(1)).unwrap();
    state.ledger.eni_mut(&eni_id(2)).unwrap().card = 3;
    let written = write(state.ledger()).unwrap();
    assert_eq!(written.keys().collect::<Vec<_>>(), [&0, &3]);
    for (card, address) in [(0, "10.0.0.3"), (3, "10.0.1.1")] {
        let text = String::from_utf8(written[&card].clone()).unwrap();
        assert!(text.contains(r#""k8sPodName":"a","interfacesCount":2"#), "{text}");
        let back = read(&written[&card]).unwrap();
        assert_eq!(
            (back.len(), back[0].address, back[0].attachment.to_string().as_str()),
            (1, ip(address), "a/eth0@aws-cni")
        );
    }
}
