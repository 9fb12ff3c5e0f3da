//! What differs between processors.

/// One past the highest address of a program that asks for no more.
pub const ADDRESS_LIMIT: usize = 1 << 47;

/// One past the highest address that a system call accepts.
pub const NAMEABLE_LIMIT: usize = ADDRESS_LIMIT - elision_sys::PAGE;

pub use elision_sys::arch::thread_pointer;
pub use here::*;

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)] // Instructions.
mod here {
    use libc::{c_int, c_long};

    pub const SYS_OPEN: c_long = libc::SYS_open;
    pub const SYS_CREAT: c_long = libc::SYS_creat;
    pub const SYS_DUP2: c_long = libc::SYS_dup2;
    pub const SYS_FORK: c_long = libc::SYS_fork;
    pub const SYS_VFORK: c_long = libc::SYS_vfork;
    pub const MAP_32BIT: c_int = libc::MAP_32BIT;

    /// Defines `$name`, variadic or dependent on its caller: `$before` gets the first arguments and returns where to jump to,
    /// with registers, stack and return address intact.
    macro_rules! forward {
        ($name:ident, $before:ident) => {
            #[doc = concat!("See ", stringify!($name), "(3).")]
            ///
            /// # Safety
            /// The program's contract with libc.
            #[cfg_attr(not(test), unsafe(no_mangle))]
            #[unsafe(naked)]
            pub unsafe extern "C" fn $name() {
                core::arch::naked_asm!(
                    // Six argument registers, al (how many vector registers), xmm0–7. With the return address, the stack stays
                    // aligned.
                    "sub rsp, 184",
                    "movups [rsp], xmm0",
                    "movups [rsp + 16], xmm1",
                    "movups [rsp + 32], xmm2",
                    "movups [rsp + 48], xmm3",
                    "movups [rsp + 64], xmm4",
                    "movups [rsp + 80], xmm5",
                    "movups [rsp + 96], xmm6",
                    "movups [rsp + 112], xmm7",
                    "mov [rsp + 128], rdi",
                    "mov [rsp + 136], rsi",
                    "mov [rsp + 144], rdx",
                    "mov [rsp + 152], rcx",
                    "mov [rsp + 160], r8",
                    "mov [rsp + 168], r9",
                    "mov [rsp + 176], rax",
                    "call {before}",
                    "mov r11, rax",
                    "movups xmm0, [rsp]",
                    "movups xmm1, [rsp + 16]",
                    "movups xmm2, [rsp + 32]",
                    "movups xmm3, [rsp + 48]",
                    "movups xmm4, [rsp + 64]",
                    "movups xmm5, [rsp + 80]",
                    "movups xmm6, [rsp + 96]",
                    "movups xmm7, [rsp + 112]",
                    "mov rdi, [rsp + 128]",
                    "mov rsi, [rsp + 136]",
                    "mov rdx, [rsp + 144]",
                    "mov rcx, [rsp + 152]",
                    "mov r8, [rsp + 160]",
                    "mov r9, [rsp + 168]",
                    "mov rax, [rsp + 176]",
                    "add rsp, 184",
                    "jmp r11",
                    before = sym $before,
                )
            }
        };
    }

    /// Defines variadic `$name`, over pointers: calls `$with_list($which, the six in registers, the stack's)`.
    macro_rules! listed {
        ($name:ident, $which:expr, $with_list:ident) => {
            #[doc = concat!("See ", stringify!($name), "(3).")]
            ///
            /// # Safety
            /// The program's contract with libc.
            #[cfg_attr(not(test), unsafe(no_mangle))]
            #[unsafe(naked)]
            pub unsafe extern "C-unwind" fn $name(path: *const c_char, first: *const c_char) -> c_int {
                core::arch::naked_asm!(
                    "sub rsp, 56",
                    "mov [rsp], rdi",
                    "mov [rsp + 8], rsi",
                    "mov [rsp + 16], rdx",
                    "mov [rsp + 24], rcx",
                    "mov [rsp + 32], r8",
                    "mov [rsp + 40], r9",
                    "mov edi, {which}",
                    "mov rsi, rsp",
                    "lea rdx, [rsp + 64]",
                    "call {with_list}",
                    "add rsp, 56",
                    "ret",
                    which = const $which as usize,
                    with_list = sym $with_list,
                )
            }
        };
    }

    /// Defines `$name` as vfork, between `$before()` and, in the parent, `$after(child)`. The child overwrites the return
    /// address, so a register keeps it.
    macro_rules! vfork {
        ($($name:ident)*; $before:ident, $after:ident) => {
            $(#[doc = "See vfork(2)."]
            ///
            /// # Safety
            /// The program's contract with libc.
            #[cfg_attr(not(test), unsafe(no_mangle))]
            #[unsafe(naked)]
            pub unsafe extern "C" fn $name() -> pid_t {
                core::arch::naked_asm!(
                    "sub rsp, 8",
                    "call {before}",
                    "add rsp, 8",
                    "pop rdi",
                    "mov eax, {vfork}",
                    "syscall",
                    "push rdi",
                    "test eax, eax",
                    "jz 2f",
                    "sub rsp, 8",
                    "mov edi, eax",
                    "call {after}",
                    "add rsp, 8",
                    "2:",
                    "ret",
                    before = sym $before,
                    after = sym $after,
                    vfork = const libc::SYS_vfork,
                )
            })*
        };
    }

    pub(crate) use {forward, listed, vfork};
}

/// Not supported yet: nothing is deferred.
#[cfg(not(target_arch = "x86_64"))]
mod here {
    use libc::{c_int, c_long};

    // Distinct, and no system calls.
    pub const SYS_OPEN: c_long = -1001;
    pub const SYS_CREAT: c_long = -1002;
    pub const SYS_DUP2: c_long = -1003;
    pub const SYS_FORK: c_long = -1004;
    pub const SYS_VFORK: c_long = -1005;
    pub const MAP_32BIT: c_int = 0;

    macro_rules! forward {
        ($name:ident, $before:ident) => {};
    }
    macro_rules! listed {
        ($name:ident, $which:expr, $with_list:ident) => {};
    }
    macro_rules! vfork {
        ($($name:ident)*; $before:ident, $after:ident) => {};
    }
    pub(crate) use {forward, listed, vfork};
}
