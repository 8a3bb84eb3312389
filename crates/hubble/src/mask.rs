//! Field masks: which fields of a flow somebody wants.

use std::collections::BTreeMap;

use prost::Message as _;
use prost_reflect::{DynamicMessage, Kind, MessageDescriptor, ReflectMessage as _, Value};

use crate::flow::Flow;
use crate::json::{JsonError, descriptor, dynamic};

/// Why a mask is none.
#[derive(Debug, thiserror::Error)]
pub enum MaskError {
    /// A flow has no such field.
    #[error("a flow has no field {path:?}: fields are named as in the protocol, such as source.pod_name")]
    Field {
        /// What was asked for.
        path: String,
    },
    /// The protocol is not known.
    #[error(transparent)]
    Protocol(#[from] JsonError),
}

/// Fields that are wanted; those of a field's message, or (none) all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Tree(BTreeMap<u32, Option<Self>>);

/// Which fields of a flow are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask(Tree);

impl Mask {
    /// A mask from paths such as `source.pod_name`.
    ///
    /// # Errors
    /// [`MaskError`].
    pub fn new<'p>(paths: impl IntoIterator<Item = &'p str>) -> Result<Self, MaskError> {
        let flow = descriptor::<Flow>()?;
        let mut tree = Tree::default();
        for path in paths {
            tree.add(&flow, &path.split('.').collect::<Vec<_>>())
                .ok_or_else(|| MaskError::Field { path: path.to_owned() })?;
        }
        Ok(Self(tree))
    }

    /// The flow with nothing but what is wanted.
    ///
    /// # Errors
    /// The protocol does not know the flow, which does not happen with a flow of this build.
    pub fn apply(&self, flow: &Flow) -> Result<Flow, MaskError> {
        let mut message = dynamic(flow)?;
        self.0.keep(&mut message);
        Ok(Flow::decode(message.encode_to_vec().as_slice()).map_err(JsonError::from)?)
    }
}

impl Tree {
    fn add(&mut self, of: &MessageDescriptor, path: &[&str]) -> Option<()> {
        let Some((name, rest)) = path.split_first() else { return Some(()) };
        let field = of.get_field_by_name(name).or_else(|| {
            // Hubble's own example is `source.id`, and the field is `ID`.
            of.fields().find(|field| field.name().eq_ignore_ascii_case(name))
        })?;
        if rest.is_empty() {
            self.0.insert(field.number(), None);
            return Some(());
        }
        let Kind::Message(inner) = field.kind() else { return None };
        match self.0.entry(field.number()).or_insert_with(|| Some(Self::default())) {
            Some(tree) => tree.add(&inner, rest),
            // All of it is wanted already; the path has to be one nevertheless.
            None => Self::default().add(&inner, rest),
        }
    }

    fn keep(&self, message: &mut DynamicMessage) {
        let set: Vec<_> = message.descriptor().fields().filter(|field| message.has_field(field)).collect();
        for field in set {
            match self.0.get(&field.number()) {
                None => message.clear_field(&field),
                Some(None) => {}
                Some(Some(tree)) => match message.get_field_mut(&field) {
                    Value::Message(inner) => tree.keep(inner),
                    Value::List(items) => {
                        for item in items {
                            if let Value::Message(inner) = item {
                                tree.keep(inner);
                            }
                        }
                    }
                    _ => {}
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Endpoint, Policy};

    #[test]
    fn what_is_not_wanted_is_left_out() {
        let flow = Flow {
            uuid: "1".into(),
            verdict: 2,
            source: Some(Endpoint { id: 7, pod_name: "web".into(), namespace: "shop".into(), ..Default::default() }),
            egress_denied_by: vec![Policy { name: "db".into(), kind: "NetworkPolicy".into(), ..Default::default() }],
            ..Default::default()
        };
        let mask = Mask::new(["verdict", "source.id", "source.pod_name", "egress_denied_by.name"]).unwrap();
        let expected = Flow {
            verdict: 2,
            source: Some(Endpoint { id: 7, pod_name: "web".into(), ..Default::default() }),
            egress_denied_by: vec![Policy { name: "db".into(), ..Default::default() }],
            ..Default::default()
        };
        assert_eq!(mask.apply(&flow).unwrap(), expected);
        assert_eq!(Mask::new(["source", "source.id"]).unwrap().apply(&flow).unwrap().source, flow.source);
    }

    #[test]
    fn what_is_no_field_is_refused() {
        for path in ["sauce", "source.sauce", "verdict.number", ""] {
            assert!(matches!(Mask::new([path]), Err(MaskError::Field { .. })), "{path:?}");
        }
    }
}
