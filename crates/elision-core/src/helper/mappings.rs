//! Checks the map against the kernel: the program may have unmapped or moved parts unseen.

use crate::extent::{Extent, SourceId};
use crate::helper::files::Files;
use crate::helper::map::Map;
use crate::helper::page_tables::PageTables;
use elision_sys::maps;

pub(crate) fn is_ours(tables: &PageTables, files: &Files, extent: Extent) -> bool {
    let mut at = extent.addr;
    while at < extent.end() {
        let (end, ours) = stretch(tables, files, extent, at);
        if !ours {
            return false;
        }
        at = end;
    }
    true
}

pub(crate) fn prune(map: &mut Map, tables: &PageTables, files: &Files, extent: Extent) -> bool {
    let mut cut = false;
    let mut at = extent.addr;
    while at < extent.end() {
        let (end, ours) = stretch(tables, files, extent, at);
        if !ours {
            cut |= map.view().remove(at, end - at).is_ok();
        }
        at = end;
    }
    map.dropped |= cut;
    cut
}

pub(crate) fn learn(tables: &PageTables, files: &mut Files, source: SourceId, addr: usize) {
    if !files.source(source).is_known()
        && tables.maps >= 0
        && let Ok(mapping) = maps::mapping(tables.maps, addr)
        && let Some(source) = files.source_mut(source)
    {
        source.shown = (mapping.dev, mapping.ino);
    }
}

/// From `at` on, how far the extent is of one kind, and whether it is still our mapping.
pub(crate) fn stretch(tables: &PageTables, files: &Files, extent: Extent, at: usize) -> (usize, bool) {
    let Some(source) = extent.source else { return (extent.end(), false) };
    if tables.maps < 0 {
        return (extent.end(), true);
    }
    let Ok(mapping) = maps::mapping(tables.maps, at) else { return (extent.end(), false) };
    if mapping.start > at {
        return (mapping.start.min(extent.end()), false);
    }
    let source = files.source(source);
    let here = mapping.offset.wrapping_add((at - mapping.start) as u64);
    let ours = !mapping.shared
        && mapping.readable
        && mapping.writable
        && mapping.ino != 0
        && here == extent.offset + (at - extent.addr) as u64
        && (!source.is_known() || (mapping.dev, mapping.ino) == source.shown);
    (mapping.end.min(extent.end()), ours)
}
