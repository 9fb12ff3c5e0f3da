use crate::helper::page_tables::SOMEWHERE;
use crate::helper::room::number_in;
use crate::helper::state::{NO_PENDING, State};
use crate::helper::{descriptions, pending, ranges, requests, takeover};
use crate::shared::control::{PREDECESSOR, PROGRAM};
use crate::shared::{processes, report};
use core::sync::atomic::Ordering::*;
use elision_sys::{file, limits, maps, pages};

pub(crate) fn open(state: &mut State) -> bool {
    requests::begin();
    state.program = PROGRAM.load(Acquire);
    state.retiring = false;
    state.map.taking = false;
    state.look_at_ms = 0;
    state.world.begin();
    state.pending = NO_PENDING;
    state.listener = None;
    pending::end_orphan(state.program, &state.files);
    state.prefetch.begin(PREDECESSOR.load(Acquire) > 0);
    if !processes::open_root() {
        return false;
    }
    let read_only = libc::O_RDONLY | libc::O_CLOEXEC;
    state.tables.pagemap = file::open(c"/proc/self/pagemap", read_only, 0).unwrap_or(-1);
    state.tables.maps = file::open(c"/proc/self/maps", read_only, 0).unwrap_or(-1);
    state.tables.tracker = pages::tracker().unwrap_or(-1);
    state.stats = report::open_stats();
    state.journal.begin(if report::tells_of_pages() { state.stats } else { -1 }, state.program);
    state.fine_ctime = kernel_at_least(6, 13);
    state.map_limit = number_in(c"/proc/sys/vm/max_map_count")
        .map_or(65_530, |number| number as usize)
        .saturating_sub(2_000)
        / 4;
    let here = state as *const State as usize;
    let scans = state.tables.pagemap >= 0 && {
        let mut runs = [pages::Run::default(); 1];
        pages::scan(state.tables.pagemap, here & !4095, (here & !4095) + 4096, SOMEWHERE, &mut runs).is_ok()
    };
    state.reserve.keep();
    let asks = state.tables.maps >= 0 && maps::mapping(state.tables.maps, here).is_ok();
    if !scans || !asks {
        return false;
    }
    // If the program cannot be held, a truncation could take extents away: try it now.
    let held = state.world.stop_within(state.program, 0);
    if held {
        state.world.resume(state.program);
    }
    match PREDECESSOR.load(Acquire) {
        0 => {
            takeover::begin_anew(state);
            held
        }
        // These extents need a helper, whether the program can be held or not.
        -1 => {
            takeover::take_over_from_nobody(state);
            descriptions::close_inherited();
            held
        }
        pid => {
            ranges::drain_unmapped(state);
            takeover::take_over(state, pid);
            held
        }
    }
}

fn kernel_at_least(major: u32, minor: u32) -> bool {
    let text = limits::release();
    let mut numbers = text.split(|byte| !byte.is_ascii_digit()).map(parse);
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major as usize, minor as usize)
}

fn parse(digits: &[u8]) -> usize {
    digits.iter().fold(0usize, |n, &digit| n.saturating_mul(10).saturating_add((digit - b'0') as usize))
}
