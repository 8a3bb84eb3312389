//! The product on nodes: its real binaries, real packets, and what an operator would see. Most of it needs root.
//!
//! One program for all of it, because linking one takes a minute; its tests run beside each other. What looks at the whole
//! machine is not among them (`demo`).
//!
//! | part | what it holds |
//! |---|---|
//! | [`packets`], [`paths`], [`families`], [`nics`], [`pool`], [`crash`], [`input`], [`reboot`], [`repair`], [`upgrade`], [`scale`], [`vpc`] | ipamd and its plugin on nodes of a VPC in a box |
//! | [`containerd`], [`podman`] | the same driven by real runtimes |
//! | [`gate`], [`l7`] | policy on nodes, with packets and with requests |
//! | [`kube_source`], [`ipamd_kube`], [`apiserver`] | policyd's and ipamd's Kubernetes sources, and the fake API server that they are tested against |
//! | [`see`] | flows, `sluice status`, `observe`, `explain` and `doctor` on a node, and faults that were seeded |
//! | [`install`], [`versions`] | a node is installed, upgraded and left; other versions' files and frames |
//! | [`takeover`] | a node of the VPC CNI, also with Cilium behind it, changes hands with its pods talking |
//! | [`burst`] | what the benchmarks measure with |
//! | [`law`], [`logs`], [`held`] | the dependency law; names of fields in logs; the tests that hold what is promised |

#![cfg(test)]

mod apiserver;
mod burst;
mod containerd;
mod crash;
mod custom;
mod families;
mod gate;
mod held;
mod input;
mod install;
mod ipamd_kube;
mod kube_source;
mod l7;
mod law;
mod logs;
mod nics;
mod packets;
mod paths;
mod podman;
mod pool;
mod reboot;
mod repair;
mod scale;
mod see;
mod takeover;
mod upgrade;
mod versions;
mod vpc;
