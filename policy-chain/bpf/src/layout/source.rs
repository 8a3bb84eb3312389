// What the kernel's programs and this crate have in common. The one source: `layout.rs` makes Rust types of it, and
// `build.rs` a C header with the same sizes and offsets asserted.
//
// Numbers are in the host's order, ports too, but for the port of a row, of which the leading bits count. A change of
// anything that a pinned map holds needs another `VERSION`.

constants! {
    /// Version of the layout: part of the path of what is pinned.
    VERSION: u32 = 1;

    /// Endpoint: everything is dropped.
    ENDPOINT_LOCKDOWN: u32 = 1;
    /// Endpoint: a dry run, what would be dropped passes.
    ENDPOINT_AUDIT: u32 = 2;
    /// Endpoint: sources are not checked (for a pod that routes for others).
    ENDPOINT_ANY_SOURCE: u32 = 4;
    /// Not an endpoint but the bridge that endpoints are ports of: what it forwards is of the owner of its source address.
    ENDPOINT_BRIDGE: u32 = 8;
    /// Addresses of an endpoint, at most.
    ENDPOINT_ADDRESSES: u32 = 4;

    /// Setting: flows that were let pass stay so when policy changes.
    SETTING_KEEP_ESTABLISHED: u32 = 1;
    /// Setting: what pods send to Services with a backend on the node itself is judged at local input.
    SETTING_LOCAL_INPUT: u32 = 2;
    /// Setting: nobody reads events, so none are written. What is dropped, and by which decision, is counted as ever.
    SETTING_NO_EVENTS: u32 = 4;

    /// Connection: something came in the other direction.
    CONNECTION_ANSWERED: u32 = 1;
    /// Connection: the side that opened it has finished (TCP).
    CONNECTION_FIN: u32 = 2;
    /// Connection: the side that did not open it has finished (TCP).
    CONNECTION_FIN_BACK: u32 = 4;
    /// Connection: its first packet was not seen; it was taken for the reply half of a flow (DESIGN 7, adoption).
    CONNECTION_ADOPTED: u32 = 8;

    /// Connection: a reset was the last that was seen (TCP). Nobody here checks its sequence number, so the flow may go on.
    CONNECTION_RESET: u32 = 16;
    /// Connection: it was opened by way of the proxy, and keeps to it: of TCP until it closes (DESIGN 6.5), of UDP as long as policy
    /// sends it there.
    CONNECTION_PROXIED: u32 = 32;
    /// Connection: the first packet that was seen of it opens none (TCP), so the other side may have opened it.
    CONNECTION_MIDSTREAM: u32 = 64;
    /// Connection: it goes by way of the proxy for dry runs of policies only, and would pass without it.
    CONNECTION_SEEN: u32 = 128;

    /// The mark of a packet on its way from a proxy's interface to a pod's, where it is taken off before anything else sees
    /// it. No pod can set it: what crosses namespaces loses its mark.
    MARK_FROM_PROXY: u32 = 0x51c3_ab1e;

    /// Index into `listeners`: of the proxy of egress flows.
    LISTENER_EGRESS: u32 = 4;
    /// Index into `listeners`: of UDP.
    LISTENER_UDP: u32 = 2;
    /// Index into `listeners`: of IPv6.
    LISTENER_IPV6: u32 = 1;

    /// Bits of an index into `recent`.
    RECENT_BITS: u32 = 11;

    /// The lowest bit of the revision in `judged`; the bits below it are the verdict.
    JUDGED_REVISION_SHIFT: u32 = 8;
}

numbers! {
    /// What happens to a packet.
    Verdict "VERDICT" {
        /// It passes.
        Allow = 1 "allow",
        /// It is dropped.
        Deny = 2 "deny",
        /// It goes to the proxy.
        Redirect = 3 "redirect",
        /// It passes, and is judged where its backend can be seen.
        Defer = 4 "defer",
    }

    /// Direction of a flow, as its pod sees it.
    FlowDirection "DIRECTION" {
        /// To the pod.
        Ingress = 0 "ingress",
        /// From the pod.
        Egress = 1 "egress",
    }

    /// How the first packet of a flow came to the gate.
    FlowOrigin "ORIGIN" {
        /// From elsewhere, or from the pod.
        Forwarded = 0 "forwarded",
        /// From the node itself.
        OwnNode = 1 "own-node",
        /// From the pod to itself through a Service.
        Hairpin = 2 "hairpin",
    }

    /// What a verdict rests on.
    Basis "BASIS" {
        /// On nothing: the packet was dropped before policy was asked, or is of no flow.
        Nothing = 0 "nothing",
        /// On the decision whose number is beside it.
        Decision = 1 "decision",
        /// No policy decides.
        NoPolicy = 2 "no-policy",
        /// The pod's own node may always reach it.
        OwnNode = 3 "own-node",
        /// A pod may always reach its own address.
        OwnAddress = 4 "own-address",
        /// The address is a Service's: its backends decide.
        Service = 5 "service",
        /// A map lacks what it has to have.
        Broken = 6 "broken",
    }

    /// Why a packet was dropped.
    DropReason "DROP" {
        /// It was not.
        None = 0 "none",
        /// Policy denies it.
        Policy = 1 "policy",
        /// Policy denies the backend that a Service chose.
        Backend = 2 "backend",
        /// Policy sends it to the proxy, and there is none.
        NoProxy = 3 "no-proxy",
        /// The endpoint is locked down.
        Lockdown = 4 "lockdown",
        /// The interface has no endpoint.
        UnknownEndpoint = 5 "unknown-endpoint",
        /// A map lacks a row or a decision.
        Broken = 6 "broken",
        /// The source is not the pod's address, or is the pod's and came from elsewhere.
        Spoofed = 7 "spoofed",
        /// A header is cut short, contradicts itself, or there are too many.
        Malformed = 8 "malformed",
        /// Neither IP nor ARP, or in a VLAN.
        NotIp = 9 "not-ip",
        /// A fragment whose first one did not pass, or a first one without the whole transport header.
        Fragment = 10 "fragment",
        /// A source route: the address is not where the packet goes.
        SourceRoute = 11 "source-route",
        /// The connection cannot be remembered.
        ConnectionsFull = 12 "connections-full",
        /// The gate is not set up yet (the drop program).
        NotReady = 13 "not-ready",
        /// Not a drop: an event that was not told, because there were too many.
        EventLost = 14 "event-lost",
        /// Not a drop: a judgement that the counters had no room for.
        CounterLost = 15 "counter-lost",
        /// It comes from the proxy, and is of no flow that the proxy has.
        ProxyUnknown = 16 "proxy-unknown",
    }

    /// What an event tells.
    EventKind "EVENT" {
        /// A flow's first packet was let pass.
        Flow = 1 "flow",
        /// A packet was dropped.
        Drop = 2 "drop",
        /// A flow was judged again after a change, and the verdict is another.
        Changed = 3 "changed",
        /// A deferred flow was judged at its backend.
        Backend = 4 "backend",
        /// A TCP connection was closed by both sides, or reset.
        Closed = 5 "closed",
    }

    /// The program that speaks.
    Hook "HOOK" {
        /// Ingress of a pod's host interface.
        FromPod = 1 "from-pod",
        /// Egress of a pod's host interface.
        ToPod = 2 "to-pod",
        /// Egress of an uplink.
        Uplink = 3 "uplink",
        /// Local input of the node.
        LocalInput = 4 "local-input",
        /// The drop program.
        Closed = 5 "closed",
        /// Ingress of the host's end of a proxy's link.
        FromProxy = 6 "from-proxy",
    }
}

structs! {
    /// An address of a pod, and the rows for what the pod sends to itself through a Service (0: no policy).
    OwnAddress {
        /// The address; the free ones, which come last, are all 0.
        address: Address,
        /// Row at ingress.
        ingress: u32,
        /// Row at egress.
        egress: u32,
    }

    /// The gate of a pod, by the index of its host interface.
    Endpoint {
        /// Moves when established flows have to be judged again; below 2^56.
        revision: u64,
        /// Number of the pod, the same for all its interfaces; not 0.
        id: u32,
        /// Policy for what goes to the pod; 0: none.
        ingress: u32,
        /// Policy for what comes out of it; 0: none.
        egress: u32,
        /// `ENDPOINT_*`.
        flags: u32,
        /// The pod's addresses on all its interfaces.
        addresses: [OwnAddress; 4],
    }

    /// A prefix of addresses; of an IPv4 prefix of n bits the first 96 + n bits count.
    AddressPrefix {
        /// Leading bits that count.
        bits: u32,
        /// The address.
        address: Address,
    }

    /// What the service proxy translates.
    Frontend {
        /// Address.
        address: Address,
        /// Port.
        port: u16,
        /// Protocol.
        protocol: u8,
        /// 0.
        unused: u8,
    }

    /// What a policy's row is for.
    Peer {
        /// Policy.
        policy: u32,
        /// Identity.
        identity: u32,
    }

    /// Which packets an entry of a row is for.
    RowPort {
        /// Row.
        row: u32,
        /// Protocol.
        protocol: u8,
        /// Port, the high byte first.
        port: [u8; 2],
        /// 0.
        unused: u8,
    }

    /// Key of `rows`: 32 bits (every packet), 40 (a protocol), or 40 and a port's leading bits.
    RowPrefix {
        /// Leading bits that count.
        bits: u32,
        /// What they are of.
        of: RowPort,
    }

    /// What happens to a packet, and what would if the policies that are dry runs were in force.
    Decision {
        /// [`Verdict`].
        verdict: u8,
        /// [`Verdict`] with the dry runs; the same where there are none.
        full: u8,
        /// 0.
        unused: u16,
    }

    /// A flow, as its pod sees it: one key for both directions.
    ConnectionKey {
        /// The pod.
        endpoint: u32,
        /// The pod's address.
        own: Address,
        /// The other side's.
        peer: Address,
        /// The pod's port. Of an ICMP query that the pod sent: its identifier; else 0.
        own_port: u16,
        /// The other side's. Of an ICMP query that the other side sent: its identifier; else 0.
        peer_port: u16,
        /// Protocol.
        protocol: u8,
        /// Type of the query message, for ICMP; else 0.
        query: u8,
        /// [`FlowDirection`] of an ICMP query; else 0.
        query_direction: u8,
        /// 0.
        unused: u8,
    }

    /// What is known of a flow.
    Connection {
        /// The endpoint's revision at the last judgement, above `JUDGED_REVISION_SHIFT`, and the [`Verdict`] in the bits
        /// below: in one word, so that none sees one without the other.
        judged: u64,
        /// When it is forgotten, ns of `CLOCK_MONOTONIC`.
        expires: u64,
        /// As `judged`, of the judgement at the backend (`other`); 0: there was none.
        backend_judged: u64,
        /// Where `judged` comes from: the decision, if `basis` is one.
        decision: u32,
        /// Where `backend_judged` comes from; 0: from no decision.
        backend_decision: u32,
        /// `CONNECTION_*`.
        state: u32,
        /// Ingress: the peer that was judged (the source before translation). A deferred flow: the backend's address.
        other: Address,
        /// A deferred flow: the backend's port.
        other_port: u16,
        /// [`FlowDirection`].
        direction: u8,
        /// [`FlowOrigin`] of the first packet.
        origin: u8,
        /// [`Basis`].
        basis: u8,
        /// 0.
        unused: [u8; 7],
    }

    /// The fragments of a packet.
    FragmentKey {
        /// The pod.
        endpoint: u32,
        /// Source.
        source: Address,
        /// Destination.
        destination: Address,
        /// The packet's identification.
        identification: u32,
        /// Protocol (IPv4); 0 (IPv6).
        protocol: u8,
        /// [`FlowDirection`] of the packet.
        direction: u8,
        /// 0.
        unused: u16,
    }

    /// What the first fragment said.
    Fragment {
        /// When it is forgotten, ns of `CLOCK_MONOTONIC`.
        expires: u64,
        /// Source port; of an ICMP query its identifier.
        source_port: u16,
        /// Destination port; of an ICMP query its identifier.
        destination_port: u16,
        /// Type of an ICMP message.
        icmp_type: u8,
        /// Protocol.
        protocol: u8,
        /// 0.
        unused: u16,
    }

    /// A packet that passed, as those do that are like it.
    Recent {
        /// Source.
        source: Address,
        /// Destination.
        destination: Address,
        /// Both ports, as the packet has them.
        ports: u32,
        /// Index of the interface.
        interface: u32,
        /// Index of the interface by which the host got it; 0: it is the host's own.
        from: u32,
        /// EtherType above bit 16, the protocol above bit 8, and the [`Hook`].
        kind: u32,
        /// The `generation` in which it passed.
        generation: u32,
        /// When, in ticks of the kernel: the lowest bits of their number.
        tick: u32,
    }

    /// Packets and their bytes.
    Counter {
        /// Packets.
        packets: u64,
        /// Bytes, from the Ethernet header on.
        bytes: u64,
    }

    /// The proxy of a direction.
    Proxy {
        /// Index of the host's end of its link; 0: there is none.
        index: u32,
        /// Address of its own end.
        mac: [u8; 6],
        /// 0.
        unused: u16,
    }

    /// What is set from outside.
    Settings {
        /// Until then, ns of `CLOCK_MONOTONIC`, a TCP packet that opens nothing and is of no known flow is first judged as
        /// the reply half of a flow of the other direction.
        adopt_until: u64,
        /// Moves before and after every change of `endpoints`. What `recent` holds of another generation is not true any more;
        /// where it is odd, a change is under way.
        generation: u32,
        /// `SETTING_*`.
        flags: u32,
        /// Offset in bytes of `tuplehash` in this kernel's `struct nf_conn`; 0: not known, nothing counts as tracked.
        conntrack_tuples: u32,
        /// 0.
        unused: u32,
    }

    /// What the ring buffer carries.
    Event {
        /// When, ns of `CLOCK_MONOTONIC`.
        time: u64,
        /// The pod; 0: none is known.
        endpoint: u32,
        /// Index of the interface.
        interface: u32,
        /// The decision, if `basis` is one.
        decision: u32,
        /// Length of the packet in bytes, from the Ethernet header on.
        length: u32,
        /// The pod's address.
        own: Address,
        /// The other side's, as the pod sees it.
        peer: Address,
        /// The source before translation, or the backend; all 0: none.
        other: Address,
        /// The pod's port; of an ICMP query its identifier.
        own_port: u16,
        /// The other side's.
        peer_port: u16,
        /// The backend's port.
        other_port: u16,
        /// EtherType.
        ether_type: u16,
        /// Protocol.
        protocol: u8,
        /// TCP flags, or the type of an ICMP message.
        flags: u8,
        /// [`EventKind`].
        kind: u8,
        /// [`Hook`].
        hook: u8,
        /// [`FlowDirection`] of the flow.
        direction: u8,
        /// [`FlowOrigin`].
        origin: u8,
        /// [`Verdict`]; 0: none.
        verdict: u8,
        /// [`DropReason`].
        reason: u8,
        /// [`Basis`].
        basis: u8,
        /// 1: the endpoint is a dry run.
        audit: u8,
        /// 0.
        unused: [u8; 6],
    }
}

maps! {
    /// Gates, by interface index.
    endpoints: Hash(u32, Endpoint) 4096, NO_PREALLOC;
    /// The pods' addresses -> interface index: for packets that a bridge forwards (`ENDPOINT_BRIDGE`), and those of the proxy.
    owners: Hash(Address, u32) 4096, NO_PREALLOC;
    /// Addresses that names resolved to -> identity; looked up before `ipcache`.
    names: Lpm(AddressPrefix, u32) 65536, NO_PREALLOC;
    /// Addresses -> identity.
    ipcache: Lpm(AddressPrefix, u32) 262144, NO_PREALLOC;
    /// What the service proxy translates -> identity.
    frontends: Hash(Frontend, u32) 65536, NO_PREALLOC;
    /// Policy and identity -> row.
    peers: Hash(Peer, u32) 524288, NO_PREALLOC;
    /// Row, protocol, port -> decision.
    rows: Lpm(RowPrefix, u32) 524288, NO_PREALLOC;
    /// Decision -> what happens.
    decisions: Hash(u32, Decision) 65536, NO_PREALLOC;
    /// Flows.
    connections: LruHash(ConnectionKey, Connection) 131072, NONE;
    /// Packets that passed lately, by some of their bits.
    recent: PerCpuArray(u32, Recent) 2048, NONE;
    /// Packets in fragments.
    fragments: LruHash(FragmentKey, Fragment) 4096, NONE;
    /// Judgements, by decision.
    counters: PerCpuHash(u32, Counter) 65536, NO_PREALLOC;
    /// What was dropped, by [`DropReason`].
    drops: PerCpuArray(u32, Counter) 32, NONE;
    /// Settings, at 0.
    settings: Array(u32, Settings) 1, NONE;
    /// The proxies, by [`FlowDirection`].
    proxies: Array(u32, Proxy) 2, NONE;
    /// The sockets that take redirected flows, by `LISTENER_*`; what closes leaves it by itself.
    listeners: SockMap(u32, u32) 8, NONE;
    /// Events.
    events: Ring 1048576;
}
