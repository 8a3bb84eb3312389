//! Who answers the questions of a vector.

use std::collections::BTreeMap;
use std::fmt;

use crate::cluster::{Cluster, Event, Object, PodKey};
use crate::compile::engine::Engine;
use crate::compile::image::Image;
use crate::flow::{Judgement, Query};
use crate::model::Text;
use crate::settings::Settings;

/// Something that is told what happens in a cluster and answers for the gates of any node.
pub trait Judge: fmt::Debug {
    /// Takes these events in, and all that follows from them.
    fn apply(&mut self, events: &[Event]);

    /// Judges at a gate on this node (none: of a pod without node).
    fn judge(&self, node: Option<&Text>, query: &Query) -> Judgement;

    /// The revision of a pod's gate: while it stays, flows that are open stay as they were judged (DESIGN 6.5). None from a
    /// judge that has no memory: then they are judged anew.
    fn revision(&self, node: Option<&Text>, pod: &PodKey) -> Option<u64>;
}

/// A judge that looks at the whole cluster anew for each question, as a function.
pub struct Afresh<F> {
    cluster: Cluster,
    settings: Settings,
    judge: F,
}

impl<F> fmt::Debug for Afresh<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Afresh").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl<F: Fn(&Cluster, &Settings, &Query) -> Judgement> Afresh<F> {
    /// A judge of an empty cluster. `settings.node` is replaced by the node of each question.
    pub fn new(settings: Settings, judge: F) -> Self {
        Self { cluster: Cluster::default(), settings, judge }
    }
}

impl<F: Fn(&Cluster, &Settings, &Query) -> Judgement> Judge for Afresh<F> {
    fn apply(&mut self, events: &[Event]) {
        for event in events {
            self.cluster.apply(event.clone());
        }
    }

    fn judge(&self, node: Option<&Text>, query: &Query) -> Judgement {
        let settings = Settings { node: node.cloned(), ..self.settings.clone() };
        (self.judge)(&self.cluster, &settings, query)
    }

    fn revision(&self, _: Option<&Text>, _: &PodKey) -> Option<u64> {
        None
    }
}

/// The production compiler: an engine a node, and of each an image that its operations alone have written, as they write the
/// kernel's maps. The image answers.
#[derive(Debug, Default)]
pub struct Compiled {
    settings: Settings,
    nodes: BTreeMap<Option<Text>, Node>,
    /// All that happened, for a node that comes later.
    history: Vec<Event>,
}

#[derive(Debug)]
struct Node {
    engine: Engine,
    image: Image,
}

impl Node {
    fn apply(&mut self, events: &[Event]) {
        for event in events {
            self.engine.apply(event.clone());
        }
        for operation in self.engine.commit().operations {
            self.image.apply(&operation);
        }
    }
}

impl Compiled {
    /// Engines of an empty cluster. `settings.node` is replaced by each node.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, ..Self::default() }
    }
}

impl Judge for Compiled {
    fn apply(&mut self, events: &[Event]) {
        for node in self.nodes.values_mut() {
            node.apply(events);
        }
        self.history.extend_from_slice(events);
        for event in events {
            let Event::Upsert(Object::Pod(pod)) = event else { continue };
            if !self.nodes.contains_key(&pod.node) {
                let engine = Engine::new(Settings { node: pod.node.clone(), ..self.settings.clone() });
                let mut node = Node { engine, image: Image::default() };
                node.apply(&self.history);
                self.nodes.insert(pod.node.clone(), node);
            }
        }
    }

    fn judge(&self, node: Option<&Text>, query: &Query) -> Judgement {
        match self.nodes.get(&node.cloned()) {
            Some(node) => node.image.judge(query),
            None => Image::default().judge(query),
        }
    }

    fn revision(&self, node: Option<&Text>, pod: &PodKey) -> Option<u64> {
        self.nodes.get(&node.cloned())?.image.endpoints.get(pod).map(|endpoint| endpoint.revision)
    }
}
