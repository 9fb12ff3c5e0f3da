//! Starting the sidecar, and sending it away.
#![allow(unsafe_code)] // Sets up memory for a process that shares it.

use crate::client::fork;
use crate::client::report::report_alone;
use crate::helper::fault;
use crate::helper::processes::{self, each_child, each_thread, is_supervisor};
use crate::helper::serve;
use crate::helper::state::State;
use crate::shared::channel::{Call, Op};
use crate::supervisor;
use crate::transfer::PAGE;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering::*};
use elision_sys::memory;
use elision_sys::raw::Result;
use elision_sys::task;

/// What must vanish at fork, on a page that the kernel wipes then.
#[repr(C)]
pub(crate) struct Gate {
    /// Pid of the sidecar; the kernel stores 0 and wakes waiters when it is gone.
    pub sidecar: AtomicU32,
    /// The same of its parent, which starts another when it is killed.
    pub supervisor: AtomicU32,
    /// 0 starting, 1 ready, 2 cannot work here.
    pub ready: AtomicU32,
    /// 1 when the sidecar may begin (a tracer has been allowed by then).
    pub go: AtomicU32,
    /// What no other memory has here: see [`shares_memory`].
    cookie: [AtomicU64; 2],
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
pub(crate) static PROGRAM: AtomicI32 = AtomicI32::new(0);
/// Where the kernel stores 0 when that process's main thread is gone, and what is there until then. (Never read directly: the program may
/// give that memory back then, as libc does with the stack of a detached thread that has forked and ended.)
pub(crate) static END_WORD: AtomicUsize = AtomicUsize::new(0);
pub(crate) static END_VALUE: AtomicU32 = AtomicU32::new(0);
/// The sidecar whose leases a new one takes over, or 0.
pub(crate) static PREDECESSOR: AtomicI32 = AtomicI32::new(0);
/// A sidecar has made every system call that is made later, here or in the program's threads, and no filter has killed it for that. Until
/// then the threads make as few as they can (docs/ENTRANCES.md has a list).
pub(crate) static HARMLESS: AtomicBool = AtomicBool::new(false);
/// The last sidecar, and the last child of the program that was a sidecar's parent.
pub(crate) static SIDECAR: AtomicI32 = AtomicI32::new(0);
static SUPERVISOR: AtomicI32 = AtomicI32::new(0);

/// What a process stands on that shares the program's memory.
struct Ground {
    stack: AtomicUsize,
    /// The thread pointer.
    pointer: AtomicUsize,
}

impl Ground {
    const STACK: usize = 256 << 10;
    /// What is there in place of libc's area: a page that the thread pointer points to, and below it, where thread-local storage would be,
    /// nothing that can be touched. A panic touches it first of all, and so ends there, before it takes a lock that the program would
    /// find left.
    const AREA: usize = 256 << 10;

    const fn new() -> Self {
        Ground { stack: AtomicUsize::new(0), pointer: AtomicUsize::new(0) }
    }

    fn prepare(&self) -> bool {
        let (Ok(stack), Ok(area)) = (memory::allocate(Self::STACK, false), memory::reserve(Self::AREA))
        else {
            return false;
        };
        let pointer = area + Self::AREA - PAGE;
        // (Where a panic is to say what it is about, it needs some.)
        let usable = if fault::watched() { area } else { pointer };
        self.stack.store(stack, Release);
        self.pointer.store(pointer, Release);
        // SAFETY: reserved just now.
        unsafe { memory::protect(usable, area + Self::AREA - usable, libc::PROT_READ | libc::PROT_WRITE) }
            .is_ok()
    }

    /// Starts a process that has its pid in `word` while it lives.
    ///
    /// # Safety
    /// No other process may be on this ground; `entry` keeps the rules of the module.
    unsafe fn start(&self, word: &AtomicU32, entry: extern "C" fn() -> !) -> Result<i32> {
        let (stack, pointer) = (self.stack.load(Acquire), self.pointer.load(Acquire));
        // SAFETY: the stack is this big, there is a page behind the pointer, and both are nobody else's by the caller's promise.
        unsafe {
            // The thread pointer's own address, where the ABI wants it.
            *(pointer as *mut usize) = pointer;
            *((pointer + 16) as *mut usize) = pointer;
            task::clone_sidecar(stack + Self::STACK, pointer, word, entry)
        }
    }
}

/// How many are started that are killed, one after the other, before it is given up for now.
pub(crate) const TRIES: u32 = 40;

/// The gate, once it is prepared.
pub(crate) fn gate() -> Option<&'static Gate> {
    // SAFETY: null, or a page that is never unmapped; it holds atomics only.
    unsafe { GATE.load(Acquire).as_ref() }
}

/// Counts sidecars.
static EPOCH: AtomicU32 = AtomicU32::new(0);

/// Which sidecar it is, now.
pub(crate) fn epoch() -> u32 {
    EPOCH.load(SeqCst)
}

/// Waits while a sidecar is being started. (Not for a change of rights to be over: libc has every thread take part in that, by a
/// signal, and who waits here has signals blocked.)
pub(crate) fn wait_started() {
    while START.load(Acquire) == STARTING {
        task::nap_us(100);
    }
}

/// May every system call that the library needs be made?
pub fn harmless() -> bool {
    HARMLESS.load(Acquire)
}

/// Is the sidecar there and ready?
pub fn alive() -> bool {
    gate().is_some_and(|gate| gate.sidecar.load(Acquire) != 0 && gate.ready.load(Acquire) == 1)
}

/// Its pid, or 0.
pub(crate) fn sidecar() -> u32 {
    gate().map_or(0, |gate| gate.sidecar.load(SeqCst))
}

/// Is it neither about to come nor to go?
pub(crate) fn running() -> bool {
    START.load(SeqCst) == RUNNING
}

/// Was one ever asked for?
pub(crate) fn begun() -> bool {
    START.load(Acquire) != IDLE
}

/// In the sidecar, or its parent: does process `pid` use the memory of the caller? (Not after exec. In a forked child the page is wiped. And
/// whose memory is another, and may not be read, is refused; one's own is read without a right to it.)
pub(crate) fn shares_memory(pid: i32) -> bool {
    gate().is_some_and(|gate| {
        let cookie = gate.cookie.each_ref().map(|word| word.load(Acquire));
        task::peek_at(pid, gate.cookie.as_ptr() as usize) == Ok(cookie)
    })
}

/// Is the calling process the sidecar, or its parent?
pub(crate) fn is_helper() -> bool {
    [sidecar(), supervisor()].contains(&(task::pid() as u32))
}

/// The pid of its parent, or 0.
pub(crate) fn supervisor() -> u32 {
    gate().map_or(0, |gate| gate.supervisor.load(SeqCst))
}

/// Where Yama is, the right to hold this program's threads still was that of the sidecar's parent, and is lost if that is killed.
fn allow_orphan() {
    static ALLOWED: AtomicU32 = AtomicU32::new(0);
    let sidecar = sidecar();
    if supervisor() == 0 && ALLOWED.swap(sidecar, AcqRel) != sidecar {
        task::allow_tracer(sidecar as i32);
    }
}

/// The sidecar has not answered for a while. If it or its parent was stopped (SIGSTOP), it goes on now. A signal that is no harm otherwise.
pub(crate) fn have_go_on() {
    for pid in [supervisor(), sidecar()].into_iter().filter(|&pid| pid != 0) {
        let _ = task::send_signal(pid as i32, libc::SIGCONT);
    }
}

/// A sidecar or a parent that has done nothing for so long, though it was needed, is killed.
pub(crate) const IDLE_MS: u64 = 60_000;

/// The sidecar does nothing any more, and its parent neither: another is to take over.
pub(crate) fn kill_both() {
    for pid in [supervisor(), sidecar()].into_iter().filter(|&pid| pid != 0) {
        let _ = task::send_signal(pid as i32, libc::SIGKILL);
    }
}

/// Is there a sidecar, ready or not, or a parent that may start one? (Asked in this order: what is gone starts none.)
fn anybody() -> bool {
    supervisor() != 0 || sidecar() != 0
}

/// Waits until the sidecar is ready, or cannot be; or for a little while: both may be killed without a word.
fn wait_for_word() {
    let Some(gate) = gate() else { return };
    task::futex_wait(&gate.ready, gate.ready.load(Acquire), 10);
}

/// Waits until the next of them is gone, or for a little while: the kernel wakes one of those who wait.
fn wait_for_end() {
    let Some(gate) = gate() else { return };
    let there = |word: &&AtomicU32| word.load(Acquire) != 0;
    if let Some(word) = [&gate.supervisor, &gate.sidecar].into_iter().find(there) {
        let pid = word.load(Acquire);
        if pid != 0 {
            task::futex_wait_end(word, pid, 10);
        }
    }
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
    if alive() && supervisor() != 0 {
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
    // More than once, since the next one may be killed as well; not for ever, since one may always be.
    for _ in 0..TRIES {
        // Asked once each time: one that was killed between two questions was neither there nor missed, and a file was cut off for it.
        if alive() {
            return true;
        }
        if task::pid() != PROGRAM.load(Acquire) {
            return false;
        }
        let tried = START.load(Acquire) != RUNNING || lost();
        // Another thread may have noticed first. To go on as if nothing depended on anything would be wrong until its sidecar has
        // been at work.
        if !tried || !crate::helper::state::any_or_leases() {
            break;
        }
        wait_started();
    }
    alive()
}

/// The same for a call of the program that says nothing to the sidecar, but in which the kernel waits for it: also if it was stopped.
pub fn look_after() {
    if !crate::helper::state::any_or_leases() {
        return;
    }
    if alive() {
        return have_go_on();
    }
    let mask = task::block_signals();
    present();
    task::restore_signals(mask);
}

/// The sidecar is gone though nobody told it to go: its leases are, too. A new one will give everything that is still
/// mapped memory of its own before it does anything else. False: it is too early to try again.
fn lost() -> bool {
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
    let begun = task::now_ms();
    while !alive() && anybody() {
        wait_for_word();
        have_go_on();
        if task::ms_since(begun) > IDLE_MS {
            kill_both();
        }
    }
    if alive() {
        START.store(RUNNING, Release);
    } else {
        reap();
        start_again();
    }
    true
}

/// While START says that one is being started: starts a sidecar after one that has gone, if anything depends on it. Where that cannot be
/// done, this thread does what the sidecar would do first.
fn start_again() {
    let mut next = IDLE;
    if crate::helper::state::any_or_leases() {
        let started = start(-1);
        if started == Some(false) && !anybody() {
            // SAFETY: no sidecar is there, and START keeps other threads from starting one, or from coming here.
            if let Some(state) = unsafe { state() } {
                state.take_over_alone();
            }
        } else {
            next = next_start(started);
        }
    }
    START.store(next, Release);
}

/// When one may be started that could not be before.
static AGAIN_MS: AtomicU64 = AtomicU64::new(0);

/// What START is to say after it was tried. While something depends on there being a sidecar, that one runs, even if it is not so: whoever
/// finds that out tries again, though not at every call if it was not somebody who killed it.
fn next_start(started: Option<bool>) -> u32 {
    match started {
        Some(true) => return RUNNING,
        _ if !crate::helper::state::any_or_leases() => return UNAVAILABLE,
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
        if task::ms_since(begun) > 5_000 {
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
    // (Files ask each time: to write here would have their threads take the line from each other.)
    if DONE.load(Acquire) == 0 && DONE.swap(1, AcqRel) == 0 {
        let _ = PROGRAM.compare_exchange(0, task::pid(), AcqRel, Acquire);
        if task::pid() == task::tid() {
            find_end_word();
        }
        // SAFETY: the handlers are safe to call around any fork.
        unsafe {
            libc::pthread_atfork(
                Some(fork::before_fork),
                Some(fork::after_fork_parent),
                Some(fork::after_fork_child),
            )
        };
    }
}

/// In a forked child, which is the program now and has no sidecar yet. The pid of its parent's.
pub(crate) fn begin_in_child() -> i32 {
    PROGRAM.store(task::pid(), Release);
    find_end_word();
    START.store(IDLE, Release);
    SIDECAR.swap(0, AcqRel)
}

/// The same child starts one; see [`start`].
pub(crate) fn start_in_child(predecessor: i32) -> bool {
    START.store(STARTING, Release);
    let started = start(predecessor) == Some(true);
    START.store(if started { RUNNING } else { UNAVAILABLE }, Release);
    started
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
        if started == Some(true) || !HARMLESS.load(Acquire) {
            return started;
        }
        // A parent that could not start its sidecar would stay, as a process that nobody waits for.
        reap();
        if started.is_some() {
            return started;
        }
        predecessor = -1;
    }
    None
}

/// For how often a word of the sidecar is waited for: some ten seconds. (No clock is looked at before that is known to be harmless.)
const TIMES: u32 = 1_000;

/// Prepares the memory, starts the supervisor, which starts the sidecar, and waits until that is ready, or says that it cannot work here.
/// `None`: both are gone without a word.
fn start_once(predecessor: i32) -> Option<bool> {
    // (Two that share one memory would destroy each other: one that will not go is the last.)
    if task::on_valgrind() || !prepare() || anybody() {
        return Some(false);
    }
    let Some(gate) = gate() else { return Some(false) };
    begin_epoch(predecessor);
    gate.ready.store(0, Relaxed);
    gate.go.store(0, Relaxed);
    // SAFETY: no other supervisor of this memory is running; `main` keeps the rules.
    let started = unsafe { SUPERVISORS_GROUND.start(&gate.supervisor, supervisor::main) };
    let Ok(pid) = started else { return Some(false) };
    SUPERVISOR.store(pid, Release);
    // And its children with it.
    task::allow_tracer(pid);
    gate.go.store(1, Release);
    task::futex_wake(&gate.go);
    let harmless = HARMLESS.load(Acquire);
    for _ in 0..TIMES {
        if gate.ready.load(Acquire) != 0 {
            break;
        }
        if !anybody() {
            // Unless it said so last. (Or has died of a call that we must not make, either, to ask of what.)
            return (gate.ready.load(Acquire) == 2 || !HARMLESS.load(Acquire)).then_some(false);
        }
        wait_for_word();
    }
    let said = gate.ready.load(Acquire);
    let ready = said == 1;
    if said == 0 && predecessor == 0 {
        // Nobody would send it away any more. (One that has said that it cannot work here goes by itself, and a filter may kill us for this.)
        kill_both();
    }
    if ready && !harmless {
        reap_forerunners();
    }
    Some(ready)
}

/// In the supervisor: what is to be known of this memory, and of who uses it.
pub(crate) fn mark(gate: &Gate) {
    for (word, value) in gate.cookie.iter().zip([task::now_ns(), task::pid() as u64]) {
        word.store(value, Release);
    }
}

/// In the supervisor: starts the sidecar.
pub(crate) fn start_sidecar(gate: &Gate) -> Result<i32> {
    gate.ready.store(0, Release);
    // SAFETY: no other sidecar of this memory is running; `main` keeps the rules.
    unsafe { SIDECARS_GROUND.start(&gate.sidecar, serve::main) }
}

/// The sidecar that comes next is another, and takes over from this one (see [`start`]).
pub(crate) fn begin_epoch(predecessor: i32) {
    PREDECESSOR.store(predecessor, Release);
    EPOCH.fetch_add(1, SeqCst);
}

/// In the supervisor, when its sidecar was killed: is there to be another? (If a thread is about to start one, that waits until both are
/// gone. It may be the first one that was killed, or have been killed for what it does.)
pub(crate) fn wants_successor() -> bool {
    running() && crate::helper::state::any_or_leases()
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
        let (Ok(gate), Ok(state)) = (
            memory::allocate(PAGE, false),
            memory::allocate(size_of::<State>().next_multiple_of(PAGE), false),
        ) else {
            return false;
        };
        if !fork::prepare() || !SIDECARS_GROUND.prepare() || !SUPERVISORS_GROUND.prepare() {
            return false;
        }
        // SAFETY: the page is fresh and ours.
        if unsafe { memory::advise(gate, PAGE, MADV_WIPEONFORK) }.is_err() {
            return false;
        }
        // Fresh zeroed memory of the right size; all zeroes is a valid State but for the descriptors, and the order of the
        // map, which the sidecar sees to before it uses them.
        STATE.store(state as *mut State, Release);
        GATE.store(gate as *mut Gate, Release);
    }
    true
}

/// The state. For the sidecar, and for a forked child that has none.
///
/// # Safety
/// The caller must be the only one who uses it.
pub(crate) unsafe fn state() -> Option<&'static mut State> {
    // SAFETY: null or set up by `prepare`; exclusive by the caller's promise.
    unsafe { STATE.load(Acquire).as_mut() }
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

/// Waits until the sidecar and its parent are gone, whom another thread has told to go, or kills. False: there was none.
fn wait_gone() -> bool {
    let there = anybody();
    // However long that takes: what they still do, they do with the old rights.
    while anybody() {
        wait_for_end();
    }
    there
}

/// How long one that was told to go, or is only about to come, is waited for.
const PATIENCE_MS: u64 = 2_000;

/// Has the sidecar do this and go, and its parent, and waits until both are gone. False: it was killed before it could.
fn send_away(how: Op) -> bool {
    let mut done = false;
    let mut asked_ms = task::now_ms();
    // Rights are not changed while there is one that has the old ones. (One that is killed does nothing more, even if its end takes longer.)
    let kills = how == Op::Retire;
    while anybody() && task::ms_since(asked_ms) < PATIENCE_MS << u32::from(kills) {
        if kills && task::ms_since(asked_ms) >= PATIENCE_MS {
            kill_both();
        }
        have_go_on();
        // More than once if it is killed, and another was being started when START began to say that none is to be.
        if !done && let Some(mut call) = Call::new(how, false) {
            done = call.send().is_none();
            if done {
                asked_ms = task::now_ms();
            }
        } else {
            wait_for_end();
        }
    }
    // What remains is no child that a wait() of the program sees. It is a process until it is gone; it has little left to do.
    let mut round = 0;
    while !supervisor_is_reaped() && task::ms_since(asked_ms) < PATIENCE_MS {
        task::give_way(round);
        round += 1;
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
