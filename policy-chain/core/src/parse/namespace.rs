//! Namespace.

use super::cursor::{Cursor, Report};
use crate::cluster::Object;

/// Reads a Namespace.
pub(super) fn namespace(document: &Cursor<'_>, report: &mut Report) -> Option<Object> {
    report.unusable(&document.path, "this kind cannot be read yet");
    None
}
