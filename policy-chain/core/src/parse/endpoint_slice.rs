//! EndpointSlice.

use super::cursor::{Cursor, Report};
use crate::cluster::Object;

/// Reads an EndpointSlice.
pub(super) fn endpoint_slice(document: &Cursor<'_>, report: &mut Report) -> Option<Object> {
    report.unusable(&document.path, "this kind cannot be read yet");
    None
}
