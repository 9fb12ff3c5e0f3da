use crate::extent::{Extent, TargetId};
use crate::helper::files::Files;
use crate::helper::map::Map;
use crate::helper::mappings;
use crate::helper::page_tables::{PageTables, SOMEWHERE, facts};
use crate::history;
use crate::shared::write_guarded::number;
use crate::stats::{COUNTERS, Counters};

pub(crate) fn learn(map: &mut Map, tables: &mut PageTables, files: &Files, addr: usize, len: usize) {
    let mut at = addr;
    while let Some(row) = map.next_piece(at, addr + len) {
        at = row.end();
        if row.is_mapped() && mappings::is_ours(tables, files, row) {
            let altered = ever_altered(tables, row);
            history::learn_large(number(files.get(row.target).key), row.len, altered);
        }
    }
}

/// Unaltered pages are about to be copied: did deferring pay so far?
pub(crate) fn learn_of_copy(map: &mut Map, tables: &mut PageTables, files: &Files, id: TargetId) {
    let (mut known, mut altered, mut longest, mut at) = (0, 0, 0, 0);
    loop {
        let Some(row) = map.view().of_target(id, at).next() else { break };
        at = row.end();
        if row.is_mapped() {
            known += row.len;
            longest = longest.max(row.len);
            altered += ever_altered(tables, row);
        }
    }
    let number = number(files.get(id).key);
    match altered / 4 >= known / 5 {
        true => history::learn_large(number, known, altered),
        false if known >= history::LARGE => history::learn_of_copy(number, longest),
        false => (),
    }
}

/// Bytes of an extent stored into since its read, saved or not.
pub(crate) fn ever_altered(tables: &mut PageTables, row: Extent) -> usize {
    let mut altered = 0;
    tables.scan_each(row.addr, row.end(), SOMEWHERE, |run| {
        let facts = facts(run.categories);
        if facts.swapped || facts.present && !facts.file {
            altered += (run.end - run.start) as usize;
        }
    });
    altered
}

pub(crate) fn count_loaded(map: &mut Map, tables: &mut PageTables, addr: usize, len: usize) {
    let mut at = addr;
    while let Some(row) = map.next_piece(at, addr + len) {
        at = row.end();
        if row.is_mapped() {
            Counters::add(&COUNTERS.loaded, tables.count(row.addr, row.end(), SOMEWHERE));
        }
    }
}
