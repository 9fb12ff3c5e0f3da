//! Processes, threads, signals and futexes.
#![allow(unsafe_code)] // Starting a process that shares memory, and stopping threads, are raw by nature.

use crate::raw::{Errno, Result, syscall};
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// getpid(2), always asked: a forked child must not see its parent's answer.
pub fn pid() -> i32 {
    // SAFETY: no arguments.
    unsafe { syscall(libc::SYS_getpid, [0; 6]) }.unwrap_or(0) as i32
}

/// Is this program run by Valgrind? It simulates one address space, knows of no process that shares it, and ends a program that makes one.
/// The question is that of its "client request mechanism": instructions that do nothing, and an answer where they are simulated.
pub fn on_valgrind() -> bool {
    const RUNNING_ON_VALGRIND: usize = 0x1001;
    let request = [RUNNING_ON_VALGRIND, 0, 0, 0, 0, 0];
    let mut answer = 0usize;
    // SAFETY: rdi is turned by 128 bits in all, and is what it was; the exchange is of a register with itself. Simulated, the request is
    // read, and rdx written.
    unsafe {
        core::arch::asm!(
            "rol rdi, 3",
            "rol rdi, 13",
            "rol rdi, 61",
            "rol rdi, 51",
            "xchg rbx, rbx",
            in("rax") &raw const request,
            inout("rdx") answer,
            options(nostack),
        );
    }
    answer != 0
}

/// Is there a limit on this process's address space or data? Whatever is mapped besides what the program maps counts against it.
pub fn memory_is_limited() -> bool {
    [libc::RLIMIT_AS, libc::RLIMIT_DATA].into_iter().any(|which| {
        let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
        let arguments = [0, which as usize, 0, (&raw mut limit) as usize, 0, 0];
        // SAFETY: the kernel fills the local.
        unsafe { syscall(libc::SYS_prlimit64, arguments) }.is_err() || limit.rlim_cur != libc::RLIM64_INFINITY
    })
}

/// gettid(2).
pub fn tid() -> i32 {
    // SAFETY: no arguments.
    unsafe { syscall(libc::SYS_gettid, [0; 6]) }.unwrap_or(0) as i32
}

/// Waits until `word` is no longer `value`, somebody wakes it, or the time is over. Wakes spuriously.
pub fn futex_wait(word: &AtomicU32, value: u32, timeout_ms: u64) {
    wait_on(word, value, timeout_ms, libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG);
}

/// The same for a word that the kernel clears when a thread is gone. (It wakes one waiter.)
pub fn futex_wait_end(word: &AtomicU32, value: u32, timeout_ms: u64) {
    wait_on(word, value, timeout_ms, libc::FUTEX_WAIT);
}

fn wait_on(word: &AtomicU32, value: u32, timeout_ms: u64, operation: i32) {
    let timeout = libc::timespec {
        tv_sec: (timeout_ms / 1000) as i64,
        tv_nsec: (timeout_ms % 1000) as i64 * 1_000_000,
    };
    // SAFETY: both pointers are borrowed for the call.
    let _ = unsafe {
        syscall(
            libc::SYS_futex,
            [word.as_ptr() as usize, operation as usize, value as usize, (&raw const timeout) as usize, 0, 0],
        )
    };
}

/// Wakes whoever waits on `word` within this memory.
pub fn futex_wake(word: &AtomicU32) {
    let operation = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: only the address counts.
    let _ = unsafe {
        syscall(libc::SYS_futex, [word.as_ptr() as usize, operation as usize, i32::MAX as usize, 0, 0, 0])
    };
}

/// Wakes everybody on a word that is not ours by its address, as the kernel does for an exiting thread.
pub fn futex_wake_shared(address: usize) {
    // SAFETY: only the address counts; one that is not mapped gives EFAULT.
    let _ =
        unsafe { syscall(libc::SYS_futex, [address, libc::FUTEX_WAKE as usize, i32::MAX as usize, 0, 0, 0]) };
}

/// Waits for either of two words: one of ours, and one (at an address, shared form) that the kernel clears when a
/// thread is gone. Falls back on waiting for ours alone where the kernel lacks futex_waitv (5.16). True: the other has another value by
/// now, or is not there any more.
pub fn futex_wait_either(
    ours: &AtomicU32,
    value: u32,
    other: usize,
    other_value: u32,
    timeout_ms: u64,
) -> bool {
    #[repr(C)]
    struct Waiter {
        value: u64,
        address: u64,
        flags: u32,
        reserved: u32,
    }
    const SIZE_U32: u32 = 2;
    const PRIVATE: u32 = 128;
    if other == 0 {
        futex_wait(ours, value, timeout_ms.min(200));
        return false;
    }
    let waiters = [
        Waiter { value: value as u64, address: ours.as_ptr() as u64, flags: SIZE_U32 | PRIVATE, reserved: 0 },
        Waiter { value: other_value as u64, address: other as u64, flags: SIZE_U32, reserved: 0 },
    ];
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: pointers to locals. The timeout is absolute, on CLOCK_MONOTONIC.
    let result = unsafe {
        let _ = syscall(
            libc::SYS_clock_gettime,
            [libc::CLOCK_MONOTONIC as usize, (&raw mut now) as usize, 0, 0, 0, 0],
        );
        now.tv_nsec += (timeout_ms % 1000) as i64 * 1_000_000;
        now.tv_sec += (timeout_ms / 1000) as i64 + now.tv_nsec / 1_000_000_000;
        now.tv_nsec %= 1_000_000_000;
        syscall(
            libc::SYS_futex_waitv,
            [waiters.as_ptr() as usize, 2, 0, (&raw const now) as usize, libc::CLOCK_MONOTONIC as usize, 0],
        )
    };
    match result {
        Err(Errno(libc::EFAULT)) => true,
        Err(Errno(libc::EAGAIN)) => ours.load(SeqCst) == value,
        Err(Errno(libc::ENOSYS | libc::EPERM | libc::EINVAL)) => {
            futex_wait(ours, value, timeout_ms.min(200));
            !holds(other, other_value)
        }
        Ok(1) => !holds(other, other_value),
        _ => false,
    }
}

/// Has the word at an address of the program's this value? Not if it cannot be read.
fn holds(addr: usize, value: u32) -> bool {
    let mut word = 0u32;
    // SAFETY: the local is ours.
    let copied = unsafe { copy_own(addr, (&raw mut word) as usize, size_of::<u32>()) };
    copied == Ok(size_of::<u32>()) && word == value
}

/// A signal mask as the kernel keeps it.
#[derive(Clone, Copy)]
pub struct Mask(u64);

/// Blocks every signal, libc's own included, and says what was blocked before.
pub fn block_signals() -> Mask {
    let (all, mut before) = (u64::MAX, 0u64);
    set_mask(libc::SIG_BLOCK, &all, Some(&mut before));
    Mask(before)
}

/// Puts back what [`block_signals`] gave.
pub fn restore_signals(mask: Mask) {
    set_mask(libc::SIG_SETMASK, &mask.0, None);
}

/// Blocks everything but these.
pub fn block_all_but(signals: &[i32]) {
    let open = signals.iter().fold(0, |open, signal| open | 1u64 << (signal - 1));
    set_mask(libc::SIG_SETMASK, &!open, None);
}

/// Has SIGALRM sent once, so many milliseconds from now; 0 calls that off.
pub fn ring_in_ms(ms: u64) {
    let value = libc::timeval { tv_sec: 0, tv_usec: ms as i64 * 1000 };
    let never = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let timer = libc::itimerval { it_interval: never, it_value: value };
    // SAFETY: a local struct.
    let _ = unsafe {
        syscall(libc::SYS_setitimer, [libc::ITIMER_REAL as usize, (&raw const timer) as usize, 0, 0, 0, 0])
    };
}

fn set_mask(how: i32, set: &u64, old: Option<&mut u64>) {
    let old = old.map_or(0, |old| old as *mut u64 as usize);
    // SAFETY: kernel signal sets are eight bytes; both pointers outlive the call.
    let _ = unsafe {
        syscall(libc::SYS_rt_sigprocmask, [how as usize, set as *const u64 as usize, old, 8, 0, 0])
    };
}

/// What a handler is told of its signal: the first members, and those that a signal of a file has. (The libc crate has no
/// names for the latter.)
#[repr(C)]
pub struct SignalInfo {
    signal: i32,
    errno: i32,
    code: i32,
    padding: i32,
    band: i64,
    fd: i32,
}

impl SignalInfo {
    /// The descriptor that something has happened to. `None`: a process has sent it, and it says nothing of the kind.
    pub fn descriptor(&self) -> Option<i32> {
        (self.code > 0).then_some(self.fd)
    }
}

/// The sidecar's handler of `signal`. The kernel's struct is spelled out because libc's wrapper may not be called on a
/// thread-local area that libc did not make.
///
/// # Safety
/// `handler` must do only what is safe at any point of the sidecar.
pub unsafe fn handle_signal(signal: i32, handler: extern "C" fn(i32, &SignalInfo)) -> Result<()> {
    #[repr(C)]
    struct Action {
        handler: usize,
        flags: usize,
        restorer: usize,
        mask: u64,
    }
    const SA_SIGINFO: usize = 4;
    const SA_RESTORER: usize = 0x0400_0000;
    let action = Action {
        handler: handler as *const () as usize,
        flags: SA_SIGINFO | SA_RESTORER,
        restorer: restorer(),
        mask: u64::MAX,
    };
    // SAFETY: the struct lives for the call; the handler is the caller's promise.
    unsafe { syscall(libc::SYS_rt_sigaction, [signal as usize, (&raw const action) as usize, 0, 8, 0, 0])? };
    Ok(())
}

fn restorer() -> usize {
    unsafe extern "C" {
        fn elision_signal_restorer();
    }
    elision_signal_restorer as *const () as usize
}

core::arch::global_asm!(
    ".hidden elision_signal_restorer",
    ".globl elision_signal_restorer",
    "elision_signal_restorer:",
    "mov eax, 15", // rt_sigreturn
    "syscall",
    // clone(flags, stack, tid word, entry, thread pointer): the parent gets the child's pid; the child runs
    // `entry` on its own stack and must not return.
    ".hidden elision_clone",
    ".globl elision_clone",
    "elision_clone:",
    "mov r9, rcx",  // entry
    "mov r10, rdx", // child tid word
    "mov rdx, rdx", // parent tid word: the same
    "mov eax, 56",
    "syscall",
    "test rax, rax",
    "jnz 2f",
    "xor ebp, ebp",
    "and rsp, -16",
    "call r9",
    "ud2",
    "2: ret",
);

/// Starts `entry` as a process that shares this memory and nothing else: own descriptors (see
/// [`crate::file::unshare_and_close_all`]), own working directory, no signal at its end, unseen by `wait` and
/// by a tracer of this process. `word` holds its pid while it lives; the kernel clears it.
///
/// # Safety
/// `stack` must be the top of a stack that nobody else uses, `pointer` the thread pointer, to a page of its own; `entry` must not return
/// and must stay clear of libc, and of thread-local storage.
pub unsafe fn clone_sidecar(
    stack: usize,
    pointer: usize,
    word: &AtomicU32,
    entry: extern "C" fn() -> !,
) -> Result<i32> {
    unsafe extern "C" {
        fn elision_clone(
            flags: usize,
            stack: usize,
            word: *mut u32,
            entry: extern "C" fn() -> !,
            pointer: usize,
        ) -> isize;
    }
    const CLONE_UNTRACED: i32 = 0x0080_0000;
    let flags = libc::CLONE_VM
        | libc::CLONE_FILES // until it has unshared them: a copy would hold every pipe open meanwhile
        | libc::CLONE_SETTLS
        | libc::CLONE_PARENT_SETTID
        | libc::CLONE_CHILD_CLEARTID
        | CLONE_UNTRACED;
    // SAFETY: the caller's promise; the assembly keeps to the calling convention (r9 and r10 are scratch, the
    // kernel clobbers rcx and r11, also scratch; the fifth argument is already in r8, where clone expects the pointer).
    let pid = unsafe { elision_clone(flags as usize, stack, word.as_ptr(), entry, pointer) };
    if pid < 0 { Err(Errno(-pid as i32)) } else { Ok(pid as i32) }
}

macro_rules! calls {
    ($($name:ident,)*) => { [$((stringify!($name), libc::$name)),*] };
}

/// Every system call of this library, and of the drop-in in the program's name, but those that end or make a process.
pub const CALLS: [(&str, i64); 50] = calls![
    SYS_chdir,
    SYS_clock_gettime,
    SYS_close,
    SYS_close_range,
    SYS_faccessat2,
    SYS_fcntl,
    SYS_fdatasync,
    SYS_flock,
    SYS_fstat,
    SYS_fstatfs,
    SYS_fsync,
    SYS_futex,
    SYS_futex_waitv,
    SYS_getdents64,
    SYS_getpid,
    SYS_getsockopt,
    SYS_gettid,
    SYS_ioctl,
    SYS_kill,
    SYS_lseek,
    SYS_madvise,
    SYS_membarrier,
    SYS_memfd_create,
    SYS_mmap,
    SYS_mprotect,
    SYS_mremap,
    SYS_munmap,
    SYS_nanosleep,
    SYS_openat,
    SYS_openat2,
    SYS_pidfd_getfd,
    SYS_pidfd_open,
    SYS_prctl,
    SYS_pread64,
    SYS_prlimit64,
    SYS_process_vm_readv,
    SYS_ptrace,
    SYS_pwrite64,
    SYS_read,
    SYS_readlinkat,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_sched_yield,
    SYS_setitimer,
    SYS_setsid,
    SYS_statx,
    SYS_userfaultfd,
    SYS_wait4,
    SYS_waitid,
    SYS_write,
];

/// Makes each of them once, to no effect: where a system call filter kills for one, it is the caller that it kills.
pub fn make_every_call() {
    for (_, number) in CALLS {
        // None has an effect with these: no such descriptor, address, process, request or option, nothing of it, and signal 0.
        let (first, second) = match number {
            libc::SYS_kill => (pid() as usize, 0),
            // (Of null there the kernel's log tells.)
            libc::SYS_setitimer => (usize::MAX, usize::MAX),
            _ => (usize::MAX, 0),
        };
        // SAFETY: no memory is involved, but for null, and an address that no program has.
        let _ = unsafe { syscall(number, [first, second, 0, 0, 0, 0]) };
    }
}

/// Has the calling process, and those that it makes, leave no core dump: it would be one of the program's memory. (One byte, not none: that
/// counts for a program that is handed core dumps, too.)
pub fn leave_no_core() {
    let limit = libc::rlimit { rlim_cur: 1, rlim_max: 1 };
    let arguments = [0, libc::RLIMIT_CORE as usize, (&raw const limit) as usize, 0, 0, 0];
    // SAFETY: the struct is local; the limit is the calling process's alone.
    let _ = unsafe { syscall(libc::SYS_prlimit64, arguments) };
}

/// Ends the calling process, at once.
pub fn exit() -> ! {
    // SAFETY: this does not return. Where a filter refuses it, an instruction that is none ends the process.
    unsafe {
        let _ = syscall(libc::SYS_exit_group, [0; 6]);
        core::arch::asm!("ud2", options(noreturn));
    }
}

/// A session of our own: no terminal, no signals to our group.
pub fn new_session() {
    // SAFETY: no memory is involved.
    let _ = unsafe { syscall(libc::SYS_setsid, [0; 6]) };
}

/// chdir("/"), so that no directory of the program's is kept busy.
pub fn leave_directory() {
    let _ = change_directory(c"/");
}

/// chdir(2).
pub fn change_directory(path: &core::ffi::CStr) -> Result<()> {
    // SAFETY: a C string.
    unsafe { syscall(libc::SYS_chdir, [path.as_ptr() as usize, 0, 0, 0, 0, 0]).map(drop) }
}

/// Has `signal` sent to the calling process whenever the thread that it is the child of ends. (Its next parent is another thread of
/// the same process while there is one, and so on.)
pub fn signal_at_parents_end(signal: i32) {
    // SAFETY: no memory is involved.
    let _ =
        unsafe { syscall(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as usize, signal as usize, 0, 0, 0, 0]) };
}

/// Names the calling task, as `ps` shows it.
pub fn set_name(name: &core::ffi::CStr) {
    // SAFETY: the kernel reads at most 16 bytes of a C string.
    let _ =
        unsafe { syscall(libc::SYS_prctl, [libc::PR_SET_NAME as usize, name.as_ptr() as usize, 0, 0, 0, 0]) };
}

/// Raises the soft limit on descriptors to the hard one.
pub fn raise_descriptor_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let resource = libc::RLIMIT_NOFILE as usize;
    // SAFETY: the structs are local; the limits are those of the calling process alone.
    unsafe {
        if syscall(libc::SYS_prlimit64, [0, resource, 0, (&raw mut limit) as usize, 0, 0]).is_ok() {
            let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
            if syscall(libc::SYS_prlimit64, [0, resource, (&raw const raised) as usize, 0, 0, 0]).is_ok() {
                limit = raised;
            }
        }
    }
    limit.rlim_cur
}

/// Lets `tracer` attach to this process where Yama would allow only ancestors.
pub fn allow_tracer(tracer: i32) {
    // SAFETY: no memory is involved. Without Yama it fails, and is not needed.
    let _ = unsafe { syscall(libc::SYS_prctl, [libc::PR_SET_PTRACER as usize, tracer as usize, 0, 0, 0, 0]) };
}

/// Where the kernel will write zero when the calling thread is gone (`set_tid_address`), or 0 if it does not tell.
pub fn thread_end_word() -> usize {
    let mut address = 0usize;
    const PR_GET_TID_ADDRESS: usize = 40;
    // SAFETY: the kernel fills the local.
    match unsafe { syscall(libc::SYS_prctl, [PR_GET_TID_ADDRESS, (&raw mut address) as usize, 0, 0, 0, 0]) } {
        Ok(_) => address,
        Err(_) => 0,
    }
}

/// Is there a process of that number?
pub fn exists(pid: i32) -> bool {
    // (Signal 0 is none.)
    send_signal(pid, 0) != Err(Errno(libc::ESRCH))
}

/// A descriptor of our own for the open file description behind descriptor `fd` of `pid`.
pub fn take_descriptor(pid: i32, fd: i32) -> Result<i32> {
    // SAFETY: no memory is involved.
    unsafe {
        let pidfd = syscall(libc::SYS_pidfd_open, [pid as usize, 0, 0, 0, 0, 0])?;
        let got = syscall(libc::SYS_pidfd_getfd, [pidfd, fd as usize, 0, 0, 0, 0]);
        crate::file::close(pidfd as i32);
        Ok(got? as i32)
    }
}

/// How long a call on a socket of that process may wait, by SO_RCVTIMEO or SO_SNDTIMEO. None if that is no socket, or there is no limit.
pub fn socket_timeout_ms(pid: i32, fd: i32, option: i32) -> Option<u64> {
    let ours = take_descriptor(pid, fd).ok()?;
    let mut time = [0i64; 2];
    let mut len = size_of_val(&time) as u32;
    let (level, value, len) =
        (libc::SOL_SOCKET as usize, time.as_mut_ptr() as usize, (&raw mut len) as usize);
    // SAFETY: the kernel fills the locals.
    let got =
        unsafe { syscall(libc::SYS_getsockopt, [ours as usize, level, option as usize, value, len, 0]) };
    crate::file::close(ours);
    let ms = time[0] as u64 * 1000 + (time[1] as u64).div_ceil(1000);
    (got.is_ok() && ms > 0).then_some(ms)
}

/// Two words at an address of the program's, if they are there.
pub fn peek(addr: usize) -> Option<[i64; 2]> {
    Some(peek_at(pid(), addr).ok()?.map(|word| word as i64))
}

/// Copies `[from, from + len)`, as far as it is there to be read. Says how far it was; fails where the kernel does not do that.
///
/// # Safety
/// What is at `to` must be the caller's to replace.
pub unsafe fn copy_own(from: usize, to: usize, len: usize) -> Result<usize> {
    // SAFETY: the caller's promise.
    match unsafe { copy_of(pid(), from, to, len) } {
        Err(Errno(libc::EFAULT)) => Ok(0),
        done => done,
    }
}

/// Two words at an address of another process, or of the caller.
pub fn peek_at(pid: i32, addr: usize) -> Result<[u64; 2]> {
    let mut words = [0u64; 2];
    let len = size_of_val(&words);
    // SAFETY: the local is ours.
    match unsafe { copy_of(pid, addr, words.as_mut_ptr() as usize, len)? } == len {
        true => Ok(words),
        false => Err(Errno(libc::EFAULT)),
    }
}

/// process_vm_readv(2), of one piece.
///
/// # Safety
/// What is at `to` must be the caller's to replace.
unsafe fn copy_of(pid: i32, from: usize, to: usize, len: usize) -> Result<usize> {
    let part = |at| libc::iovec { iov_base: core::ptr::without_provenance_mut(at), iov_len: len };
    let (ours, theirs) = (part(to), part(from));
    let arguments = [pid as usize, (&raw const ours) as usize, 1, (&raw const theirs) as usize, 1, 0];
    // SAFETY: what is written to is the caller's promise; the kernel finds out what cannot be read.
    unsafe { syscall(libc::SYS_process_vm_readv, arguments) }
}

/// Milliseconds on a clock that only moves forward.
pub fn now_ms() -> u64 {
    now_ns() / 1_000_000
}

/// Nanoseconds on the same clock.
pub fn now_ns() -> u64 {
    let now = clock(libc::CLOCK_MONOTONIC);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Milliseconds from a moment of that clock until now.
pub fn ms_since(moment: u64) -> u64 {
    now_ms().saturating_sub(moment)
}

/// The time of day, as files have it, in seconds.
pub fn seconds() -> i64 {
    clock(libc::CLOCK_REALTIME).tv_sec
}

fn clock(which: i32) -> libc::timespec {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel fills the local.
    let _ =
        unsafe { syscall(libc::SYS_clock_gettime, [which as usize, (&raw mut now) as usize, 0, 0, 0, 0]) };
    now
}

/// sched_yield(2).
pub fn yield_now() {
    // SAFETY: no arguments.
    let _ = unsafe { syscall(libc::SYS_sched_yield, [0; 6]) };
}

/// Gives way to the task that the caller waits for; `round` counts how often. A thread of real-time priority that only yields keeps
/// others from running on its processor for ever: so after some time it sleeps.
pub fn give_way(round: u32) {
    match round {
        0..64 => yield_now(),
        _ => nap_us(50),
    }
}

/// Sleeps for some microseconds: for waits on the state of another task, which offers no event.
pub fn nap_us(us: u64) {
    let time = libc::timespec { tv_sec: 0, tv_nsec: us as i64 * 1000 };
    // SAFETY: a local struct.
    let _ = unsafe { syscall(libc::SYS_nanosleep, [(&raw const time) as usize, 0, 0, 0, 0, 0]) };
}

/// What a stop of ours has come upon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// The thread at work, or asleep in a system call that the stop has ended.
    Midway,
    /// The thread about to take this signal, which has to be handed back when it is let go.
    Signal(i32),
    /// The thread stopped already, with its process (SIGSTOP and its kin): that has ended the system call, not we.
    Group,
}

/// How a wait for a traced thread ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Traced {
    /// In a ptrace-stop.
    Stopped(Stop),
    /// Not yet.
    Running,
    /// There is no such thread any more.
    Gone,
}

/// Attaches to a thread without stopping it.
pub fn trace_seize(tid: i32) -> Result<()> {
    trace(libc::PTRACE_SEIZE, tid, 0).map(drop)
}

/// Asks a seized thread to stop.
pub fn trace_interrupt(tid: i32) -> Result<()> {
    trace(libc::PTRACE_INTERRUPT, tid, 0).map(drop)
}

/// Takes away what is left of a child that has ended, if it was made by clone and without SIGCHLD at its end: no other.
pub fn reap_clone(child: i32) {
    let options = libc::WNOHANG | libc::__WCLONE;
    // SAFETY: no memory is involved.
    let _ = unsafe { syscall(libc::SYS_wait4, [child as usize, 0, options as usize, 0, 0, 0]) };
}

/// kill(2).
pub fn send_signal(process: i32, signal: i32) -> Result<()> {
    // SAFETY: no memory is involved.
    unsafe { syscall(libc::SYS_kill, [process as usize, signal as usize, 0, 0, 0, 0]).map(drop) }
}

/// Waits until a child made by clone is gone; while it is stopped (SIGSTOP), has it go on. Which signal has killed it? (`None`: it has ended
/// by itself.)
pub fn wait_killed(child: i32) -> Option<i32> {
    let mut status = 0i32;
    let options = libc::__WALL | libc::WUNTRACED;
    let arguments = [child as usize, (&raw mut status) as usize, options as usize, 0, 0, 0];
    loop {
        // SAFETY: the kernel fills the local.
        match unsafe { syscall(libc::SYS_wait4, arguments) } {
            Ok(_) if libc::WIFSTOPPED(status) => drop(send_signal(child, libc::SIGCONT)),
            Ok(_) => return libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)),
            Err(Errno(libc::EINTR)) => (),
            Err(_) => return None,
        }
    }
}

/// Reaps a traced thread if it is dead. (A wait for its end alone would take a stop of it away.)
pub fn reap_if_dead(tid: i32) {
    let mut told = MaybeUninit::<libc::siginfo_t>::zeroed();
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    let arguments = [libc::P_PID as usize, tid as usize, told.as_mut_ptr() as usize, options as usize, 0, 0];
    // SAFETY: the kernel fills the local, which is plain data; without an event it says code 0.
    let code = unsafe { syscall(libc::SYS_waitid, arguments).map_or(0, |_| told.assume_init().si_code) };
    if tid > 0 && [libc::CLD_EXITED, libc::CLD_KILLED, libc::CLD_DUMPED].contains(&code) {
        let _ = trace_poll(tid);
    }
}

/// Has the seized thread stopped?
pub fn trace_poll(tid: i32) -> Traced {
    let mut status = 0i32;
    let options = libc::WNOHANG | libc::__WALL;
    // SAFETY: the kernel fills the local.
    let got = unsafe {
        syscall(libc::SYS_wait4, [tid as usize, (&raw mut status) as usize, options as usize, 0, 0, 0])
    };
    match got {
        Ok(0) => Traced::Running,
        // A stop that was asked for, and a group stop, say so above; a signal on its way says nothing there.
        Ok(_) if status & 0xff == 0x7f => Traced::Stopped(match ((status >> 8) & 0xff, status >> 16) {
            (signal, 0) => Stop::Signal(signal),
            (libc::SIGTRAP, _) => Stop::Midway,
            _ => Stop::Group,
        }),
        Ok(_) | Err(_) => Traced::Gone,
    }
}

/// A thread's registers.
pub type Registers = libc::user_regs_struct;

/// The number of the system call that a stopped thread is in; negative: it is in none. (The kernel looks at the lower half alone.)
pub fn call_of(registers: &Registers) -> i64 {
    i64::from(registers.orig_rax as i32)
}

/// How a call goes on that our stop made return EINTR.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It is made again, as the registers say.
    Again,
    /// It is over, with this result.
    Over(i64),
}

/// Lets a stopped thread go. A system call that our stop made return EINTR is handed back to the kernel's own
/// restart logic: it goes on as if nothing had been, unless a handler of the program's runs first, in which
/// case it fails with EINTR as it would have. (Tried with epoll_wait, with and without a signal.) Except close, which
/// has closed by then: again, it might close another's descriptor. And except where `stop` says that the program was stopped
/// before: then EINTR is what the call fails with when it goes on. False: it has been killed since it stopped, and is ours to be
/// reaped. `interrupted` may change the registers with which the call is made again, or end it.
#[must_use]
pub fn trace_release(tid: i32, stop: Stop, interrupted: impl FnOnce(&mut Registers) -> Then) -> bool {
    const ERESTARTNOHAND: i64 = 514;
    let mut registers = MaybeUninit::<Registers>::zeroed();
    let signal = if let Stop::Signal(signal) = stop { signal } else { 0 };
    if stop != Stop::Group && trace(libc::PTRACE_GETREGS, tid, registers.as_mut_ptr() as usize).is_ok() {
        // SAFETY: plain data, filled by the kernel.
        let mut registers = unsafe { registers.assume_init() };
        let call = call_of(&registers);
        if call >= 0 && call != libc::SYS_close && registers.rax as i64 == -i64::from(libc::EINTR) {
            registers.rax = match interrupted(&mut registers) {
                Then::Again => -ERESTARTNOHAND as u64,
                Then::Over(result) => result as u64,
            };
            let _ = trace(libc::PTRACE_SETREGS, tid, (&raw const registers) as usize);
        }
    }
    trace(libc::PTRACE_DETACH, tid, signal as usize).is_ok()
}

fn trace(request: u32, tid: i32, data: usize) -> Result<usize> {
    // SAFETY: the requests used here read or fill one struct at `data`, which the callers own.
    unsafe { syscall(libc::SYS_ptrace, [request as usize, tid as usize, 0, data, 0, 0]) }
}

#[cfg(test)]
mod tests {
    /// Else a filter may kill for a call that was not tried.
    #[test]
    fn every_call_is_on_the_list() {
        let own = include_str!("task.rs");
        let (_, list) = own.split_once("const CALLS").unwrap();
        let (list, _) = list.split_once("];").unwrap();
        let sources = [own, include_str!("file.rs"), include_str!("memory.rs"), include_str!("pages.rs")];
        for name in sources.into_iter().flat_map(|source| source.split("libc::SYS_").skip(1)) {
            let end = name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap();
            let name = &name[..end];
            assert!(["", "exit_group"].contains(&name) || list.contains(&format!("SYS_{name},")), "{name}");
        }
        super::make_every_call();
    }
}
