use crate::extent::{self, Extent};
use crate::helper::files::{Files, Guard};
use crate::helper::map::Map;
use crate::helper::page_tables::{PageTables, SOMEWHERE, facts};
use crate::shared::requests::{RUNS, Request};

pub(crate) fn query(map: &mut Map, tables: &mut PageTables, files: &Files, request: &mut Request) {
    let (start, end) = (request.addr, request.addr + request.len);
    request.count = 0;
    let mut at = start;
    while at < end && request.count + 2 < RUNS {
        let row = map.next_piece(at, end);
        let to = row.map_or(end, |row| if row.addr <= at { row.end() } else { row.addr });
        // A copy does not depend on the file.
        let depends = |row: &Extent| row.addr <= at && files.get(row.target).guard != Guard::Copy;
        let Some(row) = row.filter(depends) else {
            request.push_run(at, to, 0, 0);
            at = to;
            continue;
        };
        let nowhere = if row.is_mapped() { 1 } else { 4 };
        let mut cursor = at;
        let mut full = None;
        let reached = tables.scan_while(at, to, SOMEWHERE, |run| {
            let (from, until) = (run.start as usize, run.end as usize);
            if request.count + 2 >= RUNS {
                full = Some(cursor);
                return false;
            }
            if cursor < from {
                request.push_run(cursor, from, nowhere, 0);
            }
            let code = match extent::state(row.kind(), facts(run.categories)) {
                extent::State::Mapped => 2,
                extent::State::Tracked => 3,
                extent::State::Altered => 4,
            };
            request.push_run(from, until, code, 0);
            cursor = until;
            true
        });
        match full {
            Some(full) => {
                at = full;
                break;
            }
            None => {
                if cursor < reached {
                    request.push_run(cursor, reached, nowhere, 0);
                }
                at = reached;
                if reached < to {
                    break;
                }
            }
        }
    }
    request.handled = at - start;
}
