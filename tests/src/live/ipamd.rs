//! An address daemon that speaks ipamd's protocol and gives every pod the addresses that it is to have.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use sluice_contract::id::{EniId, MacAddr, PodRef};
use sluice_contract::node::{IPAMD_SOCKET, MTU};
use sluice_contract::rpc::{
    AddReply, Call, DelReply, FrameError, GcReply, Hello, Outcome, PodAddress, Refusal, RefusalCode, Reply, Request,
    StatusReply, decode, encode, frame_length,
};
use sluice_vpcsim::node::{Node, NodeError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use super::eni::Eni;

/// What pods are to have.
pub type Book = Arc<Mutex<BTreeMap<(String, String), Entry>>>;

/// What a pod, by `(namespace, name)`, is to have.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The ENI that they are on.
    pub eni: Eni,
}

impl From<Vec<IpAddr>> for Entry {
    /// Addresses on the primary ENI.
    fn from(addresses: Vec<IpAddr>) -> Self {
        Self { addresses, eni: Eni::Primary }
    }
}

/// Serves on the node's socket until the node is gone.
///
/// # Errors
/// The node cannot be entered; or, within, the socket cannot be made.
pub async fn serve(node: &Node, book: Book) -> Result<io::Result<()>, NodeError> {
    node.run_async(move || async move {
        if let Some(directory) = std::path::Path::new(IPAMD_SOCKET).parent() {
            std::fs::create_dir_all(directory)?;
        }
        let listener = UnixListener::bind(IPAMD_SOCKET)?;
        drop(tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let book = Arc::clone(&book);
                // A plugin that goes away takes its question with it.
                drop(tokio::task::spawn_local(async move { drop(answer(stream, &book).await) }));
            }
        }));
        Ok(())
    })
    .await
}

/// As [`serve`], by the caller's runtime, until what is returned is dropped: for a node whose thread does other things.
///
/// # Errors
/// As [`serve`].
pub async fn serve_beside(node: &Node, book: Book) -> Result<io::Result<JoinSet<()>>, NodeError> {
    let bound = node.run(|| {
        if let Some(directory) = std::path::Path::new(IPAMD_SOCKET).parent() {
            std::fs::create_dir_all(directory)?;
        }
        let listener = std::os::unix::net::UnixListener::bind(IPAMD_SOCKET)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    let listener: io::Result<UnixListener> = bound.await?.and_then(UnixListener::from_std);
    Ok(listener.map(|listener| {
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let book = Arc::clone(&book);
                // A plugin that goes away takes its question with it.
                open.spawn(async move { drop(answer(stream, &book).await) });
                while open.try_join_next().is_some() {}
            }
        });
        tasks
    }))
}

async fn answer(mut stream: UnixStream, book: &Book) -> Result<(), FrameError> {
    let _hello: Hello = read(&mut stream).await?;
    let request: Request = read(&mut stream).await?;
    let reply = match request.call {
        Call::Add(add) => match addresses(book, &add.pod) {
            Some(addresses) => {
                Reply::Done(Outcome::Add(AddReply { addresses, mtu: MTU, egress: None, disable_ipv6: false }))
            }
            None => {
                let pod = format!("{}/{}", add.pod.namespace, add.pod.name);
                Reply::Refused(Refusal::new(RefusalCode::BadRequest, format!("nobody told of a pod {pod}")))
            }
        },
        Call::Del(del) => {
            Reply::Done(Outcome::Del(DelReply { addresses: addresses(book, &del.pod).unwrap_or_default() }))
        }
        Call::Check(_) => Reply::Refused(Refusal::new(RefusalCode::BadRequest, "a test does not ask this")),
        Call::Gc(_) => Reply::Done(Outcome::Gc(GcReply { released: Vec::new() })),
        Call::Status => Reply::Done(Outcome::Status(StatusReply { free: 1, assigned: 0 })),
    };
    let mut frames = encode(&Hello::of("sluice-ipamd"))?;
    frames.extend(encode(&reply)?);
    stream.write_all(&frames).await.map_err(FrameError::Socket)?;
    stream.shutdown().await.map_err(FrameError::Socket)
}

fn addresses(book: &Book, pod: &PodRef) -> Option<Vec<PodAddress>> {
    let book = book.lock().unwrap_or_else(PoisonError::into_inner);
    let known = book.get(&(pod.namespace.clone(), pod.name.clone()))?;
    let device = known.eni.device();
    let eni = EniId::new(format!("eni-0123456789abcdef{device}")).ok()?;
    let address = |ip: &IpAddr| PodAddress {
        ip: *ip,
        interface: 0,
        eni: eni.clone(),
        eni_mac: MacAddr([2, 0, 0, 0, device.to_be_bytes()[3], 1]),
        card: 0,
        device,
        table: known.eni.table(),
        branch: None,
    };
    Some(known.addresses.iter().map(address).collect())
}

async fn read<T: serde::de::DeserializeOwned>(stream: &mut UnixStream) -> Result<T, FrameError> {
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix).await.map_err(FrameError::Socket)?;
    let mut body = vec![0; frame_length(prefix)?];
    stream.read_exact(&mut body).await.map_err(FrameError::Socket)?;
    decode(&body)
}
