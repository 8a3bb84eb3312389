//! In which programs an address has another row than before.

use std::collections::BTreeSet;

use super::Engine;
use crate::compile::identity::{Moves, NONE};
use crate::compile::image::RowId;
use crate::compile::predicate::Predicate;

impl Engine {
    /// In which programs an address that had an identity has another row now.
    pub(super) fn note_moves(&self, moves: &Moves, moved: &mut BTreeSet<u32>) {
        let now = |entry: &u32| self.classes.get(*entry).map(|entry| entry.class);
        let mut pairs: BTreeSet<(u32, u32)> = moves
            .entries
            .iter()
            .filter(|(_, before)| *before != NONE)
            .filter_map(|(entry, before)| Some((*before, now(entry)?)))
            .collect();
        let lost = moves.lost.iter().filter(|(_, before)| *before != NONE);
        pairs.extend(lost.filter_map(|(address, before)| Some((*before, self.book.class(*address, &self.classes)?))));
        pairs.retain(|(before, now)| before != now && !self.is_name_ended(*before, *now));
        for (before, now) in pairs {
            moved.extend(self.that_tell(before, now).filter(|(_, old, new)| old != new).map(|(index, ..)| index));
        }
        // Somebody new at an address moves nothing, but for what the address could do as one of its prefix and cannot any more.
        let taken = moves.taken.iter().filter(|(_, before)| *before != NONE);
        let taken: BTreeSet<(u32, u32)> =
            taken.filter_map(|(address, before)| Some((*before, self.book.class(*address, &self.classes)?))).collect();
        for (before, now) in taken {
            let told = self.that_tell(before, now);
            moved.extend(told.filter(|(_, old, new)| self.store.tightens(*old, *new)).map(|(index, ..)| index));
        }
    }

    /// The programs that may tell one class from another, with the rows that they have for the two.
    fn that_tell(&self, one: u32, other: u32) -> impl Iterator<Item = (u32, RowId, RowId)> {
        let key = |class: u32| self.classes.class(class).map_or(&[][..], |class| &class.key);
        let (mine, others) = (key(one), key(other));
        let only_mine = mine.iter().filter(|atom| others.binary_search(atom).is_err());
        let only_others = others.iter().filter(|atom| mine.binary_search(atom).is_err());
        let asking = self.programs.that_ask_for(only_mine.chain(only_others));
        asking.into_iter().filter_map(move |index| {
            let program = self.programs.get(index)?;
            Some((index, program.row_at(one), program.row_at(other)))
        })
    }

    /// Whether all that an address lost is names that it was known by. Flows that were opened by such a name go on (NPEP-133:
    /// "existing connections stay"), so no gate looks at its flows again for that.
    fn is_name_ended(&self, before: u32, now: u32) -> bool {
        let (Some(before), Some(now)) = (self.classes.class(before), self.classes.class(now)) else { return false };
        let is_name = |atom: &u32| matches!(self.atoms.predicate(*atom), Some(Predicate::Name(_)));
        now.key.iter().all(|atom| before.key.contains(atom))
            && before.key.iter().all(|atom| is_name(atom) || now.key.contains(atom))
    }
}
