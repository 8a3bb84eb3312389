//! What frontends have in common.
//!
//! A program decides alike for all frontends whose ready backends have the same classes and ports: these have one shape.
//! And it decides alike for all shapes of whose classes it lists none, if they have the same ports: these are of one kind. So a
//! new program looks at the shapes that have a class in its table, and at the kinds, of which there are few.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::compile::identity::NONE;
use crate::flow::Protocol;
use crate::pack::pack_set;

/// Classes of backends with their ports, each once, in the order of the first backend that has them.
pub(super) type Targets = Arc<[(u32, u16)]>;

#[derive(Debug)]
pub(super) struct Shape {
    pub(super) protocol: Protocol,
    pub(super) targets: Targets,
    pub(super) kind: u32,
    /// Those that have it, ascending.
    pub(super) fronts: Vec<u32>,
}

#[derive(Debug)]
pub(super) struct Kind {
    pub(super) protocol: Protocol,
    /// Each once, in the order of the first target that has it.
    pub(super) ports: Arc<[u16]>,
    /// How many frontends there are of it.
    pub(super) fronts: usize,
    pub(super) shapes: BTreeSet<u32>,
}

/// All shapes and kinds that some frontend has.
#[derive(Debug, Default)]
pub(super) struct Shapes {
    shapes: Vec<Option<Shape>>,
    free_shapes: Vec<u32>,
    by_targets: HashMap<(Protocol, Targets), u32>,
    /// Which shapes have a class.
    of_class: BTreeSet<(u32, u32)>,
    kinds: Vec<Option<Kind>>,
    free_kinds: Vec<u32>,
    by_ports: HashMap<(Protocol, Arc<[u16]>), u32>,
}

/// A place in a list for something new.
fn place<T>(list: &mut Vec<Option<T>>, free: &mut Vec<u32>, value: T) -> u32 {
    let index = free.pop().unwrap_or_else(|| {
        list.push(None);
        u32::try_from(list.len() - 1).unwrap_or(NONE)
    });
    if let Some(slot) = list.get_mut(index as usize) {
        *slot = Some(value);
    }
    index
}

impl Shapes {
    pub(super) fn get(&self, shape: u32) -> Option<&Shape> {
        self.shapes.get(shape as usize)?.as_ref()
    }

    pub(super) fn kind(&self, kind: u32) -> Option<&Kind> {
        self.kinds.get(kind as usize)?.as_ref()
    }

    /// All kinds.
    pub(super) fn kinds(&self) -> impl Iterator<Item = (u32, &Kind)> {
        (0..).zip(&self.kinds).filter_map(|(index, kind)| Some((index, kind.as_ref()?)))
    }

    /// The shapes that have a class.
    pub(super) fn of_class(&self, class: u32) -> impl Iterator<Item = u32> {
        self.of_class.range((class, 0)..=(class, u32::MAX)).map(|(_, shape)| *shape)
    }

    /// Less room for what is held.
    pub(super) fn pack(&mut self) {
        self.shapes.shrink_to_fit();
        self.by_targets.shrink_to_fit();
        pack_set(&mut self.of_class);
        for shape in self.shapes.iter_mut().flatten() {
            shape.fronts.shrink_to_fit();
        }
        self.kinds.iter_mut().flatten().for_each(|kind| pack_set(&mut kind.shapes));
    }

    /// Gives a frontend the shape of these targets.
    pub(super) fn join(&mut self, front: u32, protocol: Protocol, targets: Vec<(u32, u16)>) -> u32 {
        let key = (protocol, Targets::from(targets));
        let index = match self.by_targets.get(&key) {
            Some(index) => *index,
            None => self.add(key),
        };
        if let Some(shape) = self.shapes.get_mut(index as usize).and_then(Option::as_mut) {
            if let Err(at) = shape.fronts.binary_search(&front) {
                shape.fronts.insert(at, front);
            }
            if let Some(kind) = self.kinds.get_mut(shape.kind as usize).and_then(Option::as_mut) {
                kind.fronts += 1;
            }
        }
        index
    }

    fn add(&mut self, (protocol, targets): (Protocol, Targets)) -> u32 {
        let mut ports: Vec<u16> = Vec::new();
        for (_, port) in targets.iter() {
            if !ports.contains(port) {
                ports.push(*port);
            }
        }
        let ports: (Protocol, Arc<[u16]>) = (protocol, ports.into());
        let kind = match self.by_ports.get(&ports) {
            Some(kind) => *kind,
            None => {
                let kind = Kind { protocol, ports: Arc::clone(&ports.1), fronts: 0, shapes: BTreeSet::new() };
                let index = place(&mut self.kinds, &mut self.free_kinds, kind);
                self.by_ports.insert(ports, index);
                index
            }
        };
        let shape = Shape { protocol, targets: Arc::clone(&targets), kind, fronts: Vec::new() };
        let index = place(&mut self.shapes, &mut self.free_shapes, shape);
        self.of_class.extend(targets.iter().map(|(class, _)| (*class, index)));
        if let Some(kind) = self.kinds.get_mut(kind as usize).and_then(Option::as_mut) {
            kind.shapes.insert(index);
        }
        self.by_targets.insert((protocol, targets), index);
        index
    }

    /// A frontend has a shape no more.
    pub(super) fn leave(&mut self, front: u32, index: u32) {
        let Some(shape) = self.shapes.get_mut(index as usize).and_then(Option::as_mut) else { return };
        let Ok(at) = shape.fronts.binary_search(&front) else { return };
        shape.fronts.remove(at);
        let (kind, empty) = (shape.kind, shape.fronts.is_empty());
        if let Some(kind) = self.kinds.get_mut(kind as usize).and_then(Option::as_mut) {
            kind.fronts -= 1;
            if empty {
                kind.shapes.remove(&index);
            }
        }
        if !empty {
            return;
        }
        if let Some(shape) = self.shapes.get_mut(index as usize).and_then(Option::take) {
            for (class, _) in shape.targets.iter() {
                self.of_class.remove(&(*class, index));
            }
            self.by_targets.remove(&(shape.protocol, shape.targets));
            self.free_shapes.push(index);
        }
        if let Some(slot) = self.kinds.get_mut(kind as usize)
            && slot.as_ref().is_some_and(|kind| kind.shapes.is_empty())
            && let Some(gone) = slot.take()
        {
            self.by_ports.remove(&(gone.protocol, gone.ports));
            self.free_kinds.push(kind);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frontends_with_the_same_backends_have_one_shape_as_long_as_there_are_any() {
        let mut shapes = Shapes::default();
        let one = shapes.join(7, Protocol::TCP, vec![(1, 80), (2, 80)]);
        assert_eq!(shapes.join(3, Protocol::TCP, vec![(1, 80), (2, 80)]), one);
        let other = shapes.join(4, Protocol::TCP, vec![(2, 80)]);
        let udp = shapes.join(5, Protocol::UDP, vec![(2, 80)]);
        assert_eq!(shapes.get(one).unwrap().fronts, [3, 7]);
        assert_eq!(shapes.of_class(2).collect::<Vec<_>>(), [one, other, udp]);
        // The two of TCP are of one kind, that of UDP is of another.
        let kinds: Vec<(usize, usize)> = shapes.kinds().map(|(_, kind)| (kind.fronts, kind.shapes.len())).collect();
        assert_eq!(kinds, [(3, 2), (1, 1)]);
        for (front, shape) in [(7, one), (3, one), (4, other), (5, udp)] {
            assert!(shapes.get(shape).is_some());
            shapes.leave(front, shape);
        }
        assert!(shapes.get(one).is_none() && shapes.of_class(2).next().is_none() && shapes.kinds().next().is_none());
        assert!(shapes.by_targets.is_empty() && shapes.by_ports.is_empty());
    }
}
