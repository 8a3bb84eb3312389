//! What other policy engines got wrong, held right here: every case is YAML that the compiler's images and the oracle judge,
//! and both say what the specification says.
//!
//! - [`cilium`]: security advisories of Cilium and of Envoy under it.
//! - [`aws_agent`]: defects of the AWS network policy agent and its controller.
//! - [`pains`]: what users of either stumble over, as far as it is about meaning.
//! - [`edges`]: cases of the NetworkPolicy API that the vectors of tests/scenarios/policy do not ask.
//!
//! What is not about meaning cannot be held here. It is held where it can happen:
//!
//! | case | where, and why not here |
//! |---|---|
//! | CVE-2025-23028 (a DNS answer crashes the agent) | the proxy, which has the parser of DNS messages; names are fuzzed here |
//! | CVE-2026-33726 (pod to L7 Service with local backend) | packets between namespaces: the kernel's path; its meaning is here |
//! | GHSA-5r23-prx4-mqg3 (host policy, encryption between nodes) | nowhere: there is neither |
//! | GHSA-c66w-hq56-4q97 (ICMP by a connection of the other direction) | connection table of the gate; its meaning is here |
//! | CVE-2024-28248 (HTTP policy applied now and then) | soak of the proxy; that the order of events does not matter is here |
//! | AWS: open window at pod start, agent restart, upgrade | the gate and the chained plugin; that no operation opens a gate is here |
//! | AWS: connection poisoning, evictions and collection of connections, established flows | connection table of the gate |
//! | AWS: fragments, IP options, extension headers | the gate's packet parser |
//! | AWS: secondary interfaces | the chained plugin: which interfaces have a gate |
//! | AWS: CPU and memory of event logs | benchmarks of the gate's events |
//! | Cilium: overflow of a policy map locks down | the owner of the kernel's maps |
//! | Cilium: conflist, marks, martians, restarts, DNS latency | the gate, the proxy and the installer: no policy is compiled there |

mod aws_agent;
mod cilium;
mod edges;
mod pains;
