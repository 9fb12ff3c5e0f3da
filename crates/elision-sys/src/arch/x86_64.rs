//! x86-64.
#![allow(unsafe_code)] // Instructions.

/// Enters the kernel; a negative result is an errno.
///
/// # Safety
/// As [`crate::raw::syscall`].
#[inline]
pub unsafe fn syscall(number: i64, args: [usize; 6]) -> isize {
    let returned: isize;
    // SAFETY: Linux's calling convention; memory is the caller's promise.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => returned,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            in("r9") args[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    returned
}

pub fn trap() -> ! {
    // SAFETY: no return.
    unsafe { core::arch::asm!("ud2", options(noreturn)) }
}

core::arch::global_asm!(
    ".hidden elision_signal_restorer",
    ".globl elision_signal_restorer",
    "elision_signal_restorer:",
    "mov eax, 15", // rt_sigreturn
    "syscall",
    // clone(flags, stack, tid word, entry, thread pointer): the child calls `entry`.
    ".hidden elision_clone",
    ".globl elision_clone",
    "elision_clone:",
    "mov r9, rcx",  // entry
    "mov r10, rdx", // the word, which the kernel clears (r10) and sets (rdx)
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

pub fn signal_restorer() -> usize {
    unsafe extern "C" {
        fn elision_signal_restorer();
    }
    elision_signal_restorer as *const () as usize
}

/// `word` holds the child's pid until its end; the child calls `entry`.
///
/// # Safety
/// As [`crate::task::clone_helper`], with 24 writable bytes at `pointer`.
pub unsafe fn clone(
    flags: usize,
    stack: usize,
    pointer: usize,
    word: *mut u32,
    entry: extern "C" fn() -> !,
) -> isize {
    unsafe extern "C" {
        fn elision_clone(
            flags: usize,
            stack: usize,
            word: *mut u32,
            entry: extern "C" fn() -> !,
            pointer: usize,
        ) -> isize;
    }
    // SAFETY: the caller's promise. The assembly uses scratch registers; r8, the fifth argument, is the kernel's, too.
    unsafe {
        // The ABI wants its own address there.
        *(pointer as *mut usize) = pointer;
        *((pointer + 16) as *mut usize) = pointer;
        elision_clone(flags, stack, word, entry, pointer)
    }
}

/// An address that no other thread has.
#[inline(always)]
pub fn thread_pointer() -> usize {
    let pointer;
    // SAFETY: by the ABI, a control block begins with its address.
    unsafe {
        core::arch::asm!("mov {}, fs:0", out(reg) pointer, options(nostack, preserves_flags, pure, readonly));
    }
    pointer
}

/// Valgrind would end a program that makes a process in its memory. (A client request: instructions without effect, unless
/// simulated.)
pub fn on_valgrind() -> bool {
    const RUNNING_ON_VALGRIND: usize = 0x1001;
    let request = [RUNNING_ON_VALGRIND, 0, 0, 0, 0, 0];
    let mut answer = 0usize;
    // SAFETY: the rotations add up to 128 bits, the exchange is with itself; simulated, the request is read and rdx written.
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

/// The calls that wait for events; their fourth argument is the timeout.
pub const EPOLL_WAITS: [i64; 2] = [libc::SYS_epoll_wait, libc::SYS_epoll_pwait];

#[derive(Clone, Copy, Debug)]
pub struct Registers(libc::user_regs_struct);

impl Registers {
    pub fn of_call(number: i64, arguments: [u64; 6]) -> Registers {
        // SAFETY: plain numbers.
        let zeroes: libc::user_regs_struct = unsafe { core::mem::zeroed() };
        let [rdi, rsi, rdx, r10, r8, r9] = arguments;
        Registers(libc::user_regs_struct { orig_rax: number as u64, rdi, rsi, rdx, r10, r8, r9, ..zeroes })
    }

    pub fn of_thread(tid: i32) -> Option<Registers> {
        let mut registers = Self::of_call(-1, [0; 6]);
        (registers.transfer(libc::PTRACE_GETREGS, tid) == 0).then_some(registers)
    }

    pub fn set(mut self, tid: i32) {
        let _ = self.transfer(libc::PTRACE_SETREGS, tid);
    }

    fn transfer(&mut self, request: u32, tid: i32) -> isize {
        let arguments = [request as usize, tid as usize, 0, (&raw mut self.0) as usize, 0, 0];
        // SAFETY: the requests read or fill the struct.
        unsafe { syscall(libc::SYS_ptrace, arguments) }
    }

    /// Negative: none. The kernel looks at the lower half.
    pub fn call(&self) -> i64 {
        i64::from(self.0.orig_rax as i32)
    }

    pub fn arguments(&self) -> [u64; 6] {
        let libc::user_regs_struct { rdi, rsi, rdx, r10, r8, r9, .. } = self.0;
        [rdi, rsi, rdx, r10, r8, r9]
    }

    pub fn result(&self) -> i64 {
        self.0.rax as i64
    }

    /// The kernel repeats the call, or fails it with EINTR if a handler runs first.
    pub fn restart(&mut self) {
        const ERESTARTNOHAND: i64 = 514;
        self.set_result(-ERESTARTNOHAND);
    }

    pub fn set_result(&mut self, result: i64) {
        self.0.rax = result as u64;
    }

    /// In the upper half of the call's number, 0 for none: the kernel ignores it, keeps it over repetitions, and drops it at the
    /// call's return.
    pub fn note(&self) -> u32 {
        (self.0.orig_rax >> 32) as u32
    }

    pub fn set_note(&mut self, note: u32) {
        self.0.orig_rax = u64::from(self.0.orig_rax as u32) | u64::from(note) << 32;
    }
}
