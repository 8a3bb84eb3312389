//! Questions, their answers, and how long those take.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::super::machine::{CLIENT_CPU, SERVER_CPU, pin};
use super::super::stats::percentile;

/// The port of DNS.
pub(super) const PORT: u16 = 53;
/// Zones, one for each pattern, and names that are asked for.
pub(super) const ZONES: usize = 100;
const NAMES: usize = 1_000;
/// Ports of the client, and questions that wait at each when as many as possible are asked.
const PORTS: usize = 8;
const WINDOW: usize = 32;
/// A question without an answer for so long is lost.
const LOST: Duration = Duration::from_secs(1);
/// Octets that wait at a socket of ours: what is lost shall not be lost here, whatever else the machine does.
const BUFFER: usize = 4 << 20;
/// How often a client looks that asks so many questions a second: no answer is seen later than that, and meanwhile others have
/// its CPU, as that of a client that waits for its answers. One that never sleeps leaves to all the rest of the machine the CPU
/// of what is measured.
const LOOK: Duration = Duration::from_micros(50);
/// Octets of a message.
const MESSAGE: usize = 512;

/// How much is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// As much as is answered.
    Full,
    /// So many questions a second.
    Rate(u32),
}

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured {
    /// Answers, and a second.
    pub(super) answered: f64,
    pub(super) rate: f64,
    /// Questions without one.
    pub(super) lost: f64,
    /// Percentiles of the time of an answer, in microseconds.
    pub(super) p50: f64,
    pub(super) p99: f64,
    /// CPU time of what stands in between, in microseconds a question.
    pub(super) cpu: f64,
}

/// A server that answers every question with two addresses of the name's own, until it is dropped.
#[derive(Debug)]
pub(super) struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves on a socket of the server's network.
    ///
    /// # Errors
    /// There is no thread.
    pub(super) fn start(socket: UdpSocket) -> io::Result<Self> {
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
        let stop = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("dns-server".into()).spawn(move || serve(&socket, &until))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // That it has panicked is seen by questions without an answer.
            let _ended = thread.join();
        }
    }
}

fn serve(socket: &UdpSocket, stop: &AtomicBool) {
    // Where there is no such CPU it serves on another.
    let _bound = pin(0, SERVER_CPU);
    let mut room = [0; MESSAGE];
    let mut answer = Vec::with_capacity(MESSAGE);
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, client)) = socket.recv_from(&mut room) else { continue };
        let Some((head, question)) = room.get(..length).and_then(<[u8]>::split_first_chunk::<12>) else { continue };
        let [id_high, id_low, ..] = head;
        let sum = question.iter().fold(0_u32, |sum, octet| sum.wrapping_mul(31).wrapping_add((*octet).into()));
        let [_, _, third, fourth] = sum.to_be_bytes();
        answer.clear();
        // A response with recursion, one question, two records, as long as nothing else was asked.
        answer.extend_from_slice(&[*id_high, *id_low, 0x81, 0x80, 0, 1, 0, 2, 0, 0, 0, 0]);
        answer.extend_from_slice(question);
        for second in [18, 19] {
            // The name asked for, A, IN, 256 s, four octets.
            answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 1, 0, 0, 4, 198, second, third, fourth]);
        }
        // A client that has gone asks no more.
        let _gone = socket.send_to(&answer, client);
    }
}

/// The client's sockets, in its network.
///
/// # Errors
/// The system's.
pub(super) fn sockets(own: Ipv4Addr, to: SocketAddr) -> io::Result<Vec<UdpSocket>> {
    (0..PORTS)
        .map(|_| {
            let socket = UdpSocket::bind((own, 0))?;
            socket.connect(to)?;
            setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
        .collect()
}

/// A question for the address of a name.
fn question(id: u16, number: usize) -> Vec<u8> {
    let mut message = Vec::with_capacity(64);
    message.extend_from_slice(&id.to_be_bytes());
    message.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    let name = number % NAMES;
    for label in [format!("host-{name}"), format!("zone-{}", name % ZONES), "example".into(), "com".into()] {
        message.push(u8::try_from(label.len()).unwrap_or_default());
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    message
}

/// What is under way.
struct Client<'s> {
    sockets: &'s [UdpSocket],
    questions: Vec<Vec<u8>>,
    /// When each number was asked, if it waits.
    asked: Vec<Option<Instant>>,
    next: usize,
    waiting: usize,
    times: Vec<Duration>,
}

impl Client<'_> {
    fn ask(&mut self, socket: usize) -> io::Result<()> {
        let number = self.next;
        self.next += 1;
        let id = number % self.asked.len();
        let at = number % self.questions.len();
        let (Some(message), Some(asked)) = (self.questions.get_mut(at), self.asked.get_mut(id)) else { return Ok(()) };
        if let (Some(head), Ok(id)) = (message.get_mut(..2), u16::try_from(id)) {
            head.copy_from_slice(&id.to_be_bytes());
        }
        if asked.replace(Instant::now()).is_none() {
            self.waiting += 1;
        }
        let Some(socket) = self.sockets.get(socket % self.sockets.len()) else { return Ok(()) };
        socket.send(message).map(drop)
    }

    /// Takes what has come at a socket: how many answers.
    fn take(&mut self, socket: usize) -> usize {
        let mut room = [0; MESSAGE];
        let Some(socket) = self.sockets.get(socket) else { return 0 };
        let mut taken = 0;
        while let Ok(length) = socket.recv(&mut room) {
            let id = match room.get(..length) {
                Some([high, low, ..]) => usize::from(u16::from_be_bytes([*high, *low])),
                _ => continue,
            };
            if let Some(asked) = self.asked.get_mut(id).and_then(Option::take) {
                self.times.push(asked.elapsed());
                self.waiting -= 1;
                taken += 1;
            }
        }
        taken
    }
}

/// Asks for so long, on a CPU of its own, and waits for the answers.
///
/// # Errors
/// Questions cannot be sent.
pub(super) fn load(sockets: &[UdpSocket], pace: Pace, lasts: Duration) -> io::Result<Measured> {
    pin(0, CLIENT_CPU)?;
    let mut client = Client {
        sockets,
        questions: (0..NAMES).map(|number| question(0, number)).collect(),
        asked: vec![None; 1 << 16],
        next: 0,
        waiting: 0,
        times: Vec::new(),
    };
    let looks = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)?;
    looks.set(Expiration::Interval(TimeSpec::from_duration(LOOK)), TimerSetTimeFlags::empty())?;
    let begun = Instant::now();
    if pace == Pace::Full {
        for socket in 0..sockets.len() * WINDOW {
            client.ask(socket)?;
        }
    }
    let mut last = begun;
    loop {
        let now = Instant::now();
        let asking = now - begun < lasts;
        if let Pace::Rate(rate) = pace {
            let due = (now - begun).min(lasts).as_secs_f64() * f64::from(rate);
            while (client.next as f64) < due {
                client.ask(client.next)?;
            }
        }
        for socket in 0..sockets.len() {
            let taken = client.take(socket);
            if taken > 0 {
                last = now;
            }
            if asking && pace == Pace::Full {
                for _ in 0..taken {
                    client.ask(socket)?;
                }
            }
        }
        if !asking && (client.waiting == 0 || now - last > LOST) || now - last > LOST + lasts {
            break;
        }
        if pace != Pace::Full {
            looks.wait()?;
        }
    }
    let answered = client.times.len() as f64;
    let micros = |percent| percentile(&client.times, percent).as_secs_f64() * 1e6;
    Ok(Measured {
        answered,
        rate: answered / lasts.as_secs_f64(),
        lost: client.next as f64 - answered,
        p50: micros(50),
        p99: micros(99),
        cpu: 0.0,
    })
}
