//! A model of ipamd: it keeps assignments and speaks the protocol, and it can be told to misbehave.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use sluice_contract::id::{Attachment, EniId, MacAddr};
use sluice_contract::node::{IPAMD_SOCKET, TABLE_MAIN, route_table};
use sluice_contract::rpc::{
    AddReply, Call, DelReply, GcReply, Hello, Outcome, PodAddress, Refusal, RefusalCode, Reply, Request, StatusReply,
    read_frame, write_frame,
};

/// What happens to a request instead of an answer.
#[derive(Clone)]
pub(crate) enum Fault {
    Refuse(Refusal),
    /// The change is made, and the connection closes without an answer.
    CloseAfterEffect,
    /// Nothing comes until the plugin closes.
    Hang,
    /// Bytes that are no frame.
    Garbage,
}

#[derive(Default)]
struct State {
    free: VecDeque<Vec<PodAddress>>,
    assigned: BTreeMap<Attachment, Vec<PodAddress>>,
    released: Vec<PodAddress>,
    log: Vec<String>,
    faults: VecDeque<Fault>,
}

pub(crate) struct Ipamd {
    state: Arc<Mutex<State>>,
    /// How many answers have been written.
    answers: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
    /// `/run` is private to the node, so that stopping needs a way in that is not a path.
    root: std::fs::File,
}

/// An address on the ENI of a device number.
pub(crate) fn address(ip: &str, device: u32) -> PodAddress {
    PodAddress {
        ip: ip.parse().unwrap(),
        interface: 0,
        eni: EniId::new(format!("eni-0a1b2c3d4e5f6071{device}")).unwrap(),
        eni_mac: MacAddr([2, 0, 0, 0, 0, u8::try_from(device).unwrap()]),
        card: 0,
        device,
        table: route_table(0, device).unwrap(),
        branch: None,
    }
}

impl Ipamd {
    /// Listens on the production path of the calling thread's mount namespace.
    pub(crate) fn start() -> Self {
        drop(std::fs::remove_file(IPAMD_SOCKET));
        let listener = UnixListener::bind(IPAMD_SOCKET).unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let answers = Arc::new(AtomicU32::new(0));
        let (shared, stopped, counted) = (Arc::clone(&state), Arc::clone(&stop), Arc::clone(&answers));
        let accept = move || {
            for socket in listener.incoming() {
                if stopped.load(Ordering::Acquire) {
                    return;
                }
                let (shared, counted) = (Arc::clone(&shared), Arc::clone(&counted));
                std::thread::spawn(move || {
                    // A plugin that is killed breaks its connection.
                    drop(serve(socket.unwrap(), &shared));
                    counted.fetch_add(1, Ordering::Release);
                });
            }
        };
        let listener = Some(std::thread::spawn(accept));
        Self { state, answers, stop, listener, root: std::fs::File::open("/run/sluice").unwrap() }
    }

    /// The next ADDs get these, in this order.
    pub(crate) fn give(&self, addresses: Vec<PodAddress>) {
        self.state.lock().unwrap().free.push_back(addresses);
    }

    /// As if nothing had been given before.
    pub(crate) fn refill(&self, addresses: Vec<PodAddress>) {
        let free = &mut self.state.lock().unwrap().free;
        free.clear();
        free.push_back(addresses);
    }

    pub(crate) fn fault(&self, fault: Fault) {
        self.state.lock().unwrap().faults.push_back(fault);
    }

    pub(crate) fn assigned(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        state.assigned.values().flatten().map(|address| address.ip.to_string()).collect()
    }

    pub(crate) fn forget(&self) {
        self.state.lock().unwrap().assigned.clear();
    }

    /// Whether all faults have been used up.
    pub(crate) fn waiting(&self) -> bool {
        self.state.lock().unwrap().faults.is_empty()
    }

    pub(crate) fn answers(&self) -> u32 {
        self.answers.load(Ordering::Acquire)
    }

    /// The questions so far, e.g. `add abc`, and empties the list.
    pub(crate) fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().log)
    }
}

impl Drop for Ipamd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let way_in = format!("/proc/self/fd/{}/ipamd.sock", std::os::fd::AsRawFd::as_raw_fd(&self.root));
        drop(UnixStream::connect(&way_in));
        drop(self.listener.take().unwrap().join());
        drop(std::fs::remove_file(way_in));
    }
}

fn serve(mut socket: UnixStream, state: &Mutex<State>) -> Result<(), sluice_contract::rpc::FrameError> {
    let _hello: Hello = read_frame(&mut socket)?;
    let request: Request = read_frame(&mut socket)?;
    assert!(request.deadline_ms > 0 && request.deadline_ms <= 240_000);
    let fault = state.lock().unwrap().faults.pop_front();
    write_frame(&mut socket, &Hello::of("fake-ipamd"))?;
    let reply = match fault {
        Some(Fault::Refuse(refusal)) => Reply::Refused(refusal),
        Some(Fault::Hang) => {
            // The end of the stream, or a reset when the plugin left something unread.
            drop(socket.read(&mut [0]));
            return Ok(());
        }
        Some(Fault::Garbage) => {
            socket.write_all(&[0xff; 64]).unwrap();
            return Ok(());
        }
        Some(Fault::CloseAfterEffect) => {
            drop(answer(&mut state.lock().unwrap(), request.call));
            return Ok(());
        }
        None => answer(&mut state.lock().unwrap(), request.call),
    };
    write_frame(&mut socket, &reply)
}

fn answer(state: &mut State, call: Call) -> Reply {
    let refuse = |code, text: &str| Reply::Refused(Refusal::new(code, text));
    match call {
        Call::Add(add) => {
            let cards = if add.every_card { " for every card" } else { "" };
            state.log.push(format!("add {} on {}{cards}", add.attachment.container, add.host_ifname));
            if !state.assigned.contains_key(&add.attachment) {
                let Some(addresses) = state.free.pop_front() else {
                    return refuse(RefusalCode::PoolGrowing, "no address was free within 1 s");
                };
                state.assigned.insert(add.attachment.clone(), addresses);
            }
            Reply::Done(Outcome::Add(AddReply {
                addresses: state.assigned[&add.attachment].clone(),
                mtu: 9001,
                egress: None,
                disable_ipv6: false,
            }))
        }
        Call::Check(check) => {
            state.log.push(format!("check {}", check.attachment.container));
            match state.assigned.get(&check.attachment) {
                Some(held) => Reply::Done(Outcome::Add(AddReply {
                    addresses: held.clone(),
                    mtu: 9001,
                    egress: None,
                    disable_ipv6: false,
                })),
                None => refuse(RefusalCode::UnknownAttachment, "the attachment has no address here"),
            }
        }
        Call::Del(del) => {
            let why = if del.add_failed { " add_failed" } else { "" };
            state.log.push(format!("del {}{why}", del.attachment.container));
            let addresses = state.assigned.remove(&del.attachment).unwrap_or_default();
            if del.add_failed && !addresses.is_empty() {
                state.free.push_front(addresses.clone());
            } else {
                state.released.extend(addresses.clone());
            }
            Reply::Done(Outcome::Del(DelReply { addresses }))
        }
        Call::Gc(gc) => {
            state.log.push("gc".to_owned());
            let stale = |held: &Attachment| held.network == gc.network && !gc.valid.iter().any(|v| v.names(held));
            let released: Vec<_> = state.assigned.extract_if(.., |held, _| stale(held)).collect();
            Reply::Done(Outcome::Gc(GcReply { released }))
        }
        Call::Status => {
            state.log.push("status".to_owned());
            let assigned = u32::try_from(state.assigned.len()).unwrap();
            Reply::Done(Outcome::Status(StatusReply { free: 0, assigned }))
        }
    }
}

/// The table that `address` gives to a device, for readers of the tests.
#[test]
fn tables_are_those_of_the_devices() {
    assert_eq!(address("10.0.1.20", 0).table, TABLE_MAIN);
    assert_eq!(address("10.0.1.60", 1).table, 2);
}
