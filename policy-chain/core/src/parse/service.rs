//! Service.

use super::cursor::{Cursor, Report};
use crate::cluster::Object;

/// Reads a Service.
pub(super) fn service(document: &Cursor<'_>, report: &mut Report) -> Option<Object> {
    report.unusable(&document.path, "this kind cannot be read yet");
    None
}
