//! What stands between client and server, all of it in the proxy's namespace for egress flows, with what the gate redirects
//! and in the client's name: a plain relay, HAProxy, and nginx.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket, sockopt,
};
use sluice_hostnet::netns::{Namespace, NamespaceThread};
use sluice_proxy::connect::Connect as _;
use sluice_proxy::flow::Direction;
use sluice_proxy::net::{Acceptor, Listeners, PlaceConfig, Places, Upstreams};
use tokio::net::TcpStream;
use tokio::process::Child;
use tokio::task::spawn_local;

use super::super::BenchError;
use super::super::machine::{CPUS, Machine, SERVER, Who, pin};
use super::PORT;

/// The port of the peers' listening sockets. It says nothing: the lookup of sockets goes by the flow.
const LISTENER: u16 = 1080;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;

/// What takes the redirected flows of a machine, until it is dropped.
#[derive(Debug)]
pub(super) struct Between {
    /// Whose time it costs.
    pub(super) who: Who,
    _places: Places,
    _threads: Vec<NamespaceThread>,
    _process: Option<Child>,
}

/// Makes the proxy's namespaces, and gives what is redirected to sockets that `open` makes in that of egress flows.
async fn join<T: Send + 'static>(
    machine: &Machine<'_>,
    open: impl FnOnce(&Places) -> io::Result<(Listeners, T)> + Send + 'static,
) -> Result<(Places, T), BenchError> {
    let joined = machine.node()?.run_async(move || async move {
        let places = Places::ensure(&PlaceConfig::default()).await;
        let mut places = places.map_err(BenchError::setup("the proxy's namespaces cannot be made"))?;
        let opened = open(&places).map_err(BenchError::setup("nothing can listen in the proxy's namespace"))?;
        let (first, sockets) = opened;
        let taken = places.take_over(&first);
        taken.map_err(BenchError::setup("gates cannot be told where to redirect flows"))?;
        Ok((places, sockets))
    });
    joined.await?
}

/// A plain relay, by the same sockets as the product's proxy: what comes is read and written, and nothing looked at.
pub(super) async fn relay(machine: &Machine<'_>) -> Result<Between, BenchError> {
    let opened = join(machine, |places| {
        let host = Namespace::current().map_err(io::Error::other)?;
        let upstreams = Upstreams::of_workers(Direction::Egress, &host, CPUS.len()).map_err(io::Error::other)?;
        let listeners = Listeners::open(&places.egress, CPUS.len())?;
        let first = listeners.first().map(again).ok_or(io::ErrorKind::NotFound)??;
        Ok((first, (listeners, upstreams)))
    });
    let (places, (listeners, upstreams)) = opened.await?;
    let (mut threads, mut tids) = (Vec::new(), Vec::new());
    for ((listeners, upstreams), cpu) in listeners.into_iter().zip(upstreams).zip(CPUS) {
        let thread = places.egress.thread(format!("relay-{cpu}"));
        let thread = thread.map_err(BenchError::setup("the proxy's namespace cannot be entered"))?;
        let begun = thread.run(move || async move {
            pin(0, cpu)?;
            let acceptor = Acceptor::new(listeners.direction, listeners.tcp)?;
            drop(spawn_local(accept(acceptor, upstreams)));
            Ok::<_, io::Error>(nix::unistd::gettid().as_raw())
        });
        let begun = begun.await.map_err(BenchError::setup("a thread of the relay has ended"))?;
        tids.push(begun.map_err(BenchError::setup("the relay does not begin"))?);
        threads.push(thread);
    }
    Ok(Between { who: Who::Threads(tids), _places: places, _threads: threads, _process: None })
}

async fn accept(acceptor: Acceptor, upstreams: Arc<Upstreams>) {
    loop {
        // A client that has gone before it was accepted.
        let Ok((mut client, flow)) = acceptor.accept().await else { continue };
        let upstreams = Arc::clone(&upstreams);
        drop(spawn_local(async move {
            // Whoever is at the other end of a connection that fails is told by its end.
            let Ok(mut upstream) = upstreams.connect(&flow).await else { return };
            drop(tokio::io::copy_bidirectional(&mut client, &mut upstream.stream).await);
            drop::<TcpStream>(client);
        }));
    }
}

/// The same sockets once more.
fn again(listeners: &Listeners) -> io::Result<Listeners> {
    Ok(Listeners {
        direction: listeners.direction,
        tcp: listeners.tcp.try_clone()?,
        udp: listeners.udp.try_clone()?,
        udp_v6: listeners.udp_v6.as_ref().map(std::net::UdpSocket::try_clone).transpose()?,
    })
}

/// So many listening sockets for a peer.
async fn sockets(machine: &Machine<'_>, count: usize) -> Result<(Places, Vec<TcpListener>), BenchError> {
    join(machine, move |places| {
        let open = || (0..count).map(|_| listener()).collect::<io::Result<Vec<TcpListener>>>();
        let sockets = places.egress.namespace().run(open).map_err(io::Error::other)??;
        let first = sockets.first().ok_or(io::ErrorKind::NotFound)?.try_clone()?;
        let others = Listeners::open(&places.egress, 1)?.pop().ok_or(io::ErrorKind::NotFound)?;
        Ok((Listeners { tcp: first, ..others }, sockets))
    })
    .await
}

fn listener() -> io::Result<TcpListener> {
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::IpTransparent, &true)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    setsockopt(&socket, sockopt::ReusePort, &true)?;
    bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, LISTENER)))?;
    listen(&socket, Backlog::new(BACKLOG).map_err(io::Error::from)?)?;
    Ok(socket.into())
}

/// HAProxy, a thread on each CPU with a listening socket of its own, as fast as its documentation tells to make it.
pub(super) async fn haproxy(machine: &Machine<'_>) -> Result<Between, BenchError> {
    let (places, sockets) = sockets(machine, CPUS.len()).await?;
    let [first, second]: [TcpListener; 2] = sockets.try_into().map_err(|_other| BenchError::Incomplete)?;
    let config = "global
  nbthread 2
  cpu-map auto:1/1-2 0-1
  maxconn 4000
defaults
  mode http
  timeout client 60s
  timeout server 60s
  timeout connect 5s
  option splice-auto
  http-reuse never
frontend clients
  bind fd@3 thread 1
  bind fd@4 thread 2
  default_backend servers
backend servers
  server original * source 0.0.0.0 usesrc client
";
    let words = "exec 3<&0 4<&1 </dev/null >&2 && exec haproxy -db -f";
    let (input, output) = (Stdio::from(OwnedFd::from(first)), Stdio::from(OwnedFd::from(second)));
    let child = start(machine, "haproxy.cfg", config, words, (input, output)).await?;
    Ok(between(places, child))
}

/// nginx, a process on each CPU. It keeps connections to the server in a pool, and so does without the client's name for most
/// requests: that is how it is fastest. In a namespace of processes, because its workers outlive a master that is killed.
pub(super) async fn nginx(machine: &Machine<'_>) -> Result<Between, BenchError> {
    let (places, mut sockets) = sockets(machine, 1).await?;
    let socket = sockets.pop().ok_or(BenchError::Incomplete)?;
    let config = format!(
        "daemon off; user root; pid /run/nginx.pid; error_log stderr error;
worker_processes 2; worker_cpu_affinity 01 10;
events {{ worker_connections 4096; }}
http {{
  access_log off; tcp_nodelay on; keepalive_requests 1000000000; client_body_temp_path /run/nginx-b;
  proxy_temp_path /run/nginx-p; fastcgi_temp_path /run/nginx-f; uwsgi_temp_path /run/nginx-u;
  scgi_temp_path /run/nginx-s; proxy_max_temp_file_size 0; proxy_buffers 16 64k; proxy_buffer_size 16k;
  proxy_http_version 1.1; proxy_set_header Host $http_host; proxy_bind $remote_addr:$remote_port transparent;
  upstream kept {{ server {SERVER}:{PORT}; keepalive 64; keepalive_requests 1000000000; }}
  server {{
    listen 0.0.0.0:{LISTENER} backlog={BACKLOG};
    location / {{ proxy_pass http://kept; proxy_set_header Connection \"\"; }}
    location /new {{ proxy_pass http://{SERVER}:{PORT}; }}
  }}
}}
"
    );
    let words = "exec 3<&0 </dev/null && NGINX='3;' exec unshare --pid --fork --kill-child=KILL nginx -c";
    let streams = (Stdio::from(OwnedFd::from(socket)), Stdio::null());
    let child = start(machine, "nginx.conf", &config, words, streams).await?;
    Ok(between(places, child))
}

async fn start(
    machine: &Machine<'_>,
    name: &str,
    config: &str,
    words: &str,
    (input, output): (Stdio, Stdio),
) -> Result<Child, BenchError> {
    let path = Path::new("/run/peers").join(name);
    machine.node()?.write(&path, config).await?;
    let namespace = PlaceConfig::default().directory.join("egress");
    let cpus = CPUS.map(|cpu| cpu.to_string()).join(",");
    machine.start(&namespace, &cpus, &format!("{words} {}", path.display()), input, output).await
}

fn between(places: Places, process: Child) -> Between {
    let who = process.id().map_or(Who::Nobody, Who::Process);
    Between { who, _places: places, _threads: Vec::new(), _process: Some(process) }
}
