#![allow(unsafe_code)] // Entry point of a process, and a signal handler.

use crate::helper::files::Guard;
use crate::helper::guard::breaks::{self, NAMED_BREAK};
use crate::helper::requests::{self, Answer};
use crate::helper::state::{self, State};
use crate::helper::{
    associate, before_write, begin, clone, closing, descriptions, duplicate, guard, journal, learn, pending,
    plan, prefetch, query, ranges, recognise, relocate, share, truncate, validate, wrote,
};
use crate::shared::control::{self, END_VALUE, END_WORD, HARMLESS, PROGRAM};
use crate::shared::processes;
use crate::shared::requests::{ASLEEP, BELL, Op, Request, ring, step};
use crate::shared::{forks, live, report};
use crate::stats::Reason;
use core::sync::atomic::{AtomicBool, Ordering::*};
use elision_sys::task::SignalInfo;
use elision_sys::{calls, file, limits, task};

/// The signal of a lease break that names no descriptor.
const BREAK: i32 = libc::SIGIO;

/// A thread of the program has ended, perhaps the last. (The supervisor passes it on.)
pub(crate) const PARENTS_END: i32 = 42;

/// The helper looks for a request for a while before it sleeps: waking costs more.
const ROUNDS: u32 = 40;
const POLLS: u32 = 100;

/// Had the helper been polling, it would not have slept.
const SOON_NS: u64 = 200_000;

const BREAKS: [i32; 2] = [BREAK, NAMED_BREAK];

extern "C" fn on_break(signal: i32, info: &SignalInfo) {
    match (signal, info.descriptor()) {
        (NAMED_BREAK, Some(fd)) => breaks::note(fd),
        _ => breaks::note_all(),
    }
    BELL.fetch_add(1, SeqCst);
}

static ORPHANED: AtomicBool = AtomicBool::new(false);

pub(crate) extern "C" fn on_parents_end(_: i32, _: &SignalInfo) {
    ORPHANED.store(true, SeqCst);
    ring();
}

/// Milliseconds after which the helper looks at everything unasked.
const LONG: u64 = 60_000;

/// Milliseconds that a fork may keep a request or a break waiting.
const FORK_MS: u64 = 2_000;

/// Milliseconds that a helper which ends waits for forked children.
const CHILDREN_MS: u64 = 200;

pub(crate) extern "C" fn main() -> ! {
    // SAFETY: one helper runs, and the program's threads leave the state alone.
    let state = unsafe { state::state() };
    let (Some(state), Some(block)) = (state, control::block()) else { task::exit() };
    calls::make_every_call();
    HARMLESS.store(true, Release);
    processes::begin();
    control::enter_helper();
    task::block_all_but(&[BREAK, NAMED_BREAK, PARENTS_END, libc::SIGALRM]);
    descriptions::begin();
    task::new_session();
    task::set_name(c"elision");
    guard::keep_spare_descriptors(limits::raise_descriptor_limit());
    // Else the helper could not see the program's end.
    let sees = control::shares_memory(task::pid());
    while sees && block.go.load(Acquire) == 0 {
        task::futex_wait(&block.go, 0, 1000);
        // The client may be killed before it sets `go`.
        if block.go.load(Acquire) == 0 && !processes::program_lives(PROGRAM.load(Acquire)) {
            task::exit();
        }
    }
    // SAFETY: the handlers are async-signal-safe.
    let handled = unsafe {
        BREAKS.iter().all(|&signal| task::handle_signal(signal, on_break).is_ok())
            && task::handle_signal(PARENTS_END, on_parents_end).is_ok()
            && task::handle_signal(libc::SIGALRM, crate::helper::stop_world::on_timer).is_ok()
    };
    task::signal_at_parents_end(PARENTS_END);
    let ready = handled && sees && begin::open(state);
    // Only now: the statistics path may be relative.
    task::leave_directory();
    if !ready {
        file::close_all();
        block.say(2);
        task::exit();
    }
    block.say(1);
    serve(state)
}

fn serve(state: &mut State) -> ! {
    let (mut timed_out, mut looked) = (false, task::now_ms());
    let mut rounds = ROUNDS;
    breaks::note_all();
    let mut end_word = END_WORD.load(Acquire);
    let end_value = END_VALUE.load(Acquire);
    loop {
        step();
        let rung = BELL.load(SeqCst);
        // The program may have another end word, or its main thread may end first.
        if (ORPHANED.swap(false, SeqCst) || end_word == 0) && !processes::program_lives(state.program) {
            finish(state);
        }
        ranges::drain_unmapped(state);
        if timed_out && task::ms_since(looked) >= LONG {
            looked = task::now_ms();
            breaks::note_all();
            ORPHANED.store(true, SeqCst);
        }
        let mut again = guard::answer_breaks(state);
        let mut asked = false;
        while requests::answer_all(state, ranges::drain_unmapped, answer, quiesce_for_fork) {
            asked = true;
            again |= guard::answer_breaks(state);
        }
        if state.pending.is_some() {
            if !pending::watch(state) {
                pending::end(state);
            }
            continue;
        }
        closing::look(state);
        let late = state.world.release_late(state.program);
        load_ahead(state, false);
        if asked {
            if poll(rung, rounds) {
                continue;
            }
            // A program that asks seldom is not worth the processor's time.
            rounds = (rounds / 2).max(1);
        }
        load_ahead(state, true);
        journal::look(state, false);
        let mut timeout = if again || late { 1 } else { LONG };
        if let Some(due) = state.prefetch.due_ms() {
            timeout = timeout.min(due);
        }
        if let Some(due) = state.journal.due_ms() {
            timeout = timeout.min(due);
        }
        if state.map.dropped && timeout > 5 {
            // Between calls, not within one: a program that frees and reads again keeps its guard.
            timeout = 5;
        }
        if state.look_at_ms != 0 {
            timeout = timeout.min(state.look_at_ms.saturating_sub(task::now_ms()) + 1);
        }
        let asleep = task::now_ns();
        ASLEEP.store(1, SeqCst);
        // The kernel reads the word, whose memory may go with its thread.
        if !requests::waiting() && task::futex_wait_either(&BELL, rung, end_word, end_value, timeout) {
            // The kernel woke one waiter, the helper: wake the others (a join), too.
            task::futex_wake_shared(end_word);
            // Perhaps only the main thread has gone: from now on the helper asks about the others.
            end_word = 0;
        }
        ASLEEP.store(0, SeqCst);
        timed_out = BELL.load(SeqCst) == rung;
        if !timed_out && task::now_ns() - asleep < SOON_NS {
            rounds = ROUNDS;
        }
        if state.map.dropped && BELL.load(SeqCst) == rung {
            guard::sweep(state);
        }
    }
}

fn load_ahead(state: &mut State, idle: bool) {
    let State { prefetch, map, tables, files, program, .. } = state;
    prefetch::look(prefetch, map, tables, files, *program, idle);
}

/// After a fork, an answer would change what the child copies.
fn quiesce_for_fork(state: &mut State) {
    if state.retiring {
        wait_for_children();
        report_once(state);
        end();
    }
    let fork = core::mem::take(&mut state.fork);
    if fork != 0 {
        quiesce(state, fork);
    }
}

fn poll(rung: u32, rounds: u32) -> bool {
    for _ in 0..rounds {
        for _ in 0..POLLS {
            if BELL.load(Relaxed) != rung {
                return true;
            }
            core::hint::spin_loop();
        }
        task::yield_now();
    }
    false
}

fn answer(state: &mut State, request: &mut Request) -> Answer {
    if before_write::held_up(&state.files, request) {
        return Answer::Later;
    }
    if state.pending.is_some() && !pending::goes_on(state, request) {
        pending::end(state);
    }
    if matches!(request.op, Op::Plan | Op::BeforeWrite) {
        live::count_change();
    }
    let ends = match request.op {
        Op::Wrote => !request.more,
        Op::Plan
        | Op::Truncate
        | Op::BeforeWrite
        | Op::Release
        | Op::Surrender
        | Op::Fork
        | Op::Retire
        | Op::Leave => true,
        _ => false,
    };
    let takes = matches!(request.op, Op::Associate | Op::Plan | Op::Truncate | Op::Recognise);
    if takes {
        state.map.taking = true;
        state.map.publish();
        // A fork waits for the answer, so none comes in between.
        request.owned &= request.forks == forks::count();
    }
    journal::before(state, request.op);
    request.declined = match request.op {
        Op::Ping => None,
        Op::Associate => associate::associate(state, request),
        Op::Plan => plan_save(state, request),
        Op::Clone => clone::clone(state, request),
        Op::Share => share::share(state, request),
        Op::Truncate => truncate::truncate(state, request),
        Op::Recognise => recognise::recognise(state, request),
        Op::Wrote => {
            wrote::wrote(state, request);
            journal::saved(state, request);
            if state.pending.is_some() && !request.more && !pending::look_again(state) {
                pending::end(state);
            }
            None
        }
        Op::Untrack => {
            wrote::untrack(&mut state.map, &state.tables, request.addr, request.len);
            None
        }
        Op::BeforeWrite => {
            before_write::small_write(state, request);
            None
        }
        Op::Release => {
            if let Some(id) = state.files.find(request.key) {
                guard::release_for_nothing(state, id, request);
            };
            None
        }
        Op::Closing => {
            closing::closing(state, request);
            None
        }
        Op::Surrender => {
            guard::surrender(state);
            None
        }
        Op::Forget => {
            learn::learn(&mut state.map, &mut state.tables, &state.files, request.addr, request.len);
            ranges::forget(state, request.addr, request.len);
            None
        }
        Op::Dissolve => {
            ranges::dissolve(state, request.addr, request.len);
            None
        }
        Op::Relocate => relocate::relocate(state, request),
        Op::Duplicate => duplicate::duplicate(state, request),
        Op::Unload => {
            request.handled = ranges::unload(state, request.addr, request.len);
            None
        }
        Op::Zero => {
            ranges::zero(state, request.addr, request.len);
            None
        }
        Op::Query => {
            query::query(&mut state.map, &mut state.tables, &state.files, request);
            None
        }
        #[cfg(test)]
        Op::Fail => panic!("as a test wants"),
        Op::Validate => {
            request.broken = validate::validate(&mut state.map, &state.files).err();
            request.handled = state.map.view().len();
            None
        }
        Op::Fork => {
            // Only here no other thread takes a write lease in between.
            guard::surrender(state);
            guard::before_fork(state);
            state.fork = forks::under_way();
            if !forks::set_mark() {
                for id in state.files.ids() {
                    guard::release(state, id);
                }
                request.declined = Some(Reason::Limit);
                return Answer::GivenToAll;
            }
            None
        }
        Op::Retire => {
            let_go_of_all(state);
            state.retiring = true;
            None
        }
        Op::Leave => {
            // The descriptions may outlive the program; other deferred pages go with its memory.
            guard::surrender(state);
            state.retiring = true;
            None
        }
        Op::End => {
            state.retiring = true;
            None
        }
    };
    if takes {
        state.map.taking = false;
        state.map.publish();
    }
    if ends { Answer::GivenToAll } else { Answer::Given }
}

/// A plan for a file whose truncation is put off holds only while it is.
fn plan_save(state: &mut State, request: &mut Request) -> Option<Reason> {
    let emptied = state.pending.is_some();
    let declined = plan::plan(state, request);
    if !emptied || declined.is_some() {
        return declined;
    }
    if state.pending.is_some() && pending::takes_long(state, request) {
        pending::end(state);
    }
    if state.pending.is_some() { None } else { Some(Reason::Emptied) }
}

fn let_go_of_all(state: &mut State) {
    // A released file may leave a copy.
    while state.files.known().next().is_some() {
        for id in state.files.ids() {
            // A forked child that is not covered yet has a minute at most.
            while state.files.get(id).used && !guard::release(state, id) {
                step();
                task::nap_us(1_000);
            }
            guard::drop_file(state, id);
        }
    }
    state.map.publish();
}

/// A child that was just born takes its guards through this helper's descriptors.
fn wait_for_children() {
    let begun = task::now_ms();
    while forks::children_uncovered() && task::ms_since(begun) < CHILDREN_MS {
        step();
        task::nap_us(500);
    }
}

fn finish(state: &mut State) -> ! {
    if state.pending.is_some() {
        pending::end(state);
    }
    wait_for_children();
    guard::give_back_descriptions(state);
    report_once(state);
    end()
}

/// The supervisor, which shares the descriptors, ends a little later.
fn end() -> ! {
    file::close_all();
    task::exit()
}

fn report_once(state: &mut State) {
    if state.stats < 0 {
        return;
    }
    journal::look(state, true);
    let mut at = 0;
    while let Some(row) = state.map.view().next(at) {
        learn::count_loaded(&mut state.map, &mut state.tables, row.addr, row.len);
        at = row.end();
    }
    report::write_stats(state.stats, state.program);
    file::close(state.stats);
    state.stats = -1;
}

/// The next fork still has to be answered.
fn quiesce(state: &State, fork: u32) {
    let begun = task::now_ms();
    let guarded = |key| state.files.find(key).is_some_and(|id| state.files.get(id).guard != Guard::None);
    while !forks::wait_for_end(fork) {
        requests::answer_quiesced(guarded);
        if !processes::program_lives(PROGRAM.load(Acquire)) {
            return;
        }
        // The fork may wait for a lock whose holder waits for an answer or a lease. The next helper gives both, and the child sees by
        // the epoch that its copy may be inconsistent.
        if (requests::waiting() || breaks::any()) && task::ms_since(begun) >= FORK_MS {
            let _ = task::send_signal(task::pid(), libc::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::helper::guard::breaks::Broken;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::OpenOptionsExt;

    fn is_leased(path: &std::path::Path) -> bool {
        let open = std::fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path);
        open.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    }

    #[test]
    fn the_kernel_names_the_descriptor() {
        let Ok(dir) = tempfile::tempdir() else { return println!("skipped: no temporary directory") };
        let paths = ["a", "b"].map(|name| dir.path().join(name));
        let files = paths.clone().map(|path| {
            std::fs::write(&path, "some").unwrap();
            std::fs::File::open(&path).unwrap()
        });
        let [named, plain] = files.each_ref().map(AsRawFd::as_raw_fd);
        // SAFETY: as above.
        unsafe {
            BREAKS.iter().for_each(|&signal| task::handle_signal(signal, on_break).unwrap());
        }
        let taken = guard::take_read_lease(named).is_ok() && file::set_lease(plain, libc::F_RDLCK).is_ok();
        if !taken {
            return println!("skipped: no leases here");
        }
        let [named_path, plain_path] = &paths;
        for (path, expected) in [(named_path, Broken::One(named)), (plain_path, Broken::All)] {
            let rung = BELL.load(SeqCst);
            assert!(is_leased(path));
            while BELL.load(SeqCst) == rung {
                task::yield_now();
            }
            let mut noted = Vec::new();
            breaks::take(|broken| noted.push(broken));
            assert_eq!(noted, [expected]);
        }
    }
}
