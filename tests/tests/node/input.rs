//! Input that nobody should send: a clear error, and nothing lost.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use sluice_contract::node::IPAMD_SOCKET;
use sluice_tests::bed::{Bed, add_pods, scene};
use sluice_tests::privileged::privileged;
use sluice_vpcsim::deployment::Binaries;

/// SPECIFICATION P-07: the socket.
#[tokio::test(flavor = "multi_thread")]
async fn p07_garbage_on_the_socket_is_answered_and_costs_nobody_anything() {
    if !privileged() {
        return;
    }
    let bed = Bed::up(&scene(0.1), &[]).await.unwrap();
    let node = bed.node("node-a").unwrap();
    for garbage in [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        vec![0xff; 64],
        vec![0, 0, 0, 2, b'{', b'}'],
        [&[0, 0, 0, 5][..], b"nonsense"].concat(),
        Vec::new(),
    ] {
        let sent = node.node().run(move || {
            let mut socket = UnixStream::connect(IPAMD_SOCKET).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            // The daemon may close before it has read all of it.
            let _closed = socket.write_all(&garbage);
            socket.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = Vec::new();
            // It answers or closes; either way it does not wait for ever.
            match socket.read_to_end(&mut answer) {
                Ok(_) => true,
                Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        });
        assert!(sent.await.unwrap(), "the daemon neither answered nor closed");
    }
    assert_eq!(add_pods(node, "default", "after", 2).await.unwrap().len(), 2);
}

/// SPECIFICATION P-07: the configuration.
#[tokio::test(flavor = "multi_thread")]
async fn p07_every_fault_of_the_configuration_is_in_one_message() {
    let binaries = Binaries::beside_this_program().unwrap();
    let output = tokio::process::Command::new(&binaries.ipamd)
        .env_clear()
        .envs([("WARM_IP_TARGET", "many"), ("IP_COOLDOWN_PERIOD", "-5"), ("AWS_VPC_ENI_MTU", "70000")])
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{said}");
    for word in ["WARM_IP_TARGET", "many", "IP_COOLDOWN_PERIOD", "-5", "AWS_VPC_ENI_MTU", "70000"] {
        assert!(said.contains(word), "{word} is not in the message: {said}");
    }
}
