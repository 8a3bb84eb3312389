use super::*;
use sluice_contract::id::{ContainerId, IfName, NetworkName, PodRef};

fn owner(container: &str) -> Arc<Owner> {
    Arc::new(Owner {
        attachment: Attachment {
            container: ContainerId::new(container).unwrap(),
            ifname: IfName::new("eth0").unwrap(),
            network: NetworkName::new("sluice").unwrap(),
        },
        pod: PodRef::default(),
        host_ifname: IfName::new("eni0").unwrap(),
        netns: format!("/run/netns/{container}"),
    })
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_millis(seconds * 1000)
}

fn order(queue: &Queue) -> Vec<&str> {
    queue.waiters().map(|waiter| waiter.owner.attachment.container.as_str()).collect()
}

#[test]
fn who_comes_first_stands_first() {
    let mut queue = Queue::default();
    for (token, name) in [(1, "b"), (2, "a"), (3, "c")] {
        queue.join(Token(token), owner(name), None, at(60 + token), at(token)).unwrap();
    }
    assert_eq!(order(&queue), ["b", "a", "c"]);
    assert_eq!((queue.waiting(), queue.next_deadline()), (3, Some(at(61))));
    assert_eq!(queue.remove(&owner("a").attachment), [Token(2)]);
    assert_eq!(order(&queue), ["b", "c"]);
    assert_eq!(queue.remove(&owner("a").attachment), []);
}

#[test]
fn the_same_attachment_waits_once_until_its_last_request_goes() {
    let mut queue = Queue::default();
    queue.join(Token(1), owner("a"), None, at(60), at(0)).unwrap();
    queue.join(Token(2), owner("a"), None, at(90), at(30)).unwrap();
    assert_eq!(queue.waiting(), 1);
    assert!(queue.withdraw(Token(1)));
    assert!(!queue.withdraw(Token(1)));
    assert_eq!((queue.waiting(), queue.next_deadline()), (1, Some(at(90))));
    assert!(queue.withdraw(Token(2)));
    assert_eq!(queue, Queue::default());
}

#[test]
fn the_queue_is_bounded_and_says_so() {
    let mut queue = Queue::default();
    for token in 0..QUEUE_LIMIT as u64 {
        queue.join(Token(token), owner(&format!("c{token}")), None, at(60), at(0)).unwrap();
    }
    let before = queue.clone();
    let refusal = queue.join(Token(9999), owner("one-more"), None, at(60), at(0)).unwrap_err();
    assert_eq!(refusal.code, RefusalCode::QueueFull);
    assert_eq!(queue, before);
    for token in 10_000..10_000 + JOINED_LIMIT as u64 - 1 {
        queue.join(Token(token), owner("c0"), None, at(60), at(0)).unwrap();
    }
    assert_eq!(queue.join(Token(9999), owner("c0"), None, at(60), at(0)).unwrap_err().code, RefusalCode::QueueFull);
}
