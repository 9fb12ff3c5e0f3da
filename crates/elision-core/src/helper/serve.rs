//! The sidecar's loop: answers lease breaks and requests, and goes when the program does.
#![allow(unsafe_code)] // Entry point of a process, and a signal handler.

use crate::client::fork;
use crate::client::launch::{self, END_VALUE, END_WORD, PREDECESSOR, PROGRAM};
use crate::client::report;
use crate::extent::{BLANK, Extent, FileId, Kind};
use crate::helper::files::Guard;
use crate::helper::guard::breaks;
use crate::helper::processes;
use crate::helper::state::{self, State};
use crate::shared::channel::{self, ASLEEP, Answer, BELL, Op, Request};
use crate::shared::unmap_queue;
use crate::stats::Reason;
use core::sync::atomic::{AtomicBool, Ordering::*};
use elision_sys::file::{self, FileKey, ProcPath};
use elision_sys::task::SignalInfo;
use elision_sys::{pages, task};

/// The kernel announces a lease break with this signal…
const BREAK: i32 = libc::SIGIO;

/// …or, where it was told to, with this one, which says of which descriptor. (Of the real-time signals any will do: nobody else's code
/// runs in a sidecar.)
pub(crate) const NAMED_BREAK: i32 = 40;

/// A thread of the program has ended that may have been the last. (Sent to the supervisor, and handed on by it.)
pub(crate) const PARENTS_END: i32 = 42;

/// How long the sidecar looks for the next request before it sleeps, in rounds with a yield between them: waking it
/// costs more.
const ROUNDS: u32 = 40;
const POLLS: u32 = 100;

/// Both of them.
const BREAKS: [i32; 2] = [BREAK, NAMED_BREAK];

extern "C" fn on_break(signal: i32, info: &SignalInfo) {
    match (signal, info.descriptor()) {
        (NAMED_BREAK, Some(fd)) => breaks::note(fd),
        _ => breaks::note_all(),
    }
    BELL.fetch_add(1, SeqCst);
}

/// A thread of the program has ended since this was last looked at.
static ORPHANED: AtomicBool = AtomicBool::new(false);

pub(crate) extern "C" fn on_parents_end(_: i32, _: &SignalInfo) {
    ORPHANED.store(true, SeqCst);
    channel::ring();
}

/// Milliseconds after which the sidecar looks at everything though nobody has told it to.
const LONG: u64 = 60_000;

/// Where a sidecar begins.
pub(crate) extern "C" fn main() -> ! {
    // SAFETY: there is one sidecar, and the program's threads never touch the state while it lives.
    let state = unsafe { launch::state() };
    let (Some(state), Some(gate)) = (state, launch::gate()) else { task::exit() };
    task::make_every_call();
    launch::HARMLESS.store(true, Release);
    processes::begin();
    launch::SIDECAR.store(task::pid(), Release);
    task::block_all_but(&[BREAK, NAMED_BREAK, PARENTS_END, libc::SIGALRM]);
    let isolated = file::unshare_and_close_all().is_ok();
    task::new_session();
    task::set_name(super::NAME);
    crate::helper::guard::keep_spare_descriptors(task::raise_descriptor_limit());
    // Else nobody could tell whether the program is still there.
    let sees = launch::shares_memory(task::pid());
    while sees && gate.go.load(Acquire) == 0 {
        task::futex_wait(&gate.go, 0, 1000);
        // Killed before it could say so, it would be waited for for ever, and its memory kept.
        if gate.go.load(Acquire) == 0 && !processes::program_lives(PROGRAM.load(Acquire)) {
            task::exit();
        }
    }
    // SAFETY: the handlers note something in atomics and ring a bell, which is safe anywhere.
    let handled = unsafe {
        BREAKS.iter().all(|&signal| task::handle_signal(signal, on_break).is_ok())
            && task::handle_signal(PARENTS_END, on_parents_end).is_ok()
            && task::handle_signal(libc::SIGALRM, crate::helper::stop_world::on_timer).is_ok()
    };
    task::signal_at_parents_end(PARENTS_END);
    let ready = isolated && handled && sees && state.open();
    // Only now: the statistics path may be relative.
    task::leave_directory();
    if !ready {
        gate.ready.store(2, Release);
        task::futex_wake(&gate.ready);
        task::exit();
    }
    gate.ready.store(1, Release);
    task::futex_wake(&gate.ready);
    state.serve()
}

impl State {
    /// Opens what the sidecar works with. False: it cannot work here.
    fn open(&mut self) -> bool {
        channel::begin();
        self.program = PROGRAM.load(Acquire);
        self.retiring = false;
        self.closed = 0;
        self.pause.begin();
        if !processes::open_root() {
            return false;
        }
        let read_only = libc::O_RDONLY | libc::O_CLOEXEC;
        self.pagemap = file::open(c"/proc/self/pagemap", read_only, 0).unwrap_or(-1);
        self.maps = file::open(c"/proc/self/maps", read_only, 0).unwrap_or(-1);
        self.tracker = pages::tracker().unwrap_or(-1);
        self.stats = report::open_stats();
        self.fine_ctime = kernel_at_least(6, 13);
        self.map_limit = number_in(c"/proc/sys/vm/max_map_count").unwrap_or(65_530).saturating_sub(2_000) / 4;
        let here = self as *const State as usize;
        let scans = self.pagemap >= 0 && {
            let mut runs = [pages::Run::default(); 1];
            pages::scan(
                self.pagemap,
                here & !4095,
                (here & !4095) + 4096,
                crate::helper::plan::SOMEWHERE,
                &mut runs,
            )
            .is_ok()
        };
        self.spare.keep();
        crate::helper::state::MAPPINGS.store(self.map_limit, Release);
        let asks = self.maps >= 0 && pages::mapping(self.maps, here).is_ok();
        if !scans || !asks {
            return false;
        }
        // Extents would be at the mercy of a truncation if the program could not be held still; try it now.
        let held = self.pause_within(0);
        if held {
            self.resume();
        }
        match PREDECESSOR.load(Acquire) {
            0 => {
                // What is recorded is a parent's or a dead sidecar's: its descriptors are not ours.
                self.begin_anew();
                held
            }
            // Whether or not it can be held: these extents exist, and somebody has to look after them.
            -1 => {
                self.take_over_from_nobody();
                held
            }
            pid => {
                self.take_forgotten();
                self.take_over(pid);
                held
            }
        }
    }

    /// In a forked child: leases of our own for everything that the parent's sidecar guards, while that one waits.
    fn take_over(&mut self, predecessor: i32) {
        // The write tracker belongs to the parent's memory.
        self.map().retain(|row| row.kind == Kind::Mapped);
        // The child's only thread waits for us.
        self.pause.alone = true;
        for id in self.files.ids() {
            let known = self.file(id);
            if !known.used || known.guard == Guard::None {
                self.drop_file(id);
                continue;
            }
            let path = ProcPath::new(predecessor, "fd", Some(known.fd));
            let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK;
            let taken = processes::open(&path, flags).ok().filter(|&fd| {
                let good = known.guard == Guard::Read
                    && file::stat(fd).is_ok_and(|stat| stat.id == known.key)
                    && crate::helper::guard::take_read_lease(fd).is_ok();
                if !good {
                    file::close(fd);
                }
                good
            });
            match (taken, self.files.get_mut(id)) {
                (Some(fd), Some(entry)) => {
                    // Whoever was writing is none of this process's threads.
                    (entry.fd, entry.writer) = (fd, 0);
                    self.files.watch(fd, id);
                }
                _ => {
                    self.materialise_file(id);
                    self.drop_file(id);
                }
            }
        }
        self.pause.alone = false;
        self.publish();
    }

    /// After a sidecar was killed: its leases are gone, so nothing may stay mapped.
    fn take_over_from_nobody(&mut self) {
        // Until all of it is done there is something that depends on us, or on a successor, whatever the map says meanwhile. (When news
        // alone were published first, and it was killed then, nobody saw the need of another.)
        self.unsurveyed = true;
        self.publish();
        self.put_back_page();
        self.recall();
        for id in self.files.ids() {
            if self.map().share(id).mapped > 0 {
                self.materialise_orphan(id);
            }
        }
        self.begin_anew();
    }

    /// Nothing is recorded any more, and no lease is left of those that another sidecar has taken on descriptions of the program's.
    fn begin_anew(&mut self) {
        self.give_up_orphaned_leases();
        self.taking = FileKey::default();
        match self.usage.whole {
            true => self.map().retain(|_| false),
            false => self.map().clear(),
        }
        self.files.clear();
        self.intend(BLANK);
        self.usage.whole = true;
        self.unsurveyed = false;
        self.publish();
    }

    /// Has recorded what is mapped by deferred reads, after another that was killed, or was at work when this was copied. It was in the
    /// middle of anything. If that was a change of the map, the kernel is asked, and so will be whoever comes after us if we are killed, too.
    fn recall(&mut self) {
        for id in self.files.ids() {
            // Descriptors of its; by that number we may have another, or the program may. The mappings still know the file.
            if let Some(entry) = self.files.get_mut(id) {
                entry.fd = -1;
            }
        }
        if self.usage.whole {
            self.enter_mapped(self.intent);
            self.take_forgotten();
        } else {
            self.map().clear();
            self.take_forgotten();
            self.survey();
        }
    }

    /// Records what is mapped of guarded files, wherever it could be by a deferred read. If the program has such a private mapping of
    /// its own of the same file, it is taken for one, since nothing tells them apart: it does not show what the file has later.
    fn survey(&mut self) {
        let mut at = 0;
        while let Ok(mapping) = pages::mapping_like_ours(self.maps, at) {
            at = mapping.end;
            if let Some(file) = self.files.shown_as(mapping.dev, mapping.ino).filter(|_| !mapping.shared) {
                let (addr, len) = (mapping.start, mapping.end - mapping.start);
                let _ =
                    self.map().insert(Extent { addr, len, file, offset: mapping.offset, kind: Kind::Mapped });
            }
        }
    }

    /// Forgets a file, and all of its extents.
    pub(crate) fn drop_file(&mut self, id: FileId) {
        self.map().retain_of(id, |_| false);
        self.files.remove(id);
    }

    /// In a forked child that could not start a sidecar, by its only thread.
    pub(crate) fn materialise_alone(&mut self) {
        self.in_the_program(|state| {
            state.recall();
            for id in state.files.ids() {
                state.materialise_file(id);
                state.drop_file(id);
            }
        });
        self.publish();
    }

    /// In a program whose sidecar was killed and that cannot start another. Its other threads go on meanwhile: a store into a page that is
    /// just being exchanged is lost.
    pub(crate) fn take_over_alone(&mut self) {
        channel::begin();
        self.in_the_program(State::take_over_from_nobody);
    }

    /// Does what a sidecar would do, in the calling thread of the program. What the work needs is open meanwhile.
    fn in_the_program(&mut self, work: impl FnOnce(&mut State)) {
        self.pause.alone = true;
        self.tracker = -1;
        let read_only = libc::O_RDONLY | libc::O_CLOEXEC;
        self.pagemap = file::open(c"/proc/self/pagemap", read_only, 0).unwrap_or(-1);
        self.maps = file::open(c"/proc/self/maps", read_only, 0).unwrap_or(-1);
        work(self);
        file::close(self.pagemap);
        file::close(self.maps);
    }

    fn serve(&mut self) -> ! {
        let (mut timed_out, mut looked) = (false, task::now_ms());
        breaks::note_all();
        let mut end_word = END_WORD.load(Acquire);
        let end_value = END_VALUE.load(Acquire);
        loop {
            channel::step();
            let rung = BELL.load(SeqCst);
            // (Who has set another word, or ended the main thread before the others, is told of in this way.)
            if (ORPHANED.swap(false, SeqCst) || end_word == 0) && !processes::program_lives(self.program) {
                self.finish();
            }
            self.take_forgotten();
            if timed_out && task::ms_since(looked) >= LONG {
                looked = task::now_ms();
                breaks::note_all();
                ORPHANED.store(true, SeqCst);
            }
            let mut again = self.answer_breaks();
            while channel::answer_all(self, State::take_forgotten, State::answer, State::rest_for_fork) {
                again |= self.answer_breaks();
            }
            self.look_at_closed();
            let late = self.pause.release_late(self.program);
            timed_out = false;
            if self.poll(rung) {
                continue;
            }
            let mut timeout = if again || late { 1 } else { LONG };
            if self.dirty && timeout > 5 {
                // Between calls, not within one: a program that frees and reads again keeps its guard.
                timeout = 5;
            }
            if self.closed != 0 {
                timeout = timeout.min(self.closed.saturating_sub(task::now_ms()) + 1);
            }
            ASLEEP.store(1, SeqCst);
            // The kernel looks at the word: with the thread that has ended, its memory may be gone.
            if !channel::waiting() && task::futex_wait_either(&BELL, rung, end_word, end_value, timeout) {
                // The kernel woke one waiter, us: whoever else waits there (a join) is to be woken, too.
                task::futex_wake_shared(end_word);
                // If only the main thread has gone, the others have to be asked about now and then from here on.
                end_word = 0;
            }
            ASLEEP.store(0, SeqCst);
            timed_out = BELL.load(SeqCst) == rung;
            if self.dirty && BELL.load(SeqCst) == rung {
                self.sweep();
            }
        }
    }

    /// What was left for us without a request: ranges that are gone.
    fn take_forgotten(&mut self) {
        unmap_queue::take_all(|addr, len| self.forget(addr, len));
    }

    /// Materialises everything, and forgets it.
    fn let_go_of_all(&mut self) {
        for id in self.files.ids() {
            // A forked child that is not covered yet has a minute at most.
            while self.file(id).used && !self.release(id) {
                channel::step();
                task::nap_us(1_000);
            }
            self.drop_file(id);
        }
        self.publish();
    }

    /// If the answer just given was to a fork: rests until that fork is over. At no other time, since
    /// the fork's own request may be the next one; and before any other request is answered, since that would change
    /// what the child is getting a copy of.
    fn rest_for_fork(&mut self) {
        if self.retiring {
            self.report();
            task::exit();
        }
        let fork = core::mem::take(&mut self.fork);
        if fork != 0 {
            fork::rest(fork);
        }
    }

    /// Looks for the next request for a little while. True if the bell rang.
    fn poll(&self, rung: u32) -> bool {
        for _ in 0..ROUNDS {
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

    fn answer(&mut self, request: &mut Request) -> Answer {
        if self.held_up(request) {
            return Answer::Later;
        }
        if matches!(request.op, Op::Plan | Op::BeforeWrite) {
            state::count_change();
        }
        // What ends somebody's write, whose it is and whose it is not, may be waited for.
        let ends = match request.op {
            Op::Wrote => !request.more,
            Op::Plan | Op::BeforeWrite | Op::Release | Op::Surrender | Op::Fork | Op::Retire | Op::Leave => {
                true
            }
            _ => false,
        };
        let takes = matches!(request.op, Op::Associate | Op::Plan);
        if takes {
            state::expect(self.usage.extents);
            // No other can come before the answer is given: it would wait for that.
            request.owned &= request.forks == fork::count();
        }
        request.declined = match request.op {
            Op::Ping => None,
            Op::Associate => self.associate(request),
            Op::Plan => self.plan(request),
            Op::Wrote => {
                self.wrote(request);
                None
            }
            Op::Untrack => {
                self.untrack(request.addr, request.len);
                None
            }
            Op::BeforeWrite => {
                self.small_write(request);
                None
            }
            Op::Release => {
                self.release_key(request);
                None
            }
            Op::Closing => {
                self.closing(request);
                None
            }
            Op::Surrender => {
                self.surrender();
                None
            }
            Op::Forget => {
                self.learn(request.addr, request.len);
                self.forget(request.addr, request.len);
                None
            }
            Op::Dissolve => {
                self.dissolve(request.addr, request.len);
                None
            }
            Op::Relocate => self.relocate(request),
            Op::Unload => {
                request.handled = self.unload(request.addr, request.len);
                None
            }
            Op::Zero => {
                self.zero(request.addr, request.len);
                None
            }
            Op::Query => {
                self.query(request);
                None
            }
            #[cfg(test)]
            Op::Fail => panic!("as a test wants"),
            Op::Validate => {
                request.broken = self.validate().err();
                request.handled = self.map().len();
                None
            }
            Op::Fork => {
                // Here and not before, so that no other thread's write lease comes in between.
                self.surrender();
                self.fork = fork::fork_under_way();
                if !fork::set_mark() {
                    for id in self.files.ids() {
                        self.release(id);
                    }
                    request.declined = Some(Reason::Limit);
                    return Answer::GivenToAll;
                }
                None
            }
            Op::Retire => {
                self.let_go_of_all();
                self.retiring = true;
                None
            }
            Op::Leave => {
                // Their descriptions may outlive the program. What else is deferred goes with its memory.
                self.surrender();
                self.retiring = true;
                None
            }
            Op::End => {
                // Leases end with the mappings and descriptors that keep them, the program's own; until then whoever wants a file waits.
                self.retiring = true;
                None
            }
        };
        if takes {
            state::expected(self.usage.extents);
        }
        if ends { Answer::GivenToAll } else { Answer::Given }
    }

    /// Ends this process. Its descriptors go with it, and the leases with them.
    fn finish(&mut self) -> ! {
        self.give_back_descriptions();
        self.report();
        task::exit()
    }

    /// Writes the statistics, once.
    fn report(&mut self) {
        if self.stats < 0 {
            return;
        }
        let mut at = 0;
        while let Some(row) = self.map().next(at) {
            self.count_loaded(row.addr, row.len);
            at = row.end();
        }
        report::write_stats(self.stats, self.program);
        file::close(self.stats);
        self.stats = -1;
    }
}

fn kernel_at_least(major: u32, minor: u32) -> bool {
    let mut text = [0u8; 32];
    let Ok(fd) = file::open(c"/proc/sys/kernel/osrelease", libc::O_RDONLY | libc::O_CLOEXEC, 0) else {
        return false;
    };
    let _ = file::read(fd, &mut text);
    file::close(fd);
    let mut numbers = text.split(|byte| !byte.is_ascii_digit()).map(parse);
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major as usize, minor as usize)
}

fn number_in(path: &core::ffi::CStr) -> Option<usize> {
    let mut text = [0u8; 32];
    let fd = file::open(path, libc::O_RDONLY | libc::O_CLOEXEC, 0).ok()?;
    let _ = file::read(fd, &mut text);
    file::close(fd);
    Some(parse(text.split(|byte| !byte.is_ascii_digit()).next()?))
}

fn parse(digits: &[u8]) -> usize {
    digits.iter().fold(0usize, |n, &digit| n.saturating_mul(10).saturating_add((digit - b'0') as usize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::helper::guard;
    use crate::helper::guard::breaks::Broken;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::OpenOptionsExt;

    /// The least that others see of a break: an open for writing that does not wait.
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
        // SAFETY: the handlers do only what they do in a sidecar.
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
