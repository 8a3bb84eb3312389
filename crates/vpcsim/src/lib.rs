//! A VPC in a box: what EC2 keeps ([`model`]), packets that obey it ([`fabric`]), and machines in which production
//! binaries run ([`node`]), together a [`world`]. Bringing a world up needs root; the model needs nothing.
//!
//! ```no_run
//! # async fn demo() -> Result<(), Box<dyn std::error::Error>> {
//! use sluice_vpcsim::{node::Program, runtime::Runtime, scene::Scene, world::World};
//!
//! let world = World::up(&Scene::read("scene.yaml".as_ref())?).await?; // dropping it takes all of it down
//! let node = world.node("node-a")?;
//! node.install("target/fast/sluice-eni".as_ref(), "/opt/cni/bin/sluice-eni".as_ref()).await?;
//! node.write("/etc/cni/net.d/00-sluice.conflist", "{}").await?;
//! let ipamd = Program { name: "ipamd".into(), path: "/usr/bin/true".into(), ..Program::default() };
//! let daemon = node.start(&ipamd).await?; // its output: node.log("ipamd")
//! let runtime = Runtime::start(node).await?;
//! let pod = node.sandbox("default", "web-0").await?;
//! let result = runtime.add(node, &pod).await?; // the CNI chain, as a runtime executes it
//! let inside = node.pod(&pod.netns).await?; // inside.run(|| async { ... }) in the pod's network
//! world.stop_service(sluice_vpcsim::world::Service::Ec2).await; // and start_service; `world.reboot` restarts a node
//! assert!(world.dropped().await?.is_empty(), "no ENI sent from an address that it does not hold");
//! # drop((daemon, result, inside)); Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

pub mod deployment;
pub mod ec2;
pub mod fabric;
mod http;
pub mod imds;
pub mod limits;
pub mod live;
pub mod model;
mod names;
pub mod node;
pub mod policyd;
pub mod probe;
pub mod proxy;
pub mod runtime;
pub mod scene;
pub mod serve;
pub mod up;
pub mod world;
