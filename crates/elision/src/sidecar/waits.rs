//! The timeouts of calls that a pause has interrupted.
//!
//! poll, select, nanosleep and futexes keep account of the time that is left, and go on with that. Others end with EINTR, and are made again
//! with the timeout that the program gave them: so whoever is paused again and again would wait for ever. Hence the end of the wait is
//! noted at its first interruption, and it is made again with what is left; one that is over by then ends as if the kernel had seen to it.
//! What had passed before the first interruption is not known: such a wait takes at most twice as long as it should.
//!
//! A wait is known again by what it was made again with, since a thread may well make the same call twice: a mark in the upper half of an argument
//! of which the kernel looks at the lower alone, or the address of the time that is left, which is in a table here.

use super::processes::is_dead;
use crate::sys::task::{self, Registers, Then};

/// Waits there is room for: so many for the threads whose numbers have the same remainder. The threads of a program mostly have numbers that
/// follow each other, so this is enough for 32,768.
const EACH: usize = 8;
const REMAINDERS: usize = 1 << 12;

/// So long after a wait should have been over it is.
const SURELY_MS: u64 = 60_000;

/// The wait of a thread, which has but one at a time.
#[repr(C)]
struct Wait {
    /// Seconds and nanoseconds: what the kernel reads when the call is made again.
    left: [i64; 2],
    tid: i32,
    /// Never zero.
    mark: u32,
    end_ms: u64,
}

/// Those that were interrupted.
pub struct Waits {
    waits: [[Wait; EACH]; REMAINDERS],
    /// How many there have been.
    count: u32,
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
    fn of(&mut self, tid: i32) -> &mut [Wait] {
        self.waits.get_mut(tid as usize % REMAINDERS).map_or(&mut [], |waits| waits)
    }

    /// The thread's wait, if it is this one.
    fn find(&mut self, tid: i32, is: impl Fn(&Wait) -> bool) -> Option<&mut Wait> {
        self.of(tid).iter_mut().find(|wait| wait.tid == tid && is(wait))
    }

    /// Notes a wait of a thread. `None` if there is no room: those of other threads are let go only if they are over.
    fn add(&mut self, program: i32, tid: i32, limit_ms: u64) -> Option<&mut Wait> {
        let now = task::now_ms();
        self.count = self.count.wrapping_add(1);
        // Neither zero nor all ones.
        let mark = self.count % (u32::MAX - 1) + 1;
        let waits = self.of(tid);
        let own = waits.iter().position(|wait| wait.tid == tid);
        let free =
            || waits.iter().position(|wait| wait.tid == 0 || wait.end_ms.saturating_add(SURELY_MS) < now);
        let dead = || waits.iter().position(|wait| is_dead(program, wait.tid));
        let at = own.or_else(free).or_else(dead)?;
        let wait = waits.get_mut(at)?;
        *wait = Wait { left: [0; 2], tid, mark, end_ms: now.saturating_add(limit_ms) };
        Some(wait)
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
                let wait = match self.find(tid, |wait| wait.mark == mark) {
                    Some(wait) => wait,
                    None => self.add(program, tid, given)?,
                };
                let left = wait.left();
                registers.r10 = with_upper(left, wait.mark);
                Some(left)
            }
            Limit::Third | Limit::Fourth => {
                let third = matches!(limit, Limit::Third);
                let place = if third { &mut registers.rdx } else { &mut registers.r10 };
                let given = *place as usize;
                let again = self.waits.as_ptr_range().contains(&(given as *const _));
                let wait = match self.find(tid, |wait| wait.left.as_ptr() as usize == given) {
                    Some(wait) => wait,
                    // One that was let go, since it should have been over.
                    None if again => return Some(0),
                    None => {
                        let [seconds, nanoseconds] = task::peek(given)?;
                        // (Rounded up: a wait may be longer than was asked for, not shorter.)
                        let ms = (seconds as u64)
                            .saturating_mul(1000)
                            .saturating_add(nanoseconds as u64 / 1_000_000 + 1);
                        self.add(program, tid, ms)?
                    }
                };
                *place = wait.left.as_ptr() as u64;
                Some(wait.left())
            }
            Limit::Socket(option) => {
                let mark = upper(registers.rdi);
                let wait = match self.find(tid, |wait| wait.mark == mark) {
                    Some(wait) => wait,
                    None => {
                        let ms = task::socket_timeout_ms(program, registers.rdi as i32, option)?;
                        self.add(program, tid, ms)?
                    }
                };
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
    use std::sync::Mutex;

    const NONE: Wait = Wait { left: [0; 2], tid: 0, mark: 0, end_ms: 0 };
    const EMPTY: Waits = Waits { waits: [const { [const { NONE }; EACH] }; REMAINDERS], count: 0 };

    #[test]
    fn a_thread_has_one_wait() {
        static WAITS: Mutex<Waits> = Mutex::new(EMPTY);
        let mut waits = WAITS.lock().unwrap();
        let marks = [(); 20].map(|()| waits.add(task::pid(), 7, 5).unwrap().mark);
        assert!(waits.find(7, |wait| wait.mark == marks[18]).is_none());
        assert!(waits.find(7, |wait| wait.mark == marks[19]).is_some());
        assert_eq!(waits.of(7).iter().filter(|wait| wait.tid != 0).count(), 1);
    }

    #[test]
    fn waits_of_threads_that_live_are_kept() {
        static WAITS: Mutex<Waits> = Mutex::new(EMPTY);
        let mut waits = WAITS.lock().unwrap();
        // (This process has one thread of this remainder. In a program there may be nine.)
        let (program, lives) = (task::pid(), task::tid());
        let [another, dead] = [1, 5000].map(|more| lives + more * REMAINDERS as i32);
        let end_ms = task::now_ms() + 3_600_000;
        waits.of(lives).iter_mut().for_each(|wait| *wait = Wait { tid: lives, end_ms, ..NONE });
        assert!(waits.add(program, another, 5).is_none());
        waits.of(lives)[3].tid = dead;
        assert!(waits.add(program, another, 5).is_some());
        assert_eq!(waits.of(lives)[3].tid, another);
    }

    #[test]
    #[allow(unsafe_code)]
    fn a_wait_that_was_let_go_is_over() {
        static WAITS: Mutex<Waits> = Mutex::new(EMPTY);
        let mut waits = WAITS.lock().unwrap();
        // SAFETY: plain numbers.
        let mut registers: Registers = unsafe { core::mem::zeroed() };
        registers.orig_rax = libc::SYS_rt_sigtimedwait as u64;
        let given = [3600i64, 5];
        registers.rdx = given.as_ptr() as u64;
        assert!(waits.interrupted(task::pid(), 7, &mut registers) == Then::Again);
        assert_eq!(registers.rdx, waits.of(7)[0].left.as_ptr() as u64);
        assert!(matches!(waits.of(7)[0].left[0], 3599..=3600));
        assert!(waits.interrupted(task::pid(), 7, &mut registers) == Then::Again);
        waits.of(7)[0].tid = 8;
        assert!(waits.interrupted(task::pid(), 7, &mut registers) == Then::Over(-i64::from(libc::EAGAIN)));
    }

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
