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
pub(super) const BULK_BITS: f64 = 64.0 * 8.0 * 1.048_576e-3;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What one turn of an arm has shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn {
    /// The median round trip, in microseconds.
    pub(super) round_trip: f64,
    /// The median of connecting, asking, answering and closing, in microseconds.
    pub(super) connection: f64,
    /// Seconds of the bulk transfer.
    pub(super) bulk: f64,
}

/// Both ends of a connection.
#[derive(Debug)]
pub(super) struct Open {
    client: TcpStream,
    server: TcpStream,
}

impl Open {
    /// The client's end.
    pub(super) fn client_address(&self) -> Result<SocketAddr, super::BenchError> {
        self.client.local_addr().map_err(super::BenchError::setup("a connection is lost"))
    }

    /// The server's end.
    pub(super) fn server_address(&self) -> Result<SocketAddr, super::BenchError> {
        self.client.peer_addr().map_err(super::BenchError::setup("a connection is lost"))
    }
}

/// A listener, in the server's namespace.
pub(super) fn listen(address: IpAddr) -> io::Result<TcpListener> {
    TcpListener::bind((address, PORT))
}

/// A connection, from the client's namespace.
pub(super) fn connect(listener: &TcpListener) -> io::Result<Open> {
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
pub(super) fn turn(listener: &TcpListener) -> io::Result<Turn> {
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
    let address = listener.local_addr()?;
    let mut request = [0; REQUEST];
    for _ in 0..CONNECTIONS {
        let begun = Instant::now();
        let mut client = TcpStream::connect(address)?;
        let (mut server, _) = listener.accept()?;
        client.write_all(&request)?;
        server.read_exact(&mut request)?;
        server.write_all(&request)?;
        client.read_exact(&mut request)?;
        drop(client);
        drop(server);
        times.push(begun.elapsed());
    }
    let connection = micros(&times);
    Ok(Turn { round_trip, connection, bulk: bulk(&mut connect(listener)?)? })
}

/// Writes what there is room for and reads what has come, until all is there. Says how many seconds that took.
fn bulk(open: &mut Open) -> io::Result<f64> {
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
