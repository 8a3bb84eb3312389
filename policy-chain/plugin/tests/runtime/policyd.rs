//! A model of policyd: it notes what it is asked, says yes, and can be told to do something else.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use sluice_contract::node::POLICYD_SOCKET;
use sluice_contract::rpc::{
    FrameError, Hello, PolicyAddReply, PolicyCall, PolicyCheckReply, PolicyOutcome, PolicyStatusReply, ProtocolRange,
    Refusal, Reply, Request, read_frame, write_frame,
};

/// What happens to a request instead of a yes.
pub(crate) enum Instead {
    Refuse(Refusal),
    Say(PolicyOutcome),
    /// The connection closes without an answer.
    Close,
    /// Nothing comes until the plugin closes.
    Hang,
    /// Nothing comes until [`Policyd::release`].
    Hold,
    /// Bytes that are no frame.
    Garbage,
    /// A greeting of another age.
    Ancient,
}

#[derive(Default)]
struct State {
    script: VecDeque<Instead>,
    log: Vec<(u64, PolicyCall)>,
    greetings: Vec<Hello>,
    released: bool,
    /// Connections that the plugin has closed before its answer.
    withdrawn: u32,
}

type Shared = Arc<(Mutex<State>, Condvar)>;

pub(crate) struct Policyd {
    state: Shared,
    stop: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
    /// `/run` is private to the node, so that stopping needs a way in that is not a path.
    root: std::fs::File,
}

impl Policyd {
    /// Listens on the production path of the calling thread's mount namespace.
    pub(crate) fn start() -> Self {
        drop(std::fs::remove_file(POLICYD_SOCKET));
        let listener = UnixListener::bind(POLICYD_SOCKET).unwrap();
        let state = Shared::default();
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopped) = (Arc::clone(&state), Arc::clone(&stop));
        let accept = move || {
            for socket in listener.incoming() {
                if stopped.load(Ordering::Acquire) {
                    return;
                }
                let shared = Arc::clone(&shared);
                // A plugin that gives up breaks its connection.
                std::thread::spawn(move || drop(serve(socket.unwrap(), &shared)));
            }
        };
        let listener = Some(std::thread::spawn(accept));
        Self { state, stop, listener, root: std::fs::File::open("/run/sluice").unwrap() }
    }

    /// What happens to the next request; several wait in line.
    pub(crate) fn instead(&self, instead: Instead) {
        self.state.0.lock().unwrap().script.push_back(instead);
    }

    pub(crate) fn release(&self) {
        self.state.0.lock().unwrap().released = true;
        self.state.1.notify_all();
    }

    /// The questions so far, each with its deadline in milliseconds.
    pub(crate) fn asked(&self) -> Vec<(u64, PolicyCall)> {
        self.state.0.lock().unwrap().log.clone()
    }

    /// The only question.
    pub(crate) fn call(&self) -> PolicyCall {
        let asked = self.asked();
        assert_eq!(asked.len(), 1, "{asked:?}");
        asked[0].1.clone()
    }

    pub(crate) fn withdrawn(&self) -> u32 {
        self.state.0.lock().unwrap().withdrawn
    }

    pub(crate) fn greetings(&self) -> Vec<Hello> {
        self.state.0.lock().unwrap().greetings.clone()
    }
}

impl Drop for Policyd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.release();
        let way_in = format!("/proc/self/fd/{}/policyd.sock", self.root.as_raw_fd());
        drop(UnixStream::connect(&way_in));
        drop(self.listener.take().unwrap().join());
        drop(std::fs::remove_file(way_in));
    }
}

fn serve(mut socket: UnixStream, (state, released): &(Mutex<State>, Condvar)) -> Result<(), FrameError> {
    let hello: Hello = read_frame(&mut socket)?;
    let request: Request<PolicyCall> = read_frame(&mut socket)?;
    let instead = {
        let mut state = state.lock().unwrap();
        state.greetings.push(hello);
        state.log.push((request.deadline_ms, request.call.clone()));
        state.script.pop_front()
    };
    if let Some(Instead::Ancient) = instead {
        let protocol = ProtocolRange { min: 90, max: 91 };
        return write_frame(&mut socket, &Hello { protocol, software: "policyd 99".to_owned() });
    }
    write_frame(&mut socket, &Hello::of("fake-policyd"))?;
    let reply = match instead {
        Some(Instead::Refuse(refusal)) => Reply::Refused(refusal),
        Some(Instead::Say(outcome)) => Reply::Done(outcome),
        Some(Instead::Close | Instead::Ancient) => return Ok(()),
        Some(Instead::Hang) => {
            drop(socket.read(&mut [0]));
            state.lock().unwrap().withdrawn += 1;
            return Ok(());
        }
        Some(Instead::Hold) => {
            drop(released.wait_while(state.lock().unwrap(), |state| !state.released).unwrap());
            yes(&request.call)
        }
        Some(Instead::Garbage) => {
            socket.write_all(&[0xff; 64]).unwrap();
            return Ok(());
        }
        None => yes(&request.call),
    };
    write_frame(&mut socket, &reply)
}

fn yes(call: &PolicyCall) -> Reply<PolicyOutcome> {
    Reply::Done(match call {
        PolicyCall::Add(_) => PolicyOutcome::Add(PolicyAddReply { revision: 7 }),
        PolicyCall::Del(_) => PolicyOutcome::Del,
        PolicyCall::Check(_) => PolicyOutcome::Check(PolicyCheckReply { differences: Vec::new(), revision: 7 }),
        PolicyCall::Gc(_) => PolicyOutcome::Gc,
        PolicyCall::Status => PolicyOutcome::Status(PolicyStatusReply { endpoints: 0, synced: true, revision: 7 }),
    })
}
