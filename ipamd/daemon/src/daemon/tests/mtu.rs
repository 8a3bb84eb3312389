//! The MTU of ENIs, and that of pods.

use super::*;

async fn mtus(settings: &[(&str, &str)]) -> (BTreeSet<u32>, u32) {
    let mut world = World::new("m5.large");
    settings.iter().for_each(|(name, value)| world.set(name, value));
    let node = world.settled().await;
    let pod = match node.ask(Call::Add(add_request("a")), Duration::from_secs(60)).await {
        Reply::Done(Outcome::Add(reply)) => reply.mtu,
        other => panic!("ADD answered {other:?}"),
    };
    node.wait("a second ENI is warm", |view| view.is_settled() && view.enis.len() == 2).await;
    let enis: Vec<u32> = world.host.state().enis.values().map(|eni| eni.mtu).collect();
    assert!(!enis.is_empty(), "it is set up");
    (enis.into_iter().collect(), pod)
}

#[tokio::test(start_paused = true)]
async fn enis_and_pods_have_the_mtu_that_is_set_for_them() {
    assert_eq!(mtus(&[]).await, ([9001].into(), 9001));
    // That of the ENIs is the pods' too, unless they have their own.
    assert_eq!(mtus(&[("AWS_VPC_ENI_MTU", "1500")]).await, ([1500].into(), 1500));
    assert_eq!(mtus(&[("AWS_VPC_ENI_MTU", "1500"), ("POD_MTU", "1300")]).await, ([1500].into(), 1300));
    assert_eq!(mtus(&[("POD_MTU", "1400")]).await, ([9001].into(), 1400));
}
