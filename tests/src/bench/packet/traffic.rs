//! What goes between the pods, all of it by one thread.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::super::stats::percentile;

/// The server's port.
const PORT: u16 = 80;
/// Round trips of a turn, and as many as are not counted.
const ROUND_TRIPS: usize = 2_000;
const WARM_UP: usize = 200;
/// Connections of a turn.
const CONNECTIONS: usize = 200;
/// Bytes of a request, and of its answer.
const REQUEST: usize = 64;
/// Bytes of a bulk transfer.
const BULK: usize = 64 << 20;
/// The same in Gbit.
pub(crate) const BULK_BITS: f64 = 64.0 * 8.0 * 1.048_576e-3;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What one turn of an arm has shown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn {
    /// The median round trip, in microseconds.
    pub(crate) round_trip: f64,
    /// The median of connecting, asking, answering and closing, in microseconds.
    pub(crate) connection: f64,
    /// Seconds of the bulk transfer.
    pub(crate) bulk: f64,
}

/// Both ends of a connection.
#[derive(Debug)]
pub(crate) struct Open {
    client: TcpStream,
    server: TcpStream,
}

impl Open {
    /// The client's end.
    pub(crate) fn client_address(&self) -> Result<SocketAddr, super::BenchError> {
        self.client.local_addr().map_err(super::BenchError::setup("a connection is lost"))
    }

    /// The server's end.
    pub(crate) fn server_address(&self) -> Result<SocketAddr, super::BenchError> {
        self.client.peer_addr().map_err(super::BenchError::setup("a connection is lost"))
    }
}

/// A listener, in the server's namespace.
pub(crate) fn listen(address: IpAddr) -> io::Result<TcpListener> {
    TcpListener::bind((address, PORT))
}

/// A connection, from the client's namespace.
pub(crate) fn connect(listener: &TcpListener) -> io::Result<Open> {
    let client = TcpStream::connect_timeout(&listener.local_addr()?, PATIENCE)?;
    let (server, _) = listener.accept()?;
    for end in [&client, &server] {
        end.set_nodelay(true)?;
        end.set_read_timeout(Some(PATIENCE))?;
        end.set_write_timeout(Some(PATIENCE))?;
    }
    Ok(Open { client, server })
}

/// One turn, in the client's namespace.
pub(crate) fn turn(listener: &TcpListener) -> io::Result<Turn> {
    let micros = |times: &[Duration]| percentile(times, 50).as_secs_f64() * 1e6;
    let mut open = connect(listener)?;
    let mut times = Vec::with_capacity(ROUND_TRIPS);
    let mut byte = [0; 1];
    for round in 0..WARM_UP + ROUND_TRIPS {
        let begun = Instant::now();
        open.client.write_all(b"?")?;
        open.server.read_exact(&mut byte)?;
        open.server.write_all(b"!")?;
        open.client.read_exact(&mut byte)?;
        if round >= WARM_UP {
            times.push(begun.elapsed());
        }
    }
    let round_trip = micros(&times);
    drop(open);

    times.clear();
    let mut request = [0; REQUEST];
    for _ in 0..CONNECTIONS {
        let begun = Instant::now();
        connection(listener, &mut request)?;
        times.push(begun.elapsed());
    }
    let connection = micros(&times);
    Ok(Turn { round_trip, connection, bulk: bulk(&mut connect(listener)?)? })
}

/// A request and its answer on a connection.
fn ask(open: &mut Open, request: &mut [u8; REQUEST]) -> io::Result<()> {
    open.client.write_all(request)?;
    open.server.read_exact(request)?;
    open.server.write_all(request)?;
    open.client.read_exact(request)
}

/// Connects, asks, answers, closes: the client first.
fn connection(listener: &TcpListener, request: &mut [u8; REQUEST]) -> io::Result<()> {
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    let mut open = Open { client, server };
    ask(&mut open, request)?;
    drop(open.client);
    drop(open.server);
    Ok(())
}

/// Requests a second on one connection, over so long; in the client's namespace.
pub(crate) fn requests(listener: &TcpListener, over: Duration) -> io::Result<f64> {
    let mut open = connect(listener)?;
    let mut request = [0; REQUEST];
    rate(over, || ask(&mut open, &mut request))
}

/// Connections a second with a request each, over so long; in the client's namespace.
pub(crate) fn connections(listener: &TcpListener, over: Duration) -> io::Result<f64> {
    let mut request = [0; REQUEST];
    rate(over, || connection(listener, &mut request))
}

/// How often a second something can be done, tried for so long.
fn rate(over: Duration, mut work: impl FnMut() -> io::Result<()>) -> io::Result<f64> {
    let begun = Instant::now();
    let mut done = 0_u32;
    loop {
        work()?;
        done += 1;
        let took = begun.elapsed();
        if took >= over {
            return Ok(f64::from(done) / took.as_secs_f64());
        }
    }
}

/// Writes what there is room for and reads what has come, until all is there. Says how many seconds that took.
pub(crate) fn bulk(open: &mut Open) -> io::Result<f64> {
    let mut buffer = vec![0; 256 << 10];
    let (mut sent, mut received) = (0, 0);
    open.client.set_nonblocking(true)?;
    open.server.set_nonblocking(true)?;
    let begun = Instant::now();
    while received < BULK {
        if sent < BULK {
            let length = buffer.len().min(BULK - sent);
            sent += moved(open.client.write(buffer.get(..length).unwrap_or_default()))?;
        }
        received += moved(open.server.read(&mut buffer))?;
        if begun.elapsed() > PATIENCE {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    Ok(begun.elapsed().as_secs_f64())
}

/// Bytes that were moved; none, where none could be.
fn moved(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        other => other,
    }
}
