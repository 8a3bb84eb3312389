//! The programs in the kernel, their maps, and frames that are put through them.

use std::fmt::Debug;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, PerCpuArray, PerCpuHashMap, RingBuf};
use aya::programs::{SchedClassifier, TcAttachType, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader, Pod, VerifierLogLevel};
use sluice_policy_bpf::btf::conntrack_tuples;
use sluice_policy_bpf::layout::{
    Address, Connection, ConnectionKey, Counter, Decision, DropReason, Endpoint, Event, Fragment, FragmentKey,
    Frontend, Hook, MAPS, Peer, RowPort, Settings,
};
use sluice_policy_bpf::object::{COMPILER, OBJECT};

/// The interface that test runs come by: the loopback of whatever namespace this is.
pub(crate) const INTERFACE: u32 = 1;
/// Another interface of the same pod, at which nothing restricts what it sends.
pub(crate) const FREE_INTERFACE: u32 = 50;
/// An interface that is no pod's.
pub(crate) const UPLINK: u32 = 100;

/// Whether this machine lets us load programs. Where tests must run (`CI` is set), that it does not is a failure.
pub(crate) fn may_run() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "the test cannot run: it needs root");
    let _nobody = writeln!(std::io::stderr(), "skipped: it needs root");
    false
}

/// What a program does with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Pass,
    Drop,
}

pub(crate) struct Kernel {
    programs: Vec<(Hook, SchedClassifier)>,
    endpoints: HashMap<MapData, u32, Endpoint>,
    pub(crate) owners: HashMap<MapData, Address, u32>,
    pub(crate) names: LpmTrie<MapData, Address, u32>,
    pub(crate) ipcache: LpmTrie<MapData, Address, u32>,
    pub(crate) frontends: HashMap<MapData, Frontend, u32>,
    pub(crate) peers: HashMap<MapData, Peer, u32>,
    pub(crate) rows: LpmTrie<MapData, RowPort, u32>,
    pub(crate) decisions: HashMap<MapData, u32, Decision>,
    pub(crate) connections: HashMap<MapData, ConnectionKey, Connection>,
    pub(crate) fragments: HashMap<MapData, FragmentKey, Fragment>,
    pub(crate) counters: PerCpuHashMap<MapData, u32, Counter>,
    drops: PerCpuArray<MapData, Counter>,
    settings: Array<MapData, Settings>,
    set: Settings,
    events: RingBuf<MapData>,
}

impl Kernel {
    pub(crate) fn new() -> Self {
        let mut loader = EbpfLoader::new();
        let mut object = loader.verifier_log_level(VerifierLogLevel::STATS).load(OBJECT).unwrap();
        let programs =
            [("from_pod", Hook::FromPod), ("to_pod", Hook::ToPod), ("uplink", Hook::Uplink), ("drop", Hook::Closed)]
                .into_iter()
                .map(|(name, hook)| (hook, load(&mut object, name)))
                .collect();
        let mut kernel = Self {
            programs,
            endpoints: map(&mut object, "endpoints"),
            owners: map(&mut object, "owners"),
            names: map(&mut object, "names"),
            ipcache: map(&mut object, "ipcache"),
            frontends: map(&mut object, "frontends"),
            peers: map(&mut object, "peers"),
            rows: map(&mut object, "rows"),
            decisions: map(&mut object, "decisions"),
            connections: map(&mut object, "connections"),
            fragments: map(&mut object, "fragments"),
            counters: map(&mut object, "counters"),
            drops: map(&mut object, "drops"),
            settings: map(&mut object, "settings"),
            set: Settings::default(),
            events: map(&mut object, "events"),
        };
        kernel.set(Settings::default());
        kernel
    }

    pub(crate) fn program(&self, hook: Hook) -> &SchedClassifier {
        &self.programs.iter().find(|(of, _)| *of == hook).unwrap().1
    }

    /// Attaches a program to an interface of the calling thread's namespace, for as long as this lives.
    pub(crate) fn attach(&mut self, hook: Hook, interface: &str, direction: TcAttachType) {
        let program = self.programs.iter_mut().find(|(of, _)| *of == hook).unwrap();
        program.1.attach(interface, direction).unwrap();
    }

    /// Puts a frame through a program. `from` is the interface by which the host got it; 0: it is the host's own.
    pub(crate) fn run(&self, hook: Hook, frame: &[u8], from: u32) -> Action {
        self.repeat(hook, frame, from, 1).0
    }

    /// As [`Self::run`], so many times; and the mean time of one.
    pub(crate) fn repeat(&self, hook: Hook, frame: &[u8], from: u32, times: u32) -> (Action, std::time::Duration) {
        let context = context(from);
        let options =
            TestRunOptions { data_in: Some(frame), ctx_in: Some(&context), repeat: times, ..TestRunOptions::default() };
        let result = self.program(hook).test_run(options).unwrap();
        let action = match result.return_value {
            // TC_ACT_UNSPEC
            u32::MAX => Action::Pass,
            // TC_ACT_SHOT
            2 => Action::Drop,
            other => panic!("the program returned {other}"),
        };
        (action, result.duration)
    }

    /// Puts a frame through a program so many times, while these entries are written again and again, each with a further
    /// revision, as when policy changes. How many were.
    pub(crate) fn repeat_while_written(
        &mut self,
        hook: Hook,
        frame: &[u8],
        from: u32,
        times: u32,
        entries: &[(u32, Endpoint)],
    ) -> usize {
        let Self { programs, endpoints, .. } = self;
        let program = &programs.iter().find(|(of, _)| *of == hook).unwrap().1;
        let context = context(from);
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let running = scope.spawn(|| {
                let options = TestRunOptions {
                    data_in: Some(frame),
                    ctx_in: Some(&context),
                    repeat: times,
                    ..TestRunOptions::default()
                };
                let result = program.test_run(options);
                ended.store(true, Ordering::Relaxed);
                result
            });
            let mut written = 0;
            let mut entries = entries.to_vec();
            while !ended.load(Ordering::Relaxed) {
                for (interface, endpoint) in &mut entries {
                    endpoint.revision += 1;
                    endpoints.insert(*interface, *endpoint, 0).unwrap();
                    written += 1;
                }
            }
            running.join().unwrap().unwrap();
            written
        })
    }

    /// Settings, with the offset that this kernel tells.
    pub(crate) fn set(&mut self, settings: Settings) {
        let conntrack_tuples = conntrack_tuples().unwrap().expect("connection tracking");
        self.set = Settings { conntrack_tuples, generation: self.set.generation, ..settings };
        self.forget_recent();
    }

    /// Writes the entry of an interface.
    pub(crate) fn put(&mut self, interface: u32, endpoint: Endpoint) {
        self.endpoints.insert(interface, endpoint, 0).unwrap();
        self.forget_recent();
    }

    /// The same, as it is in the middle of a change.
    pub(crate) fn put_quietly(&mut self, interface: u32, endpoint: Endpoint) {
        self.endpoints.insert(interface, endpoint, 0).unwrap();
    }

    /// A change of a gate begins.
    pub(crate) fn begin_change(&mut self) {
        self.set.generation |= 1;
        self.settings.set(0, self.set, 0).unwrap();
    }

    /// What the programs remember of the packets that they saw lately is not true any more.
    pub(crate) fn forget_recent(&mut self) {
        self.set.generation += 2;
        self.settings.set(0, self.set, 0).unwrap();
    }

    /// Packets dropped for a reason.
    pub(crate) fn dropped(&self, reason: DropReason) -> u64 {
        let counters = self.drops.get(&u32::from(reason.number()), 0).unwrap();
        counters.iter().map(|counter| counter.packets).sum()
    }

    /// Judgements by a decision.
    pub(crate) fn counted(&self, decision: u32) -> u64 {
        self.counters.get(&decision, 0).map_or(0, |values| values.iter().map(|counter| counter.packets).sum())
    }

    /// The events since the last call.
    pub(crate) fn events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(item) = self.events.next() {
            events.push(event(&item));
        }
        events
    }

    /// Forgets all flows.
    pub(crate) fn forget(&mut self) {
        let keys: Vec<ConnectionKey> = self.connections.keys().map(Result::unwrap).collect();
        for key in keys {
            self.connections.remove(&key).unwrap();
        }
        self.forget_recent();
    }
}

fn load(object: &mut Ebpf, name: &str) -> SchedClassifier {
    let program: &mut SchedClassifier = object.program_mut(name).unwrap().try_into().unwrap();
    if let Err(error) = program.load() {
        panic!("{name}: {error:#?}");
    }
    SchedClassifier::from_program_info(program.info().unwrap(), name.to_owned().into()).unwrap()
}

fn map<M: TryFrom<Map, Error: Debug>>(object: &mut Ebpf, name: &str) -> M {
    M::try_from(object.take_map(name).unwrap()).unwrap()
}

/// `struct __sk_buff` with `ingress_ifindex` set; the kernel takes no more of it than it may.
fn context(ingress_interface: u32) -> [u8; 192] {
    const INGRESS_IFINDEX: usize = 36;
    let mut context = [0; 192];
    context[INGRESS_IFINDEX..INGRESS_IFINDEX + 4].copy_from_slice(&ingress_interface.to_ne_bytes());
    context
}

#[expect(unsafe_code, reason = "the kernel's bytes are read as what its header says they are")]
fn event(bytes: &[u8]) -> Event {
    assert_eq!(bytes.len(), size_of::<Event>());
    // SAFETY: as many bytes as the type has, and any bytes are a value of it (it is `Pod`).
    unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) }
}

/// A key of a trie.
pub(crate) fn prefix<K: Pod>(bits: u32, data: K) -> Key<K> {
    Key::new(bits, data)
}

/// The maps are what the layout says.
#[test]
fn the_object_has_the_maps_of_the_layout() {
    if !may_run() {
        return;
    }
    let mut object = Ebpf::load(OBJECT).unwrap();
    for layout in MAPS {
        let map = object.take_map(layout.name).unwrap_or_else(|| panic!("no map {}", layout.name));
        let info = map_data(&map).info().unwrap();
        assert_eq!(
            (
                usize::try_from(info.key_size()).unwrap(),
                usize::try_from(info.value_size()).unwrap(),
                info.max_entries()
            ),
            (layout.key, layout.value, layout.entries),
            "{}",
            layout.name
        );
    }
    assert_eq!(object.maps().count(), 0, "maps that the layout does not know");
}

fn map_data(map: &Map) -> &MapData {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LpmTrie(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::PerCpuHashMap(data)
        | Map::SockMap(data)
        | Map::RingBuf(data) => data,
        other => panic!("{other:?}"),
    }
}

/// How many instructions a program has, and how many steps the verifier took: what was pinned was looked at.
///
/// Both change with the compiler and the second with the kernel, so they are exact only where the file was made; elsewhere
/// the verifier's steps must be far from its limit of a million. With `UPDATE_GOLDENS` set the file is written anew.
#[test]
fn instructions_are_counted() {
    if !may_run() {
        return;
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/program/instructions.txt");
    let kernel = Kernel::new();
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let release: Vec<&str> = release.split('.').take(2).collect();
    let mut counts = format!("compiled by {}, loaded by Linux {}\n", COMPILER, release.join("."));
    for (hook, program) in &kernel.programs {
        let info = program.info().unwrap();
        let steps = info.verified_instruction_count().unwrap_or_default();
        let bytes = info.size_translated().unwrap();
        assert!(steps < 100_000, "{}: the verifier took {steps} steps", hook.as_str());
        counts += &format!("{} {} instructions, {steps} steps\n", hook.as_str(), bytes / 8);
    }
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        std::fs::write(path, &counts).unwrap();
    }
    let pinned = std::fs::read_to_string(path).unwrap();
    if pinned.lines().next() == counts.lines().next() {
        assert_eq!(pinned, counts, "set UPDATE_GOLDENS to write tests/program/instructions.txt anew");
    }
}
