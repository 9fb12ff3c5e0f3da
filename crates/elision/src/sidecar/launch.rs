//! Starting the sidecar, and what happens to it at fork and exit.
//!
//! Fork: the child gets copies of the mappings, but leases that only its parent's sidecar holds. So before a fork the
//! sidecar is brought to rest (its memory is copied in a consistent state) and puts a mark on a page that parent and
//! child share: *uncovered*. While any mark stands, it materialises for breaks as ever, but lets no guard go. The child
//! starts a sidecar of its own, which opens the files through the first one's descriptors, takes leases of
//! its own (or materialises, where one is refused) and removes the mark.
#![allow(unsafe_code)] // Sets up memory for a process that shares it.

use super::channel::{self, Call, Op};
use super::processes::{self, each_child, each_thread, is_supervisor};
use super::state::State;
use super::{serve, supervise};
use crate::stats::{self, COUNTERS, Reason};
use crate::sys::file;
use crate::sys::memory;
use crate::sys::raw::Result;
use crate::sys::task::{self, Mask};
use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering::*};

/// What must vanish at fork, on a page that the kernel wipes then.
#[repr(C)]
pub(super) struct Gate {
    /// Pid of the sidecar; the kernel stores 0 and wakes waiters when it is gone.
    pub sidecar: AtomicU32,
    /// The same of its parent, which starts another when it is killed.
    pub supervisor: AtomicU32,
    /// 0 starting, 1 ready, 2 cannot work here.
    pub ready: AtomicU32,
    /// 1 when the sidecar may begin (a tracer has been allowed by then).
    pub go: AtomicU32,
}

static GATE: AtomicPtr<Gate> = AtomicPtr::new(ptr::null_mut());
static STATE: AtomicPtr<State> = AtomicPtr::new(ptr::null_mut());
static SIDECARS_GROUND: Ground = Ground::new();
static SUPERVISORS_GROUND: Ground = Ground::new();

const IDLE: u32 = 0;
const STARTING: u32 = 1;
const RUNNING: u32 = 2;
const UNAVAILABLE: u32 = 3;
/// The process is changing its rights: the sidecar goes, and none is started meanwhile. Each more is another thread that is at it.
const RETIRED: u32 = 4;
static START: AtomicU32 = AtomicU32::new(IDLE);

/// The process that the sidecar serves.
pub(super) static PROGRAM: AtomicI32 = AtomicI32::new(0);
/// Where the kernel stores 0 when that process's main thread is gone, and what is there until then.
pub(super) static END_WORD: AtomicUsize = AtomicUsize::new(0);
pub(super) static END_VALUE: AtomicU32 = AtomicU32::new(0);
/// The sidecar whose leases a new one takes over, or 0.
pub(super) static PREDECESSOR: AtomicI32 = AtomicI32::new(0);
/// The last sidecar, and the last child of the program that was a sidecar's parent.
pub(super) static SIDECAR: AtomicI32 = AtomicI32::new(0);
static SUPERVISOR: AtomicI32 = AtomicI32::new(0);

/// What a process stands on that shares the program's memory.
struct Ground {
    stack: AtomicUsize,
    area: AtomicUsize,
}

impl Ground {
    const STACK: usize = 256 << 10;
    /// What is there in place of thread-local storage; of libc's.
    const AREA: usize = 64 << 10;

    const fn new() -> Self {
        Ground { stack: AtomicUsize::new(0), area: AtomicUsize::new(0) }
    }

    fn prepare(&self) -> bool {
        let (Ok(stack), Ok(area)) =
            (memory::allocate(Self::STACK, false), memory::allocate(Self::AREA, false))
        else {
            return false;
        };
        self.stack.store(stack, Release);
        self.area.store(area, Release);
        true
    }

    /// Starts a process that has its pid in `word` while it lives.
    ///
    /// # Safety
    /// No other process may be on this ground; `entry` keeps the rules of the module.
    unsafe fn start(&self, word: &AtomicU32, entry: extern "C" fn() -> !) -> Result<i32> {
        let (stack, area) = (self.stack.load(Acquire), self.area.load(Acquire) + Self::AREA / 2);
        // SAFETY: stack and area are this big, and nobody else's by the caller's promise.
        unsafe {
            // The thread pointer's own address, where the ABI wants it.
            *(area as *mut usize) = area;
            *((area + 16) as *mut usize) = area;
            task::clone_sidecar(stack + Self::STACK, area, word, entry)
        }
    }
}

/// Marks on a page shared with forked children.
const MARKS: usize = 64;

#[repr(C)]
struct Board {
    uncovered: [AtomicU32; MARKS],
    /// The thread whose last fork has set the mark.
    forker: [AtomicU32; MARKS],
    /// The process that came of it, if that is known.
    child: [AtomicI32; MARKS],
    since_ms: [AtomicU64; MARKS],
}

static BOARD: AtomicPtr<Board> = AtomicPtr::new(ptr::null_mut());
/// The mark of the fork under way.
static MARK: AtomicUsize = AtomicUsize::new(MARKS);
/// The fork for which the sidecar has to rest, by number; 0 for none. And the last number.
static REST: AtomicU32 = AtomicU32::new(0);
static NUMBER: AtomicU32 = AtomicU32::new(0);
/// The sidecar that has answered for the fork under way and rests, by its number; 0 if there is none.
static RESTING: AtomicU32 = AtomicU32::new(0);
/// A child that has not covered itself by then was killed on the way.
const UNCOVERED_MS: u64 = 5_000;

/// Held across one fork; forks of several threads take turns.
static FORKING: AtomicU32 = AtomicU32::new(0);

/// Forks of this process and of those it was forked from, since [`register`].
static FORKS: AtomicU64 = AtomicU64::new(0);

/// How many are started that are killed, one after the other, before it is given up for now.
pub(super) const TRIES: u32 = 40;

/// How often descriptors have come to be shared with a forked process.
pub fn forks() -> u64 {
    register();
    FORKS.load(Acquire)
}

/// Threads that hold a descriptor which must not come to be shared; see [`Passage`].
static PASSING: AtomicU32 = AtomicU32::new(0);

/// The user whom signals to the sidecar must come from: who started it.
static USER: AtomicU32 = AtomicU32::new(u32::MAX);

/// A time in which no fork happens, and signals are blocked. Short, and without waiting for anything.
pub struct Passage {
    mask: Mask,
    sidecar: u32,
}

impl Passage {
    /// `None` while a fork is under way, and where there is no sidecar that the kernel may signal in this process's name.
    pub fn enter() -> Option<Passage> {
        let mask = task::block_signals();
        PASSING.fetch_add(1, SeqCst);
        // From here on leaving is what dropping does.
        let passage = Passage { mask, sidecar: gate().map_or(0, |gate| gate.sidecar.load(Acquire)) };
        let good = FORKING.load(SeqCst) == 0
            && passage.still_holds()
            && task::pid() == PROGRAM.load(Acquire)
            && task::effective_user() == USER.load(Acquire);
        good.then_some(passage)
    }

    /// Pid of the sidecar.
    pub fn sidecar(&self) -> u32 {
        self.sidecar
    }

    /// Is it there still, and not about to go?
    pub fn still_holds(&self) -> bool {
        self.sidecar != 0
            && START.load(SeqCst) == RUNNING
            && gate().is_some_and(|gate| {
                gate.ready.load(Acquire) == 1 && gate.sidecar.load(SeqCst) == self.sidecar
            })
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        PASSING.fetch_sub(1, SeqCst);
        task::restore_signals(self.mask);
    }
}

struct ForkMask(UnsafeCell<Option<Mask>>);
// SAFETY: only touched by the thread that holds FORKING.
unsafe impl Sync for ForkMask {}
static FORK_MASK: ForkMask = ForkMask(UnsafeCell::new(None));

fn gate() -> Option<&'static Gate> {
    // SAFETY: null, or a page that is never unmapped; it holds atomics only.
    unsafe { GATE.load(Acquire).as_ref() }
}

fn board() -> Option<&'static Board> {
    // SAFETY: as in `gate`.
    unsafe { BOARD.load(Acquire).as_ref() }
}

/// Counts sidecars.
static EPOCH: AtomicU32 = AtomicU32::new(0);

/// Which sidecar it is, now.
pub(super) fn epoch() -> u32 {
    EPOCH.load(Acquire)
}

/// Waits while a sidecar is being started. (Not for a change of rights to be over: libc has every thread take part in that, by a
/// signal, and who waits here has signals blocked.)
pub(super) fn wait_started() {
    while START.load(Acquire) == STARTING {
        task::nap_us(100);
    }
}

/// Is the sidecar there and ready?
pub fn alive() -> bool {
    gate().is_some_and(|gate| gate.sidecar.load(Acquire) != 0 && gate.ready.load(Acquire) == 1)
}

/// Is its parent?
fn supervised() -> bool {
    gate().is_some_and(|gate| gate.supervisor.load(Acquire) != 0)
}

/// Where Yama is, the right to hold this program's threads still was that of the sidecar's parent, and is lost if that is killed.
fn allow_orphan() {
    static ALLOWED: AtomicU32 = AtomicU32::new(0);
    let sidecar = gate().map_or(0, |gate| gate.sidecar.load(Acquire));
    if !supervised() && ALLOWED.swap(sidecar, AcqRel) != sidecar {
        task::allow_tracer(sidecar as i32);
    }
}

/// Is there a sidecar, ready or not, or a parent that may start one? (Asked in this order: what is gone starts none.)
fn anybody() -> bool {
    gate().is_some_and(|gate| gate.supervisor.load(SeqCst) != 0 || gate.sidecar.load(SeqCst) != 0)
}

/// Was one ever started, here or in a process that this one was forked from?
pub fn ever_started() -> bool {
    !STATE.load(Acquire).is_null()
}

/// Is the sidecar there, or could it be started? False where it was tried and this kernel or sandbox does not allow it.
pub fn possible() -> bool {
    START.load(Acquire) != UNAVAILABLE
}

/// Makes sure that the sidecar runs. False: do without. Signals must be blocked.
pub fn ensure() -> bool {
    if alive() && supervised() {
        return true;
    }
    let pid = task::pid();
    let _ = PROGRAM.compare_exchange(0, pid, AcqRel, Acquire);
    // A vfork child must not start a sidecar that would serve it instead of its parent.
    if PROGRAM.load(Acquire) != pid {
        return false;
    }
    if present() {
        allow_orphan();
        return true;
    }
    if START.compare_exchange(IDLE, STARTING, AcqRel, Acquire).is_err() {
        return false;
    }
    // Some 40 MiB are what it takes.
    let started = if task::memory_is_limited() { Some(false) } else { start(0) };
    START.store(next_start(started), Release);
    started == Some(true)
}

/// Is the sidecar there? If it was killed and something depends on it, another is now. Signals must be blocked.
pub fn present() -> bool {
    if !alive() && task::pid() == PROGRAM.load(Acquire) {
        // More than once, since the next one may be killed as well; not for ever, since one may always be.
        for _ in 0..TRIES {
            if alive() {
                break;
            }
            let tried = START.load(Acquire) != RUNNING || lost();
            // Another thread may have noticed first. To go on as if nothing depended on anything would be wrong until its sidecar has
            // been at work.
            if !tried || !super::state::any_or_leases() {
                break;
            }
            wait_started();
        }
    }
    alive()
}

/// The same for one who has nothing to say to it, but whom others may have to wait for, or who may wait himself.
pub fn look_after() {
    if super::state::any_or_leases() && !alive() {
        let mask = task::block_signals();
        present();
        task::restore_signals(mask);
    }
}

/// The sidecar is gone though nobody told it to go: its leases are, too. A new one will give everything that is still
/// mapped memory of its own before it does anything else. False: it is too early to try again.
pub fn lost() -> bool {
    // Others may have noticed as well. Whoever comes first looks again when nobody else can start one: another may be at
    // work by now, and two that share one memory and one list of what they hold would destroy each other. (They did,
    // when a thread that had slept through it all took a new sidecar for the dead one.)
    if task::now_ms() < AGAIN_MS.load(Acquire) {
        return false;
    }
    if START.compare_exchange(RUNNING, STARTING, SeqCst, Acquire).is_err() {
        return true;
    }
    // Its parent sees to the next one, if it has not been killed as well, or finds that nothing depends on there being one.
    while !alive() && anybody() {
        task::nap_us(100);
    }
    if alive() {
        START.store(RUNNING, Release);
    } else {
        reap();
        start_again();
    }
    true
}

/// While START says that one is being started: starts a sidecar after one that has gone, if anything depends on it.
fn start_again() {
    let next = if super::state::any_or_leases() { next_start(start(-1)) } else { IDLE };
    START.store(next, Release);
}

/// When one may be started that could not be before.
static AGAIN_MS: AtomicU64 = AtomicU64::new(0);

/// What START is to say after it was tried. While something depends on there being a sidecar, that one runs, even if it is not so: whoever
/// finds that out tries again, though not at every call if it was not somebody who killed it.
fn next_start(started: Option<bool>) -> u32 {
    match started {
        Some(true) => return RUNNING,
        _ if !super::state::any_or_leases() => return UNAVAILABLE,
        Some(false) => AGAIN_MS.store(task::now_ms() + 100, Release),
        None => (),
    }
    RUNNING
}

/// The remains of the last sidecar and its parent, which have left this memory; no wait() of the program sees them. Until they are gone the
/// sidecar may still be closing its files, and the tracer of threads that it held still: the next one could not hold them, and would take
/// that for a debugger's being there. (When it was not waited for long enough, mappings stayed whose leases nobody gave up.)
fn reap() {
    if task::pid() != PROGRAM.load(Acquire) {
        return;
    }
    // Who looks below a dead sidecar's /proc would look below a file of the program's.
    processes::begin();
    let begun = task::now_ms();
    let sidecar = SIDECAR.load(Acquire);
    while !supervisor_is_reaped() || sidecar != 0 && !processes::is_gone(sidecar) {
        if task::now_ms() - begun > 5_000 {
            return;
        }
        task::nap_us(100);
    }
}

/// Is nothing left of the last supervisor? Asked for once only: after that the number may be that of another child.
fn supervisor_is_reaped() -> bool {
    let pid = SUPERVISOR.load(Acquire);
    let gone = pid == 0 || task::trace_poll(pid) == task::Traced::Gone;
    if gone {
        let _ = SUPERVISOR.compare_exchange(pid, 0, AcqRel, Relaxed);
    }
    gone
}

/// Registers what has to happen around fork. Once, outside signal handlers.
pub fn register() {
    static DONE: AtomicU32 = AtomicU32::new(0);
    if DONE.swap(1, AcqRel) == 0 {
        let _ = PROGRAM.compare_exchange(0, task::pid(), AcqRel, Acquire);
        if task::pid() == task::tid() {
            find_end_word();
        }
        // SAFETY: the handlers are safe to call around any fork.
        unsafe { libc::pthread_atfork(Some(before_fork), Some(after_fork_parent), Some(after_fork_child)) };
    }
}

fn find_end_word() {
    let address = task::thread_end_word();
    END_WORD.store(address, Release);
    END_VALUE.store(task::tid() as u32, Release);
}

/// Starts a sidecar and waits until it is ready. `predecessor`: pid of one to take over from, -1 if that one is lost, 0 for a
/// first start. One that is killed before it is seen to be ready is followed by another: it may have been about to take over
/// what nobody guards, or have begun to; or it was ready, and at work for others, who were there first.
/// False: it cannot work here. `None`: somebody kills them all.
fn start(mut predecessor: i32) -> Option<bool> {
    for _ in 0..TRIES {
        let started = start_once(predecessor);
        if started.is_some() {
            return started;
        }
        reap();
        predecessor = -1;
    }
    None
}

/// Prepares the memory, starts the supervisor, which starts the sidecar, and waits until that is ready, or says that it cannot work here.
/// `None`: both are gone without a word.
fn start_once(predecessor: i32) -> Option<bool> {
    // (Two that share one memory would destroy each other: one that will not go is the last.)
    if task::on_valgrind() || !prepare() || anybody() {
        return Some(false);
    }
    let Some(gate) = gate() else { return Some(false) };
    begin_epoch(predecessor);
    USER.store(task::real_user(), Release);
    gate.ready.store(0, Relaxed);
    gate.go.store(0, Relaxed);
    // SAFETY: no other supervisor of this memory is running; `main` keeps the rules.
    let started = unsafe { SUPERVISORS_GROUND.start(&gate.supervisor, supervise::main) };
    let Ok(pid) = started else { return Some(false) };
    SUPERVISOR.store(pid, Release);
    // And its children with it.
    task::allow_tracer(pid);
    gate.go.store(1, Release);
    task::futex_wake(&gate.go);
    let begun = task::now_ms();
    while gate.ready.load(Acquire) == 0 {
        let (supervisor, sidecar) = (gate.supervisor.load(Acquire), gate.sidecar.load(Acquire));
        // The kernel clears these when they are gone. (In this order: the one is not started any more when the other is gone.)
        match (supervisor, sidecar) {
            // Unless it said so last.
            (0, 0) => return (gate.ready.load(Acquire) == 2).then_some(false),
            (0, pid) => task::futex_wait_either(&gate.ready, 0, gate.sidecar.as_ptr() as usize, pid, 100),
            (pid, _) => task::futex_wait_either(&gate.ready, 0, gate.supervisor.as_ptr() as usize, pid, 100),
        }
        if task::now_ms() - begun > 10_000 {
            break;
        }
    }
    Some(gate.ready.load(Acquire) == 1)
}

/// In the supervisor: starts the sidecar.
pub(super) fn start_sidecar(gate: &Gate) -> Result<i32> {
    gate.ready.store(0, Release);
    // SAFETY: no other sidecar of this memory is running; `main` keeps the rules.
    unsafe { SIDECARS_GROUND.start(&gate.sidecar, serve::main) }
}

/// The sidecar that comes next is another, and takes over from this one (see [`start`]).
pub(super) fn begin_epoch(predecessor: i32) {
    PREDECESSOR.store(predecessor, Release);
    EPOCH.fetch_add(1, SeqCst);
}

/// In the supervisor, when its sidecar was killed: is there to be another? (If a thread is about to start one, that waits until both are
/// gone. It may be the first one that was killed, or have been killed for what it does.)
pub(super) fn wants_successor() -> bool {
    START.load(SeqCst) == RUNNING && super::state::any_or_leases()
}

/// In the supervisor: waits until no fork is under way for which a sidecar rests, or rested when it was killed. Not for ever: the forking
/// thread may wait for a lock of stdio's, whose holder waits for the next sidecar. (Then the child sees by the epoch that what it has
/// copies of was not at rest.)
pub(super) fn wait_for_fork() {
    let begun = task::now_ms();
    loop {
        let fork = RESTING.load(SeqCst);
        let waited = task::now_ms() - begun;
        if fork == 0 || waited >= 1_000 {
            return;
        }
        task::futex_wait(&RESTING, fork, 1_000 - waited);
    }
}

/// What was left of the sidecars of programs that were here before, and put this one in their place by exec: children that nobody
/// else waits for, and that would add up in a program that does this again and again.
fn reap_forerunners() {
    let program = task::pid();
    each_thread(program, |tid| {
        each_child(program, tid, |child| {
            if is_supervisor(child) {
                task::reap_clone(child);
            }
            true
        });
        true
    });
}

fn prepare() -> bool {
    const MADV_WIPEONFORK: i32 = 18;
    if GATE.load(Acquire).is_null() {
        reap_forerunners();
        let page = crate::transfer::PAGE;
        let (Ok(gate), Ok(board), Ok(state)) = (
            memory::allocate(page, false),
            memory::allocate(size_of::<Board>().next_multiple_of(page), true),
            memory::allocate(size_of::<State>().next_multiple_of(page), false),
        ) else {
            return false;
        };
        if !SIDECARS_GROUND.prepare() || !SUPERVISORS_GROUND.prepare() {
            return false;
        }
        // SAFETY: the page is fresh and ours.
        if unsafe { memory::advise(gate, page, MADV_WIPEONFORK) }.is_err() {
            return false;
        }
        // Fresh zeroed memory of the right size; all zeroes is a valid State but for the descriptors, and the order of the
        // map, which the sidecar sees to before it uses them.
        STATE.store(state as *mut State, Release);
        BOARD.store(board as *mut Board, Release);
        GATE.store(gate as *mut Gate, Release);
    }
    true
}

/// The sidecar's own view of its gate.
pub(super) fn my_gate() -> Option<&'static Gate> {
    gate()
}

/// The state. For the sidecar, and for a forked child that has none.
///
/// # Safety
/// The caller must be the only one who uses it.
pub(super) unsafe fn state() -> Option<&'static mut State> {
    // SAFETY: null or set up by `prepare`; exclusive by the caller's promise.
    unsafe { STATE.load(Acquire).as_mut() }
}

/// In the sidecar: is there a forked child that does not hold its own leases yet?
pub(super) fn children_uncovered() -> bool {
    let Some(board) = board() else { return false };
    let now = task::now_ms();
    let marks = board.uncovered.iter().zip(&board.since_ms).zip(&board.child);
    marks.into_iter().any(|((mark, since), child)| {
        let child = child.load(Acquire);
        mark.load(Acquire) != 0
            && now.saturating_sub(since.load(Acquire)) < UNCOVERED_MS
            && (child == 0 || !processes::is_gone(child))
    })
}

/// In the sidecar: sets a mark for the fork that is about to happen. False: there is none left.
pub(super) fn set_mark() -> bool {
    let Some(board) = board() else { return false };
    let now = task::now_ms();
    let free = board.uncovered.iter().zip(&board.since_ms).position(|(mark, since)| {
        mark.load(Acquire) == 0 || now.saturating_sub(since.load(Acquire)) >= UNCOVERED_MS
    });
    MARK.store(free.unwrap_or(MARKS), Release);
    let Some((mark, since)) = free.and_then(|i| Some((board.uncovered.get(i)?, board.since_ms.get(i)?)))
    else {
        return false;
    };
    if let Some(child) = free.and_then(|i| board.child.get(i)) {
        child.store(0, Release);
    }
    since.store(now, Release);
    mark.store(1, Release);
    true
}

/// In the sidecar: the fork that is being prepared.
pub(super) fn fork_under_way() -> u32 {
    REST.load(Acquire)
}

/// In the sidecar, after it answered [`Op::Fork`]: touches nothing until that fork is over. (The next one is another,
/// and still has to be answered.)
pub(super) fn rest(fork: u32) {
    while REST.load(Acquire) == fork {
        task::futex_wait(&REST, fork, 5);
        channel::answer_at_rest();
        if !processes::program_lives(PROGRAM.load(Acquire)) {
            return;
        }
    }
}

fn remove_mark() {
    if let Some(mark) = board().and_then(|board| board.uncovered.get(MARK.load(Acquire))) {
        mark.store(0, Release);
    }
}

/// Before a fork.
pub extern "C" fn before_fork() {
    let mask = task::block_signals();
    while FORKING.compare_exchange(0, 1, SeqCst, Acquire).is_err() {
        task::futex_wait(&FORKING, 1, 100);
    }
    // Whoever comes now is turned away.
    while PASSING.load(SeqCst) != 0 {
        task::yield_now();
    }
    FORKS.fetch_add(1, AcqRel);
    // SAFETY: FORKING is held.
    unsafe { *FORK_MASK.0.get() = Some(mask) };
    MARK.store(MARKS, Release);
    wait_started();
    // Even if there is nothing that depends on a lease yet: another thread may be about to change that.
    while present() {
        let epoch = epoch();
        // Another number each time: one that has rested for the last already has to see that this is another.
        let number = NUMBER.load(Relaxed).wrapping_add(1).max(1);
        NUMBER.store(number, Relaxed);
        REST.store(number, Release);
        let answered =
            Call::new(Op::Fork, false).is_some_and(|mut call| call.send() != Some(Reason::Sidecar));
        if answered {
            // If it is killed from now on, its parent waits with the next one until this is 0 again; unless that has begun already.
            RESTING.store(epoch, SeqCst);
            if EPOCH.load(SeqCst) == epoch {
                break;
            }
            end_rest();
        }
        // It was killed; the next one has to be asked, who needs no mark that the last one may have set.
        REST.store(0, Release);
        remove_mark();
    }
    let Some(board) = board() else { return };
    // This thread's earlier forks are none of those that may yet turn out to have failed.
    let forker = task::tid() as u32;
    for slot in &board.forker {
        let _ = slot.compare_exchange(forker, 0, AcqRel, Relaxed);
    }
    if let Some(slot) = board.forker.get(MARK.load(Acquire)) {
        slot.store(forker, Release);
    }
}

/// After [`after_fork_parent`]: what the calling thread's fork came to. The mark would be removed by the child alone, and whoever wanted a
/// file had to wait for [`UNCOVERED_MS`] if there was none, or it was killed before it could.
pub fn forked(child: i32) {
    let (Some(board), forker) = (board(), task::tid() as u32) else { return };
    for (at, slot) in board.forker.iter().enumerate() {
        let (Some(mark), Some(known)) = (board.uncovered.get(at), board.child.get(at)) else { break };
        if slot.load(Acquire) != forker {
            continue;
        }
        known.store(child.max(0), Release);
        if slot.compare_exchange(forker, 0, AcqRel, Relaxed).is_ok() && child < 0 {
            mark.store(0, Release);
            channel::ring();
        }
    }
}

fn end_rest() {
    RESTING.store(0, SeqCst);
    task::futex_wake(&RESTING);
}

/// After a fork, in the parent.
pub extern "C" fn after_fork_parent() {
    end_rest();
    REST.store(0, Release);
    task::futex_wake(&REST);
    end_fork();
}

/// After a fork, in the child.
pub extern "C" fn after_fork_child() {
    // Else there was none, or it was killed while it rested; and what this is a copy of may have been changed by another in the middle of it.
    let rested = RESTING.load(Acquire) == epoch() && START.load(Acquire) == RUNNING;
    let predecessor = SIDECAR.swap(0, AcqRel);
    RESTING.store(0, Release);
    REST.store(0, Release);
    PROGRAM.store(task::pid(), Release);
    find_end_word();
    channel::reset();
    super::forgotten::reset();
    super::announced::reset();
    processes::begin();
    PASSING.store(0, Release);
    COUNTERS.reset();
    START.store(IDLE, Release);
    if super::state::LIVE.load(Acquire) > 0 || super::announced::pending() > 0 {
        START.store(STARTING, Release);
        let covered = start(if rested { predecessor } else { -1 }) == Some(true);
        START.store(if covered { RUNNING } else { UNAVAILABLE }, Release);
        if !covered {
            // SAFETY: there is no sidecar, and this is the only thread.
            if let Some(state) = unsafe { state() } {
                state.materialise_alone(rested);
            }
        }
    } else {
        crate::glance::GLANCE.writers.store(0, Release);
    }
    remove_mark();
    end_fork();
}

fn end_fork() {
    // SAFETY: FORKING is held, by this thread or by the one it was copied from.
    let mask = unsafe { (*FORK_MASK.0.get()).take() };
    FORKING.store(0, Release);
    task::futex_wake(&FORKING);
    if let Some(mask) = mask {
        task::restore_signals(mask);
    }
}

/// Writes the statistics of a process that has no sidecar: mostly one that declined everything before it needed one. None
/// is started for that, and nothing is waited for.
fn report_alone() {
    // A limit would end the program with SIGXFSZ where it has none to fear.
    if !COUNTERS.any() || !stats_wanted() || file::size_limit() != libc::RLIM_INFINITY {
        return;
    }
    let mask = task::block_signals();
    let fd = open_stats();
    if fd >= 0 {
        write_stats(fd, task::pid());
        file::close(fd);
    }
    task::restore_signals(mask);
}

/// Writes the line of statistics.
pub(super) fn write_stats(fd: i32, pid: i32) {
    let mut line = [0; stats::LINE];
    let length = stats::take_line(pid, &mut line);
    let _ = file::write(fd, line.get(..length).unwrap_or(&[]));
}

/// Has the sidecar, if there is one, give everything memory of its own, and go; none is started until [`retired`], which is
/// to be called if this says true.
pub fn retire() -> bool {
    if task::pid() != PROGRAM.load(Acquire) {
        return false;
    }
    // One that is just being started has the old rights, too. (Whoever starts it has signals blocked: it is not the thread that
    // waits here.)
    let running = loop {
        let now = START.load(Acquire);
        let next = match now {
            STARTING => {
                wait_started();
                continue;
            }
            IDLE | RUNNING => RETIRED,
            UNAVAILABLE => {
                report_alone();
                return false;
            }
            others => others + 1,
        };
        if START.compare_exchange(now, next, SeqCst, Acquire).is_ok() {
            break now == RUNNING;
        }
    };
    let reported = if running { send_away(Op::Retire) } else { wait_gone() };
    if !reported {
        // Afterwards the program may have lost the right to.
        report_alone();
    }
    true
}

/// Waits until the sidecar and its parent are gone, whom another thread has told to go. False: there was none.
fn wait_gone() -> bool {
    let begun = task::now_ms();
    let there = anybody();
    while anybody() && task::now_ms() - begun < 2_000 {
        task::nap_us(100);
    }
    there
}

/// Has the sidecar do this and go, and its parent, and waits until both are gone. False: it was killed before it could.
fn send_away(how: Op) -> bool {
    let mut done = false;
    let mut asked_ms = task::now_ms();
    while anybody() && task::now_ms() - asked_ms < 2_000 {
        // More than once if it is killed, and another was being started when START began to say that none is to be.
        if !done && let Some(mut call) = Call::new(how, false) {
            done = call.send().is_none();
            asked_ms = task::now_ms();
        } else {
            task::nap_us(100);
        }
    }
    // What remains is no child that a wait() of the program sees. It is a process until it is gone.
    while !supervisor_is_reaped() && task::now_ms() - asked_ms < 2_000 {
        task::nap_us(100);
    }
    done
}

/// Another program is about to take the place of this one, if nothing prevents it: has the statistics written and the sidecar go,
/// after giving up write leases. Other leases are kept alive by their mappings, and both go with this program's memory. No
/// sidecar is started until [`retired`], which is to be called if this says true and exec fails.
pub fn leave() -> bool {
    go(Op::Leave)
}

/// The process is about to end in an orderly way: has the statistics written and the sidecar go, which would keep its memory, and all that
/// goes with it (mappings, locks, the executable, shared memory), after the parent was told of the end. No other is started.
pub fn finish() {
    go(Op::End);
}

fn go(how: Op) -> bool {
    if task::pid() != PROGRAM.load(Acquire) {
        return false;
    }
    let mask = task::block_signals();
    let left = loop {
        let now = START.load(Acquire);
        match now {
            STARTING => wait_started(),
            // Killed; what it has left behind on descriptions of the program's is the next one's to tidy up.
            RUNNING if !alive() && lost() => (),
            IDLE | RUNNING => {
                if START.compare_exchange(now, RETIRED, SeqCst, Acquire).is_ok() {
                    break Some(now == RUNNING);
                }
            }
            // Another thread's, and not ours to end.
            _ => break None,
        }
    };
    if left != Some(true) || !send_away(how) {
        report_alone();
    }
    task::restore_signals(mask);
    left.is_some()
}

/// After [`retire`] or [`leave`]: another sidecar may be started, with the rights that the process has now; and is at once if
/// anything depends on one.
pub fn retired() {
    let mask = task::block_signals();
    let less = |now: u32| Some(if now > RETIRED { now - 1 } else { STARTING });
    if START.fetch_update(AcqRel, Acquire, less) == Ok(RETIRED) {
        start_again();
    }
    task::restore_signals(mask);
}

/// Where statistics go: a path, ended by zero, empty for nowhere.
pub(super) struct StatsPath(UnsafeCell<[u8; 4096]>);
// SAFETY: written once by `set_stats_path` before any sidecar exists, read by sidecars.
unsafe impl Sync for StatsPath {}
static STATS_PATH: StatsPath = StatsPath(UnsafeCell::new([0; 4096]));

/// Sets where statistics go. Before the first transfer.
pub fn set_stats_path(path: &[u8]) {
    if path.len() < 4096 && START.load(Acquire) == IDLE {
        // SAFETY: no sidecar is there to read it yet, and the drop-in's constructor is the only caller.
        unsafe {
            if let Some(room) = (*STATS_PATH.0.get()).get_mut(..path.len()) {
                room.copy_from_slice(path);
            }
        }
    }
}

fn stats_path() -> Option<&'static core::ffi::CStr> {
    // SAFETY: nobody writes it any more.
    let path = unsafe { &*STATS_PATH.0.get() };
    core::ffi::CStr::from_bytes_until_nul(path).ok().filter(|path| !path.is_empty())
}

fn stats_wanted() -> bool {
    stats_path().is_some()
}

/// Opens the statistics file, and holds it locked so that a reader can tell when the last sidecar is done. Waits for nobody: not
/// for a reader who has begun, who will do without, nor for the other end of a pipe.
pub(super) fn open_stats() -> i32 {
    let Some(path) = stats_path() else { return -1 };
    let flags = libc::O_WRONLY | libc::O_APPEND | libc::O_CREAT | libc::O_CLOEXEC | libc::O_NONBLOCK;
    let Ok(fd) = file::open(path, flags, 0o644) else { return -1 };
    let _ = file::flock(fd, libc::LOCK_SH | libc::LOCK_NB);
    fd
}
