//! Pod.

use super::cursor::{Cursor, Report};
use crate::cluster::Object;

/// Reads a Pod.
pub(super) fn pod(document: &Cursor<'_>, report: &mut Report) -> Option<Object> {
    report.unusable(&document.path, "this kind cannot be read yet");
    None
}
