//! System calls by which nobody hears anything of the caller.
//!
//! While a truncation is put off ([`crate::helper::pending`]), the saving thread may make only these calls. A call that is not listed
//! counts as one that tells.

/// What a system call may tell, and what its end says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Meaning {
    /// Nobody hears of it.
    Quiet,
    /// It stores the size of the file at this address, in this form.
    AsksSize(u64, Form),
    /// It writes to the file: at this position, or at the description's; so many bytes at most.
    Writes(Option<u64>, u64),
    /// It makes another descriptor of the description.
    Duplicates,
    /// Somebody may hear of it.
    Tells,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    Stat,
    Statx,
}

/// The meaning of a call, given which descriptors are the file's, and whether the string at an address is empty.
pub fn meaning(
    number: i64,
    arguments: &[u64; 6],
    ours: impl Fn(i32) -> bool,
    is_empty: impl Fn(u64) -> bool,
) -> Meaning {
    let [first, second, third, fourth, fifth, _] = *arguments;
    let of_ours = |meaning| if ours(first as i32) { meaning } else { Meaning::Tells };
    let quiet_if = |quiet: bool| if quiet { Meaning::Quiet } else { Meaning::Tells };
    let asks = |path, flags: u64, at, form| match flags as i32 & libc::AT_EMPTY_PATH != 0 && is_empty(path) {
        true => of_ours(Meaning::AsksSize(at, form)),
        false => Meaning::Tells,
    };
    match number {
        libc::SYS_write => of_ours(Meaning::Writes(None, third)),
        libc::SYS_writev => of_ours(Meaning::Writes(None, u64::MAX)),
        libc::SYS_pwrite64 => of_ours(Meaning::Writes(Some(fourth), third)),
        libc::SYS_fstat => of_ours(Meaning::AsksSize(second, Form::Stat)),
        libc::SYS_newfstatat => asks(second, fourth, third, Form::Stat),
        libc::SYS_statx => asks(second, third, fifth, Form::Statx),
        libc::SYS_dup => of_ours(Meaning::Duplicates),
        libc::SYS_fcntl => match second as i32 {
            libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => of_ours(Meaning::Duplicates),
            libc::F_GETFD | libc::F_SETFD | libc::F_GETFL => of_ours(Meaning::Quiet),
            _ => Meaning::Tells,
        },
        libc::SYS_lseek => {
            quiet_if(ours(first as i32) && [libc::SEEK_SET, libc::SEEK_CUR].contains(&(third as i32)))
        }
        libc::SYS_ioctl => quiet_if(ours(first as i32) && [libc::TCGETS, FS_IOC_GETFLAGS].contains(&second)),
        // Room that is there already; what is beyond it stays beyond the end of the file.
        libc::SYS_fallocate => quiet_if(ours(first as i32) && second as i32 == libc::FALLOC_FL_KEEP_SIZE),
        libc::SYS_fadvise64 => of_ours(Meaning::Quiet),
        // The other threads are stopped: to wait for one is to wait for ever. Others may wait at memory that is only read here.
        libc::SYS_futex => quiet_if(second as i32 == libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG),
        // A shared mapping may become writable.
        libc::SYS_mprotect => quiet_if(third as i32 & libc::PROT_WRITE == 0),
        libc::SYS_mmap => quiet_if(
            fourth as i32 & (libc::MAP_TYPE | libc::MAP_ANONYMOUS) == libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        ),
        libc::SYS_prlimit64 => quiet_if(third == 0),
        libc::SYS_brk
        | libc::SYS_munmap
        | libc::SYS_mremap
        | libc::SYS_madvise
        | libc::SYS_mincore
        | libc::SYS_getpid
        | libc::SYS_gettid
        | libc::SYS_getppid
        | libc::SYS_getuid
        | libc::SYS_geteuid
        | libc::SYS_getgid
        | libc::SYS_getegid
        | libc::SYS_getrusage
        | libc::SYS_getcpu
        | libc::SYS_getrandom
        | libc::SYS_clock_gettime
        | libc::SYS_clock_getres
        | libc::SYS_gettimeofday
        | libc::SYS_times
        | libc::SYS_sysinfo
        | libc::SYS_uname
        | libc::SYS_sched_yield
        | libc::SYS_sched_getaffinity
        | libc::SYS_rt_sigprocmask
        | libc::SYS_rt_sigaction
        | libc::SYS_sigaltstack => Meaning::Quiet,
        _ => Meaning::Tells,
    }
}

/// The file's attributes.
const FS_IOC_GETFLAGS: u64 = 0x8008_6601;

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: u64 = 5;
    const EMPTY: u64 = 0x1000;

    fn of(number: i64, arguments: [u64; 6]) -> Meaning {
        meaning(number, &arguments, |fd| fd == OURS as i32, |path| path == EMPTY)
    }

    #[test]
    fn what_concerns_the_file_alone_is_quiet() {
        let flags = libc::AT_EMPTY_PATH as u64;
        assert_eq!(of(libc::SYS_write, [OURS, 1, 2, 0, 0, 0]), Meaning::Writes(None, 2));
        assert_eq!(of(libc::SYS_pwrite64, [OURS, 1, 2, 77, 0, 0]), Meaning::Writes(Some(77), 2));
        assert_eq!(of(libc::SYS_fstat, [OURS, 9, 0, 0, 0, 0]), Meaning::AsksSize(9, Form::Stat));
        assert_eq!(of(libc::SYS_newfstatat, [OURS, EMPTY, 9, flags, 0, 0]), Meaning::AsksSize(9, Form::Stat));
        assert_eq!(of(libc::SYS_statx, [OURS, EMPTY, flags, 0, 9, 0]), Meaning::AsksSize(9, Form::Statx));
        assert_eq!(of(libc::SYS_dup, [OURS, 0, 0, 0, 0, 0]), Meaning::Duplicates);
        assert_eq!(
            of(libc::SYS_fcntl, [OURS, libc::F_DUPFD_CLOEXEC as u64, 0, 0, 0, 0]),
            Meaning::Duplicates
        );
        assert_eq!(of(libc::SYS_lseek, [OURS, 0, libc::SEEK_SET as u64, 0, 0, 0]), Meaning::Quiet);
        let keep = libc::FALLOC_FL_KEEP_SIZE as u64;
        assert_eq!(of(libc::SYS_fallocate, [OURS, keep, 0, 9, 0, 0]), Meaning::Quiet);
        let private = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        assert_eq!(of(libc::SYS_mmap, [0, 9, 3, private, u64::MAX, 0]), Meaning::Quiet);
        let wake = (libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG) as u64;
        assert_eq!(of(libc::SYS_futex, [9, wake, 1, 0, 0, 0]), Meaning::Quiet);
        assert_eq!(of(libc::SYS_mprotect, [9, 4096, libc::PROT_READ as u64, 0, 0, 0]), Meaning::Quiet);
    }

    #[test]
    fn what_others_may_hear_of_is_not() {
        for other in [0, 1, 4, 6] {
            for number in
                [libc::SYS_write, libc::SYS_pwrite64, libc::SYS_fstat, libc::SYS_dup, libc::SYS_fallocate]
            {
                assert_eq!(of(number, [other, 1, 1, 1, 0, 0]), Meaning::Tells, "{number} of {other}");
            }
        }
        let (by_path, end) = (EMPTY + 1, libc::SEEK_END as u64);
        assert_eq!(of(libc::SYS_newfstatat, [OURS, by_path, 9, 0, 0, 0]), Meaning::Tells);
        assert_eq!(of(libc::SYS_newfstatat, [OURS, EMPTY, 9, 0, 0, 0]), Meaning::Tells);
        assert_eq!(of(libc::SYS_statx, [4, EMPTY, libc::AT_EMPTY_PATH as u64, 0, 9, 0]), Meaning::Tells);
        assert_eq!(of(libc::SYS_lseek, [OURS, 0, end, 0, 0, 0]), Meaning::Tells);
        assert_eq!(of(libc::SYS_lseek, [4, 0, 0, 0, 0, 0]), Meaning::Tells);
        assert_eq!(of(libc::SYS_fcntl, [OURS, libc::F_SETLK as u64, 9, 0, 0, 0]), Meaning::Tells);
        assert_eq!(of(libc::SYS_fallocate, [OURS, 0, 0, 9, 0, 0]), Meaning::Tells);
        assert_eq!(of(libc::SYS_futex, [9, libc::FUTEX_WAIT as u64, 1, 0, 0, 0]), Meaning::Tells);
        assert_eq!(of(libc::SYS_futex, [9, libc::FUTEX_WAKE as u64, 1, 0, 0, 0]), Meaning::Tells);
        assert_eq!(of(libc::SYS_mprotect, [9, 4096, libc::PROT_WRITE as u64, 0, 0, 0]), Meaning::Tells);
        let shared = (libc::MAP_SHARED | libc::MAP_ANONYMOUS) as u64;
        assert_eq!(of(libc::SYS_mmap, [0, 9, 3, shared, u64::MAX, 0]), Meaning::Tells);
        assert_eq!(of(libc::SYS_mmap, [0, 9, 3, libc::MAP_PRIVATE as u64, OURS, 0]), Meaning::Tells);
        let all = [
            libc::SYS_read,
            libc::SYS_pread64,
            libc::SYS_close,
            libc::SYS_openat,
            libc::SYS_kill,
            libc::SYS_tgkill,
            libc::SYS_sendto,
            libc::SYS_sendmsg,
            libc::SYS_recvfrom,
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_execve,
            libc::SYS_exit,
            libc::SYS_exit_group,
            libc::SYS_flock,
            libc::SYS_unlinkat,
            libc::SYS_renameat2,
            libc::SYS_fsync,
            libc::SYS_ftruncate,
            libc::SYS_nanosleep,
            libc::SYS_clock_nanosleep,
            libc::SYS_ppoll,
            libc::SYS_fstatfs,
            libc::SYS_setpriority,
            libc::SYS_prctl,
            libc::SYS_rt_sigreturn,
            libc::SYS_restart_syscall,
        ];
        for number in all {
            assert_eq!(of(number, [OURS, 0, 0, 0, 0, 0]), Meaning::Tells, "{number}");
        }
    }
}
