//! Programs that are too large to be in force.

use super::Instance;
use crate::compile::engine::store::Store;
use crate::compile::identity::Classes;
use crate::compile::image::{Identity, RowEntries};
use crate::compile::row::PortPrefix;
use crate::flow::{Judgement, Reason, Verdict};

/// How many conditions on ports the rows of one program may be made of in one commit: half of what the kernel's map of rows
/// holds for the whole node, and less than a second of work. Two rules of 30,000 ports each and a thousand blocks, which is a
/// policy of half a megabyte, would otherwise make thirty million entries.
///
/// What counts is what one change of the cluster makes at once: all rows of a program that is new, and of one that is in force
/// those for peers that it did not know. Rows that were made before count no more, so that it may grow beyond this peer by peer,
/// as long as the kernel's map has room.
///
/// What is more is not put in force in part (DESIGN 6.10): nothing passes the gates of the pods that run it, until their
/// policies change. If all of the program is a dry run, everything passes, and nothing is recorded.
pub const MAX_CONDITIONS: usize = 1 << 18;

/// Whether a program can be in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    Fits,
    /// It turned out to be too large in this commit: rows are missing.
    Exceeded,
    /// It has one row for all peers.
    Closed,
}

impl Instance {
    /// One row for all peers but the own node: nothing of the program is in force in part.
    pub(super) fn close(&mut self, classes: &Classes, front: &dyn Fn(u32) -> Option<Identity>, store: &mut Store) {
        self.size = Size::Closed;
        let verdict = if self.program.is_dry_run() { Verdict::Allow } else { Verdict::Deny };
        let decision = store.decision(Judgement { verdict, reason: Reason::TooLarge, audit: None });
        let row = store.row(RowEntries { entries: vec![(PortPrefix::ANY, decision)] });
        for variant in self.variants.values() {
            store.set_peer(variant.id, Identity::ANY, Some(row));
        }
        store.release(std::mem::replace(&mut self.default_row, row));
        for (class, row) in std::mem::take(&mut self.table) {
            store.release(row);
            if let Some(number) = classes.number(class) {
                for variant in self.variants.values() {
                    store.set_peer(variant.id, number, None);
                }
            }
        }
        for (_, row) in self.cache.drain() {
            store.release(row);
        }
        // New programs have no frontends yet.
        let Some(usual) = self.frontend_row.take() else { return };
        store.refer(row);
        self.frontend_row = Some(row);
        store.release(usual);
        for variant in self.variants.values() {
            store.set_peer(variant.id, Identity::FRONTEND, Some(row));
        }
        for (index, row) in std::mem::take(&mut self.listed) {
            store.release(row);
            for (overrides, variant) in &self.variants {
                if let Some(identity) = front(index)
                    && !overrides.iter().any(|(one, _)| *one == index)
                {
                    store.set_peer(variant.id, identity, None);
                }
            }
        }
    }
}
