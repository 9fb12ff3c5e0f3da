//! When the rest of a file that is not in the page cache is loaded unasked.
//!
//! A plain read loads the whole file in order, in large requests. A deferred read loads only the pages that the program touches, but each
//! fault is a small request, and many small requests take longer than few large ones. This is the ski-rental problem. The policy adds the
//! time that the program has waited for faults to the time of one pass over the rest. When the sum is more than the time of one pass
//! over the whole and a little, the helper loads the rest. So sparse use stays sparse, and no use costs much more than a plain read.

/// Bytes a second. Assumed of a device that was not measured: an overestimate starts a short load, which measures.
pub const FASTEST: u64 = 1 << 30;

/// The share of the device's time that the program may lose.
const SHARE: u64 = 28;
const AT_LEAST_NS: u64 = 14_000_000;

/// Bytes a second that a plain read, after the device, copies into fresh memory. (Measured: 1 to 2 GB/s.)
const COPIES: u64 = 4 << 30;

/// How long a device that loads `speed` bytes a second takes.
fn cost_ns(bytes: u64, speed: u64) -> u64 {
    (u128::from(bytes) * 1_000_000_000 / u128::from(speed.max(1))).min(u64::MAX.into()) as u64
}

/// What may be lost by waiting, of a read of so many bytes.
pub fn patience_ns(whole: u64, speed: u64) -> u64 {
    cost_ns(whole, speed) / SHARE + cost_ns(whole, COPIES) + AT_LEAST_NS
}

/// Should the rest be loaded? `whole` was missing in the beginning, `rest` is missing now.
pub fn should_load(waited_ns: u64, whole: u64, rest: u64, speed: u64) -> bool {
    rest > 0 && waited_ns + cost_ns(rest, speed) > cost_ns(whole, speed) + patience_ns(whole, speed)
}

/// Have the program's faults loaded nearly as much as the device can? (Then a load begun on a guess at the speed gains nothing. The measured
/// speed is a guess, too, and a load that is wrongly ended costs more than one that is wrongly continued.)
pub fn loads_well(waited_ns: u64, loaded: u64, speed: u64) -> bool {
    cost_ns(loaded, speed) > waited_ns / 4 * 3
}

/// What the kernel says of a program.
#[derive(Clone, Copy, Default)]
pub struct Reading {
    pub now_ns: u64,
    /// How long its first thread has run, or waited for a processor.
    pub busy_ns: u64,
    pub faults: u64,
    pub threads: u64,
}

/// How long the program has waited for its faults, judged from outside.
#[derive(Clone, Copy, Default)]
pub struct Waiting {
    /// When it had faulted last.
    last: Reading,
    /// More was busy than had passed: the kernel's account is behind by a tick, and catches up.
    ahead_ns: u64,
}

/// No fault takes longer, as far as is counted.
const LONGEST_FAULT_NS: u64 = 50_000_000;

impl Waiting {
    pub fn begin(reading: Reading) -> Waiting {
        Waiting { last: reading, ahead_ns: 0 }
    }

    /// Nanoseconds waited between the last readings with new faults. (The kernel calls a fault major only if it asks for the page
    /// itself, so faults of both kinds count.)
    pub fn since(&mut self, reading: Reading) -> u64 {
        let Reading { now_ns, busy_ns, faults, .. } = self.last;
        let faults = reading.faults.saturating_sub(faults);
        if faults == 0 {
            return 0;
        }
        self.last = reading;
        let passed = reading.now_ns.saturating_sub(now_ns);
        // Other threads may work while one waits.
        let busy =
            if reading.threads > 1 { 0 } else { reading.busy_ns.saturating_sub(busy_ns) } + self.ahead_ns;
        self.ahead_ns = busy.saturating_sub(passed);
        passed.saturating_sub(busy).min(faults.saturating_mul(LONGEST_FAULT_NS))
    }

    pub fn quiet_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.last.now_ns)
    }
}

/// The program waits no longer than this for a page, as far as is counted: what it waited besides was for something else.
pub fn waited_for(pages: u64) -> u64 {
    pages.saturating_mul(LONGEST_FAULT_NS / 4)
}

/// The order in which a range is loaded, in steps: from where the program is, the way it goes, then what it has left behind. The kernel
/// loads in large requests only forwards, so a program that goes backwards is met block by block.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Route {
    pub steps: usize,
    /// In the block that the program is in, if it goes backwards.
    first: usize,
    backwards: bool,
}

/// Parts of a range that are told apart when the program is looked for.
pub const PARTS: usize = 32;

/// Steps.
const BLOCK: usize = 16;

impl Route {
    pub const NONE: Route = Route { steps: 0, first: 0, backwards: false };

    /// `loaded`: which parts the program has loaded something of.
    pub fn new(steps: usize, loaded: u32) -> Route {
        if loaded == 0 || loaded == u32::MAX || steps == 0 {
            return Route { steps, ..Route::NONE };
        }
        let (lowest, highest) =
            (loaded.trailing_zeros() as usize, PARTS - 1 - loaded.leading_zeros() as usize);
        let at = |part| part * steps / PARTS;
        if lowest > 0 && highest == PARTS - 1 {
            return Route { steps: steps.next_multiple_of(BLOCK), first: at(lowest), backwards: true };
        }
        // The program's faults have left holes in the parts behind it. Each hole costs a request, so these parts come last.
        Route { steps, first: at(highest), backwards: false }
    }

    /// The step that is loaded as number `turn`. (Backwards the last block may have steps beyond the end.)
    pub fn step(&self, turn: usize) -> usize {
        let Route { steps, first, backwards } = *self;
        if !backwards {
            return (first + turn) % steps.max(1);
        }
        let blocks = (steps / BLOCK).max(1);
        let block = (first / BLOCK + blocks - turn / BLOCK % blocks) % blocks;
        block * BLOCK + turn % BLOCK
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_route_comes_by_every_step_once(steps in 1usize..300, loaded: u32, shape in 0..3) {
            let loaded = match shape {
                0 => loaded,
                1 => u32::MAX << (loaded % 32),
                _ => u32::MAX >> (loaded % 32),
            };
            let route = Route::new(steps, loaded);
            prop_assert!((steps..steps + BLOCK).contains(&route.steps));
            let mut seen = vec![false; route.steps];
            for turn in 0..route.steps {
                prop_assert!(!std::mem::replace(&mut seen[route.step(turn)], true));
            }
        }
    }

    #[test]
    fn a_route_begins_where_the_program_goes() {
        let parts = [
            (0x0000_000f, [30, 31, 46]),
            (0xf000_0000, [272, 273, 256]),
            (0xffff_ffff, [0, 1, 16]),
            (0x00ff_0000, [230, 231, 246]),
        ];
        for (loaded, steps) in parts {
            let route = Route::new(320, loaded);
            assert_eq!([0, 1, 16].map(|turn| route.step(turn)), steps, "{loaded:x} {route:?}");
        }
    }

    #[test]
    fn waiting_is_what_is_neither_work_nor_sleep() {
        let reading = |ms: u64, busy: u64, faults, threads| Reading {
            now_ns: ms * 1_000_000,
            busy_ns: busy * 1_000_000,
            faults,
            threads,
        };
        let mut waiting = Waiting::begin(reading(100, 7, 5, 1));
        assert_eq!(waiting.since(reading(103, 7, 5, 1)), 0);
        // A fault of five milliseconds is seen when it is over.
        assert_eq!(waiting.since(reading(105, 8, 6, 1)), 4_000_000);
        // A thousand seconds of sleep, and a fault.
        assert_eq!(waiting.since(reading(1_000_105, 8, 7, 1)), LONGEST_FAULT_NS);
        // The account of a program that works comes late.
        assert_eq!(waiting.since(reading(1_000_107, 11, 8, 1)), 0);
        assert_eq!(waiting.since(reading(1_000_109, 12, 9, 1)), 0);
        // One thread works, one waits.
        assert_eq!(waiting.since(reading(1_000_119, 18, 10, 2)), 10_000_000);
        assert_eq!(waiting.quiet_ns(1_000_119_000_007), 7);
    }

    /// A device that takes a time for each request and a time for each byte.
    struct Device {
        request_ns: u64,
        speed: u64,
    }

    impl Device {
        fn takes(&self, requests: u64, bytes: u64) -> u64 {
            (requests * self.request_ns).max(cost_ns(bytes, self.speed))
        }
    }

    const FAULT: u64 = 128 << 10;
    const REQUEST: u64 = 1 << 20;

    proptest! {
        /// The program faults for as long as it may, each fault brings `useful` bytes of those that it wants, then all is loaded.
        #[test]
        fn no_use_takes_much_longer_than_a_plain_read(
            per_second in prop::sample::select(vec![200u64, 1000, 16_000]),
            speed in prop::sample::select(vec![125_000_000u64, 1_000_000_000]),
            whole in (8u64 << 20)..(4 << 30),
            useful in prop::sample::select(vec![0u64, 4096, 64 << 10, FAULT]),
            brought in prop::sample::select(vec![4096u64, FAULT]),
        ) {
            let device = Device { request_ns: 1_000_000_000 / per_second, speed };
            let loads = device.takes(whole.div_ceil(REQUEST), whole);
            let measured = (u128::from(whole) * 1_000_000_000 / u128::from(loads)) as u64;
            let plain = loads + cost_ns(whole, 2 << 30);
            let (mut waited, mut rest) = (0, whole);
            while rest > 0 && !should_load(waited, whole, rest, measured) {
                waited += device.takes(1, brought);
                rest = rest.saturating_sub(useful.min(brought));
            }
            let all = waited + device.takes(rest.div_ceil(REQUEST), rest);
            prop_assert!(all <= plain + plain * 15 / 100 + 20_000_000, "{all} beside {plain}");
        }

        /// Few faults load nothing unasked.
        #[test]
        fn sparse_use_stays_sparse(
            whole in (64u64 << 20)..(4 << 30),
            speed in prop::sample::select(vec![125_000_000u64, 1_000_000_000]),
        ) {
            let device = Device { request_ns: 1_000_000, speed };
            let (mut waited, mut rest) = (0, whole);
            for _ in 0..whole / 4096 / 1000 {
                waited += device.takes(1, FAULT);
                rest -= FAULT;
                prop_assert!(!should_load(waited, whole, rest, speed), "{waited} {rest} of {whole}");
            }
        }
    }
}
