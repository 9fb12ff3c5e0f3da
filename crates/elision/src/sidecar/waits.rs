//! The timeouts of calls that a pause has interrupted.
//!
//! poll, select, nanosleep and futexes keep account of the time that is left, and go on with that. Others end with EINTR, and are made again
//! with the timeout that the program gave them: so whoever is paused again and again would wait for ever. Hence the end of the wait is
//! noted at its first interruption, and it is made again with what is left; one that is over by then ends as if the kernel had seen to it.
//! What had passed before the first interruption is not known: such a wait takes at most twice as long as it should.
//!
//! A wait is known again by what it was made again with, since a thread may well make the same call twice: a mark in the upper half of an argument
//! of which the kernel looks at the lower alone, or the address of the time that is left, which is in a table here.

use crate::sys::task::{self, Registers, Then};

const WAITS: usize = 1024;

/// One wait of a thread.
#[repr(C)]
struct Wait {
    /// Seconds and nanoseconds: what the kernel reads when the call is made again.
    left: [i64; 2],
    tid: i32,
    /// Never zero.
    mark: u32,
    end_ms: u64,
}

/// Those that were interrupted, the last one in place of the first.
pub struct Waits {
    waits: [Wait; WAITS],
    next: u32,
}

/// Where a call says how long it is to wait.
enum Limit {
    /// Milliseconds, in the lower half of the fourth argument.
    Milliseconds,
    /// A structure, at the address in the third argument.
    Third,
    /// In the fourth.
    Fourth,
    /// The description says it: with this option of SOL_SOCKET. (The first argument is its descriptor, of 32 bits.)
    Socket(i32),
}

fn limit_of(call: i64) -> Option<(Limit, i64)> {
    let again = -i64::from(libc::EAGAIN);
    match call {
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait => Some((Limit::Milliseconds, 0)),
        libc::SYS_epoll_pwait2 => Some((Limit::Fourth, 0)),
        libc::SYS_semtimedop => Some((Limit::Fourth, again)),
        libc::SYS_rt_sigtimedwait => Some((Limit::Third, again)),
        libc::SYS_read
        | libc::SYS_readv
        | libc::SYS_recvfrom
        | libc::SYS_recvmsg
        | libc::SYS_accept
        | libc::SYS_accept4 => Some((Limit::Socket(libc::SO_RCVTIMEO), again)),
        libc::SYS_write | libc::SYS_writev | libc::SYS_sendto | libc::SYS_sendmsg => {
            Some((Limit::Socket(libc::SO_SNDTIMEO), again))
        }
        _ => None,
    }
}

/// The upper half of a register: the mark, if there is one. (A negative number has ones there.)
fn upper(register: u64) -> u32 {
    (register >> 32) as u32
}

fn with_upper(register: u64, mark: u32) -> u64 {
    u64::from(mark) << 32 | register & 0xffff_ffff
}

impl Waits {
    fn find(&mut self, tid: i32, is: impl Fn(&Wait) -> bool) -> Option<usize> {
        self.waits.iter().position(|wait| wait.tid == tid && is(wait))
    }

    fn add(&mut self, tid: i32, limit_ms: u64) -> Option<usize> {
        self.next = self.next.wrapping_add(1);
        let at = self.next as usize % WAITS;
        // Neither zero nor all ones.
        let mark = self.next % (u32::MAX - 1) + 1;
        let end_ms = task::now_ms().saturating_add(limit_ms);
        *self.waits.get_mut(at)? = Wait { left: [0; 2], tid, mark, end_ms };
        Some(at)
    }

    /// A pause has made this call return EINTR.
    pub(super) fn interrupted(&mut self, program: i32, tid: i32, registers: &mut Registers) -> Then {
        let Some((limit, over)) = limit_of(registers.orig_rax as i64) else { return Then::Again };
        match self.time_left(program, tid, registers, limit) {
            Some(0) => Then::Over(over),
            _ => Then::Again,
        }
    }

    /// Has the registers say what is left; `None` where no limit is known.
    fn time_left(&mut self, program: i32, tid: i32, registers: &mut Registers, limit: Limit) -> Option<u64> {
        match limit {
            Limit::Milliseconds => {
                let given = u64::try_from(registers.r10 as i32).ok().filter(|&given| given > 0)?;
                let mark = upper(registers.r10);
                let at = self.find(tid, |wait| wait.mark == mark).or_else(|| self.add(tid, given))?;
                let wait = self.waits.get_mut(at)?;
                let left = wait.left();
                registers.r10 = with_upper(left, wait.mark);
                Some(left)
            }
            Limit::Third | Limit::Fourth => {
                let third = matches!(limit, Limit::Third);
                let place = if third { &mut registers.rdx } else { &mut registers.r10 };
                let given = *place as usize;
                let known = self.find(tid, |wait| wait.left.as_ptr() as usize == given);
                let at = known.or_else(|| {
                    let [seconds, nanoseconds] = task::peek(given)?;
                    // (Rounded up: a wait may be longer than was asked for, not shorter.)
                    let ms = (seconds as u64)
                        .saturating_mul(1000)
                        .saturating_add(nanoseconds as u64 / 1_000_000 + 1);
                    self.add(tid, ms)
                })?;
                let wait = self.waits.get_mut(at)?;
                *place = wait.left.as_ptr() as u64;
                Some(wait.left())
            }
            Limit::Socket(option) => {
                let mark = upper(registers.rdi);
                let known = self.find(tid, |wait| wait.mark == mark);
                let at = known.or_else(|| {
                    let ms = task::socket_timeout_ms(program, registers.rdi as i32, option)?;
                    self.add(tid, ms)
                })?;
                let wait = self.waits.get_mut(at)?;
                registers.rdi = with_upper(registers.rdi, wait.mark);
                Some(wait.left())
            }
        }
    }
}

impl Wait {
    /// Milliseconds that are left, 0 if it is over. The structure says so, too.
    fn left(&mut self) -> u64 {
        let left = self.end_ms.saturating_sub(task::now_ms());
        self.left = [(left / 1000) as i64, (left % 1000 * 1_000_000) as i64];
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_told_from_numbers() {
        assert_eq!(upper(5), 0);
        assert_eq!(with_upper(-7i32 as u32 as u64, 3), 3 << 32 | 0xffff_fff9);
        assert_eq!((upper(with_upper(9, 77)), with_upper(9, 77) as u32 as i32), (77, 9));
    }

    #[test]
    fn a_wait_ends() {
        let mut wait = Wait { left: [0; 2], tid: 1, mark: 1, end_ms: task::now_ms() + 3_600_500 };
        let left = wait.left();
        assert!((3_600_000..=3_600_500).contains(&left));
        assert_eq!(wait.left[0] as u64 * 1000 + wait.left[1] as u64 / 1_000_000, left);
        wait.end_ms = task::now_ms();
        assert_eq!(wait.left(), 0);
    }
}
