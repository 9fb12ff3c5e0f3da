//! Timeouts of calls interrupted by a stop of the threads.
//!
//! The kernel continues poll, select, nanosleep and futex waits with the time left, and repeats others in full, for ever if stops
//! are frequent. So the first stop notes the wait's end, and a later one ends it (after three timeouts at most).
//!
//! The note is the upper half of the call number's register: the kernel ignores it (Linux 5.14), and every system
//! call changes it, so it stays only while the kernel repeats the call.

use elision_sys::arch::EPOLL_WAITS;
use elision_sys::file;
use elision_sys::task::{self, Registers, Then};

enum Limit {
    Milliseconds,
    At(u64),
    /// An option of the socket in the first argument.
    Socket(i32),
}

/// The limit of a call that the kernel repeats, and its result at timeout.
fn limit_of(registers: &Registers) -> Option<(Limit, i64)> {
    let again = -i64::from(libc::EAGAIN);
    let [_, _, third, fourth, ..] = registers.arguments();
    match registers.call() {
        call if EPOLL_WAITS.contains(&call) => Some((Limit::Milliseconds, 0)),
        libc::SYS_epoll_pwait2 => Some((Limit::At(fourth), 0)),
        libc::SYS_semtimedop => Some((Limit::At(fourth), again)),
        libc::SYS_rt_sigtimedwait => Some((Limit::At(third), again)),
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

impl Limit {
    /// Rounded up; `None`: no limit.
    fn milliseconds(&self, program: i32, registers: &Registers) -> Option<u64> {
        let [first, _, _, fourth, ..] = registers.arguments();
        match *self {
            Limit::Milliseconds => u64::try_from(fourth as i32).ok().filter(|&ms| ms > 0),
            Limit::At(address) => {
                let [seconds, nanoseconds] = task::peek(address as usize)?;
                let seconds = u64::try_from(seconds).ok()?;
                Some(seconds.saturating_mul(1000).saturating_add((nanoseconds as u64).div_ceil(1_000_000)))
            }
            Limit::Socket(option) => file::socket_timeout_ms(program, first as i32, option),
        }
    }
}

pub(crate) fn interrupted(program: i32, registers: &mut Registers) -> Then {
    let Some((limit, over)) = limit_of(registers) else { return Then::Again };
    let Some(ms) = limit.milliseconds(program, registers) else { return Then::Again };
    if note_end(registers, ms, task::now_ms()) { Then::Over(over) } else { Then::Again }
}

/// Set in every note, so that none is zero.
const NOTED: u64 = 1 << 30;
/// Bits of a clock in milliseconds: they repeat after twelve days.
const CLOCK_BITS: u32 = 30;
const CLOCK: u64 = (1 << CLOCK_BITS) - 1;
/// A value this much older than its wait is no note.
const LATE_MS: i64 = 60_000;

/// A wait without a note gets one, unless the clock could not tell it (six days) from one that is over.
fn note_end(registers: &mut Registers, limit_ms: u64, now_ms: u64) -> bool {
    let Some(limit) = i64::try_from(limit_ms).ok().filter(|&limit| limit < 1 << (CLOCK_BITS - 1)) else {
        return false;
    };
    let noted = u64::from(registers.note());
    let unused = i64::BITS - CLOCK_BITS;
    let left = ((noted & CLOCK).wrapping_sub(now_ms) << unused) as i64 >> unused;
    if noted & NOTED != 0 && (-limit - LATE_MS..=limit).contains(&left) {
        return left <= 0;
    }
    registers.set_note((NOTED | now_ms.wrapping_add(limit_ms) & CLOCK) as u32);
    false
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn registers(call: i64) -> Registers {
        Registers::of_call(call, [0; 6])
    }

    proptest! {
        #[test]
        fn a_wait_ends_when_its_time_has_come(
            begun in any::<u32>().prop_map(u64::from),
            limit in 1u64..100_000_000,
            steps in prop::collection::vec(0u64..40_000_000, 1..20),
        ) {
            let mut registers = registers(libc::SYS_epoll_wait);
            let mut now = begun;
            prop_assert!(!note_end(&mut registers, limit, now));
            for step in steps {
                now += step;
                // The kernel would have ended the repetition.
                if step > limit { break }
                prop_assert_eq!(note_end(&mut registers, limit, now), now >= begun + limit);
                prop_assert_eq!(registers.call(), libc::SYS_epoll_wait);
                if now >= begun + limit { break }
            }
        }
    }

    #[test]
    fn only_rax_is_changed() {
        let mut registers = Registers::of_call(libc::SYS_epoll_wait, [0, 0, 0, 5 << 32 | 3000, 0, 0]);
        let before = registers;
        assert!(interrupted(task::pid(), &mut registers) == Then::Again);
        assert_eq!(registers.call(), before.call());
        assert_ne!(registers.note(), before.note());
        registers.set_note(before.note());
        assert_eq!(format!("{registers:?}"), format!("{before:?}"));
    }

    #[test]
    fn what_is_no_note_of_ours_ends_no_wait() {
        for upper in [0, 1, u64::from(u32::MAX), NOTED] {
            let mut registers = registers(libc::SYS_epoll_wait);
            registers.set_note(upper as u32);
            assert!(!note_end(&mut registers, 5, 1 << 29), "{upper:x}");
            assert!(note_end(&mut registers, 5, (1 << 29) + 5), "{upper:x}");
        }
    }

    #[test]
    fn a_wait_of_weeks_gets_no_note() {
        let mut registers = registers(libc::SYS_epoll_wait);
        assert!(!note_end(&mut registers, 1 << 29, 5));
        assert_eq!((registers.call(), registers.note()), (libc::SYS_epoll_wait, 0));
    }

    #[test]
    fn limits_are_read_where_the_call_has_them() {
        let time = [3i64, 1_000_001];
        let at = time.as_ptr() as u64;
        let registers = Registers::of_call(libc::SYS_rt_sigtimedwait, [0, 0, at, -1i32 as u32 as u64, 0, 0]);
        let (limit, _) = limit_of(&registers).unwrap();
        assert_eq!(limit.milliseconds(task::pid(), &registers), Some(3002));
        assert_eq!(Limit::At(0).milliseconds(task::pid(), &registers), None);
        assert_eq!(Limit::Milliseconds.milliseconds(task::pid(), &registers), None);
    }
}
