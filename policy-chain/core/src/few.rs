//! Lists that nearly always have one element.

use std::ops::Deref;

/// A list, of which one element takes no room of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Few<T> {
    One(T),
    /// Never of length one, so that equal lists are equal values.
    Many(Box<[T]>),
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self::Many(Box::default())
    }
}

impl<T> Deref for Few<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

impl<T> FromIterator<T> for Few<T> {
    fn from_iter<I: IntoIterator<Item = T>>(elements: I) -> Self {
        let many: Box<[T]> = elements.into_iter().collect();
        match <Box<[T; 1]>>::try_from(many) {
            Ok(one) => {
                let [one] = *one;
                Self::One(one)
            }
            Err(many) => Self::Many(many),
        }
    }
}
