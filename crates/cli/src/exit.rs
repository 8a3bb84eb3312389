//! Exit statuses besides 0 (`sysexits.h`, where it has one).

/// Something is not as it should be, and has been told.
pub(crate) const FAILED: u8 = 1;
/// The arguments cannot be meant (`EX_USAGE`).
pub(crate) const USAGE: u8 = 64;
/// What was given cannot be read (`EX_DATAERR`).
pub(crate) const DATA: u8 = 65;
/// Who was to be asked does not answer (`EX_UNAVAILABLE`).
pub(crate) const UNAVAILABLE: u8 = 69;
/// Something could not be done at all (`EX_SOFTWARE`).
pub(crate) const SOFTWARE: u8 = 70;
/// Ctrl-C, as shells have it.
pub(crate) const INTERRUPTED: u8 = 130;
