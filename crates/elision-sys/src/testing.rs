//! For several crates' tests.
#![allow(unsafe_code)] // The calling thread's processor and priority.

/// `waits` runs at real-time priority; `holds`, on the same processor without, keeps what `waits` waits for, and calls its
/// argument, which returns as `waits` begins. The wait must stay below the kernel's limit on real-time threads (0.95 of a second,
/// or none).
pub fn beside_real_time(holds: impl FnOnce(&dyn Fn()) + Send, waits: impl FnOnce() + Send) {
    use std::sync::atomic::{AtomicBool, Ordering};
    let (held, waiting) = (AtomicBool::new(false), AtomicBool::new(false));
    let until = |flag: &AtomicBool| {
        while !flag.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
    };
    let real_time = || {
        // SAFETY: local structures; zero is this thread.
        unsafe {
            let mut one = core::mem::zeroed::<libc::cpu_set_t>();
            libc::CPU_SET(libc::sched_getcpu() as usize, &mut one);
            assert_eq!(libc::sched_setaffinity(0, size_of_val(&one), &one), 0);
        }
        std::thread::scope(|scope| {
            scope.spawn(|| {
                holds(&|| {
                    held.store(true, Ordering::SeqCst);
                    until(&waiting);
                });
            });
            until(&held);
            let priority = libc::sched_param { sched_priority: 1 };
            // SAFETY: as above.
            let granted = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &priority) } == 0;
            if !granted {
                println!("skipped: no right to a real-time priority");
            }
            let begun = std::time::Instant::now();
            waiting.store(true, Ordering::SeqCst);
            waits();
            assert!(!granted || begun.elapsed().as_millis() < 500, "waited for {:?}", begun.elapsed());
        });
    };
    std::thread::scope(|scope| scope.spawn(real_time).join().unwrap());
}
