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
const AT_LEAST_NS: u64 = 3_000_000;

/// Bytes a second that a plain read, after the device, copies into fresh memory. (Measured: 1 to 2 GB/s.)
const COPIES: u64 = 6 << 30;

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

/// Steps that a load has under way, each a request or more, at first. The program's faults wait behind them, and so take few of the
/// requests that a device allows, and leave few holes: each hole costs a request. (A fifth of a second's, where there are 200.)
pub const SHALLOW: usize = 32;
/// Fewer than a device's queue takes: the helper must not wait.
const DEEPEST: usize = 104;
/// More than a control group's throttle lets through at once (it opens every tenth of a second), and so much that the program's faults take
/// few of the requests.
const QUEUE_NS: u64 = 260_000_000;

/// Steps that a load of `bytes` stays ahead of the program at most, where memory is for `room` bytes: what is loaded further ahead would be
/// evicted before it is used.
pub fn ahead(bytes: usize, room: u64, step: usize) -> usize {
    if bytes as u64 <= room / 4 * 3 { usize::MAX } else { ((room / 4) as usize / step.max(1)).max(2) }
}

/// Is memory short? If the kernel has evicted an eighth of what a load brought. (It evicts some pages that are not used yet on machines with
/// memory enough, too. A load that ends for that leaves a program to its faults.) The oldest pages go first, so most looks are at one step.
pub fn is_short(done: usize, step: usize, evicted: impl Fn(usize) -> usize) -> bool {
    evicted(done / 8) > 0 && (0..done).map(evicted).sum::<usize>() > done * step / 8
}

/// Steps in a row that may be late.
pub const LATE: usize = 8;

/// How many of the steps that were asked for have come. The kernel cuts some requests in two, and queues the second part last. So a step
/// may come after the steps behind it: it is late, and is counted with them.
pub fn come(mut done: usize, asked: usize, has_come: impl Fn(usize) -> bool) -> usize {
    while let Some(next) = (done..asked).take(LATE).find(|&turn| has_come(turn)) {
        done = next + 1;
    }
    done
}

/// On a device that has loaded all that it was asked for.
pub fn deeper(depth: usize) -> usize {
    (depth * 4).min(DEEPEST)
}

/// On a device of so many bytes a second.
pub fn depth(speed: u64, step: usize) -> usize {
    let bytes = speed / 1_000_000 * (QUEUE_NS / 1_000);
    (bytes as usize).div_ceil(step.max(1)).clamp(SHALLOW, DEEPEST)
}

/// What the program's faults have done.
#[derive(Clone, Copy, Default, Debug)]
pub struct Faults {
    /// Waited for the device, and did not.
    pub major: u64,
    pub minor: u64,
    /// Asked of the device.
    pub bytes: u64,
    pub waited_ns: u64,
}

impl Faults {
    fn since(self, before: Faults) -> Faults {
        let Faults { major, minor, bytes, waited_ns } = before;
        Faults {
            major: self.major.saturating_sub(major),
            minor: self.minor.saturating_sub(minor),
            bytes: self.bytes.saturating_sub(bytes),
            waited_ns: self.waited_ns.saturating_sub(waited_ns),
        }
    }

    /// Bytes that the program has used at least.
    fn used(self) -> u64 {
        self.bytes.min((self.major + self.minor).saturating_mul(AROUND))
    }

    /// Bytes that the program has used in a row, on average. 0: too few to tell.
    fn run(self) -> u64 {
        let enough = self.major >= FEW || self.used() >= MUCH;
        if enough { self.used() / self.major.max(1) } else { 0 }
    }

    /// How long the device would take for the same with large faults.
    fn with_large_ns(self, speed: u64) -> u64 {
        cost_ns(self.used() + self.major.saturating_mul(LARGE / 2), speed)
    }
}

/// What the kernel maps at a fault, if it is in the page cache.
const AROUND: u64 = 64 << 10;
/// What a large fault loads.
const LARGE: u64 = 2 << 20;
/// Faults that wait, before anything is concluded, and before it is forgotten.
const FEW: u64 = 6;
const MANY: u64 = 32;
/// The same in bytes.
const MUCH: u64 = 16 << 20;
/// Large faults load at most so many times the bytes that small ones have shown to be used in long runs.
const TRUST: u64 = 32;

/// Where memory is too short to load ahead: are faults large? A large fault loads 2 MiB, a small one what the kernel reads ahead. How
/// much is used of what large faults load does not show, so small ones take turns with them.
#[derive(Clone, Copy)]
pub struct Large {
    /// When this turn began.
    since: Option<Faults>,
    /// What small faults did in the turn before, if this turn's are large.
    small: Option<Faults>,
    /// Bytes a second that large faults have loaded at most.
    speed: u64,
}

impl Large {
    pub const NONE: Large = Large { since: None, small: None, speed: u64::MAX };

    pub fn decide(&mut self, now: Faults, speed: u64) -> bool {
        // (A forked child's counts begin again.)
        let Some(since) = self.since.filter(|since| since.major <= now.major) else {
            (self.since, self.small) = (Some(now), None);
            return false;
        };
        let turn = now.since(since);
        let Some(small) = self.small else {
            let large_ns = turn.with_large_ns(speed.min(self.speed));
            // A throttle that opens at times makes some faults wait for many: less is concluded from few.
            let requests = turn.bytes / (2 * AROUND);
            let clearly = turn.waited_ns * requests / (2 * requests + 100);
            if turn.run() >= LARGE / 4 && large_ns < clearly {
                (self.since, self.small) = (Some(now), Some(turn));
            } else if turn.major >= MANY {
                self.since = Some(now);
            }
            return self.small.is_some();
        };
        if turn.bytes >= 2 * MUCH {
            self.speed = turn.bytes * 1_000 / (turn.waited_ns / 1_000_000).max(1);
        }
        if turn.bytes >= TRUST * small.used() || small.with_large_ns(self.speed) > small.waited_ns {
            (self.since, self.small) = (Some(now), None);
        }
        self.small.is_some()
    }
}

/// What the kernel says of a program.
#[derive(Clone, Copy, Default)]
pub struct Reading {
    pub now_ns: u64,
    /// How long its first thread has run, or waited for a processor.
    pub busy_ns: u64,
    pub faults: u64,
    /// Its first thread waits, and no signal ends that: for a fault, or in a system call.
    pub stuck: bool,
    pub threads: u64,
}

/// How long the program has waited for its faults, judged from outside.
#[derive(Clone, Copy, Default)]
pub struct Waiting {
    /// When it had faulted last.
    last: Reading,
    /// Counted since, for a fault that is not over.
    counted_ns: u64,
    /// More was busy than had passed: the kernel's account is behind by a tick, and catches up.
    ahead_ns: u64,
}

/// No fault takes longer, as far as is counted.
const LONGEST_FAULT_NS: u64 = 100_000_000;

impl Waiting {
    pub fn begin(reading: Reading) -> Waiting {
        Waiting { last: reading, ..Waiting::default() }
    }

    /// Nanoseconds waited since the last call. (The kernel counts a fault when it is over, and calls it major only if it asks for the page
    /// itself, so faults of both kinds count.)
    pub fn since(&mut self, reading: Reading) -> u64 {
        let Reading { now_ns, busy_ns, faults, .. } = self.last;
        let faults = reading.faults.saturating_sub(faults);
        if faults == 0 && !reading.stuck {
            return 0;
        }
        let passed = reading.now_ns.saturating_sub(now_ns);
        // Other threads may work while one waits.
        let busy =
            if reading.threads > 1 { 0 } else { reading.busy_ns.saturating_sub(busy_ns) } + self.ahead_ns;
        let all = passed.saturating_sub(busy).min(faults.max(1).saturating_mul(LONGEST_FAULT_NS));
        let new = all.saturating_sub(self.counted_ns);
        self.counted_ns += new;
        if faults > 0 {
            *self = Waiting { last: reading, counted_ns: 0, ahead_ns: busy.saturating_sub(passed) };
        }
        new
    }

    pub fn quiet_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.last.now_ns)
    }
}

/// The program waits no longer than this for a page, as far as is counted: what it waited besides was for something else.
pub fn waited_for(pages: u64) -> u64 {
    pages.saturating_mul(LONGEST_FAULT_NS / 8)
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
const BLOCK: usize = 64;

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

    proptest! {
        #[test]
        fn a_load_stays_near_the_program_only_if_memory_is_too_small(
            mib in 1usize..4096,
            room in 1u64..4096,
            step in 1usize..=16,
        ) {
            let step = step * (128 << 10);
            match ahead(mib << 20, room << 20, step) {
                usize::MAX => prop_assert!(mib as u64 * 4 <= room * 3),
                steps => {
                    prop_assert!(mib as u64 * 4 > room * 3 && steps >= 2);
                    prop_assert!(steps == 2 || (steps * step) as u64 <= (room << 20) / 4);
                }
            }
            prop_assert_eq!(ahead(mib << 20, u64::MAX, step), usize::MAX);
        }
    }

    proptest! {
        /// Where memory holds `room` steps, the oldest are evicted first.
        #[test]
        fn memory_is_short_if_much_was_evicted(room in 1usize..200, done in 1usize..400, reclaimed in 0usize..400) {
            let lost = done.saturating_sub(room);
            let short = is_short(done, STEP, |turn| if turn < lost { STEP } else { 0 });
            prop_assert_eq!(short, lost * 8 > done);
            // Somebody reclaims a few pages here and there.
            let few = is_short(done, STEP, |turn| if turn % 16 == reclaimed % 16 { STEP } else { 0 });
            prop_assert!(!few || done < 16);
        }
    }

    #[test]
    fn a_route_begins_where_the_program_goes() {
        let parts = [
            (0x0000_000f, [30, 31, 94]),
            (0xf000_0000, [256, 257, 192]),
            (0xffff_ffff, [0, 1, 64]),
            (0x00ff_0000, [230, 231, 294]),
        ];
        for (loaded, steps) in parts {
            let route = Route::new(320, loaded);
            assert_eq!([0, 1, 64].map(|turn| route.step(turn)), steps, "{loaded:x} {route:?}");
        }
    }

    #[test]
    fn waiting_is_what_is_neither_work_nor_sleep() {
        let reading = |ms: u64, busy: u64, faults, threads| Reading {
            now_ns: ms * 1_000_000,
            busy_ns: busy * 1_000_000,
            faults,
            stuck: false,
            threads,
        };
        let stuck = |ms, busy, faults| Reading { stuck: true, ..reading(ms, busy, faults, 1) };
        let mut waiting = Waiting::begin(reading(100, 7, 5, 1));
        assert_eq!(waiting.since(reading(103, 7, 5, 1)), 0);
        // A fault of five milliseconds is seen before it is over, if the program was seen to wait, and counts once.
        assert_eq!(waiting.since(stuck(104, 8, 5)), 3_000_000);
        assert_eq!(waiting.since(reading(105, 8, 6, 1)), 1_000_000);
        // A thousand seconds of sleep, and a fault.
        assert_eq!(waiting.since(reading(1_000_105, 8, 7, 1)), LONGEST_FAULT_NS);
        // The account of a program that works comes late.
        assert_eq!(waiting.since(reading(1_000_107, 11, 8, 1)), 0);
        assert_eq!(waiting.since(reading(1_000_109, 12, 9, 1)), 0);
        // One thread works, one waits.
        assert_eq!(waiting.since(reading(1_000_119, 18, 10, 2)), 10_000_000);
        assert_eq!(waiting.quiet_ns(1_000_119_000_007), 7);
        // A thousand seconds in a call that no signal ends.
        assert_eq!(waiting.since(stuck(2_000_119, 18, 10)), LONGEST_FAULT_NS);
        assert_eq!(waiting.since(stuck(3_000_119, 18, 10)), 0);
    }

    /// A program that uses `run` bytes in a row at a random place, again and again, where memory is short; each request takes `request_ns`.
    struct Runs {
        large: Large,
        faults: Faults,
        speed: u64,
        request_ns: u64,
        /// Bytes that large faults have asked for, and that small ones have shown to be used.
        by_large: u64,
        by_small: u64,
    }

    impl Runs {
        fn ask(&mut self, requests: u64, bytes: u64) {
            self.faults.bytes += bytes;
            self.faults.waited_ns += (requests * self.request_ns).max(cost_ns(bytes, self.speed));
        }

        fn touch(&mut self, mut run: u64, mut at: u64) {
            while run > 0 {
                let mut part = run;
                if self.large.decide(self.faults, self.speed) {
                    part = part.min(LARGE - at % LARGE);
                    self.ask(2, LARGE);
                    self.by_large += LARGE;
                } else {
                    // The first request is half behind the place.
                    self.ask(run.div_ceil(2 * AROUND) + 1, run + AROUND);
                    self.faults.minor += run / AROUND - 1;
                    self.by_small += run;
                }
                self.faults.major += 1;
                (run, at) = (run - part, at + part);
            }
        }
    }

    fn runs(speed: u64, request_ns: u64) -> Runs {
        let (large, faults) = (Large::NONE, Faults::default());
        Runs { large, faults, speed, request_ns, by_large: 0, by_small: 0 }
    }

    proptest! {
        #[test]
        fn large_faults_load_no_more_than_small_ones_have_earned(
            uses in prop::sample::select(vec![8u64, 128])
                .prop_flat_map(|most| prop::collection::vec((1..most, 1usize..200), 1..20)),
            speed in prop::sample::select(vec![125_000_000u64, 1_000_000_000]),
            per_second in prop::sample::select(vec![200u64, 1000, 16_000]),
            seed: u16,
        ) {
            let mut program = runs(speed, 1_000_000_000 / per_second);
            let longest = uses.iter().map(|&(run, _)| run).max().unwrap_or(0) * AROUND;
            for &(run, times) in &uses {
                for at in at_random(1 << 16, times, seed.into()) {
                    program.touch(run * AROUND, at as u64 * AROUND);
                }
            }
            prop_assert!(program.by_large <= (TRUST + 1) * program.by_small + LARGE);
            prop_assert!(longest >= LARGE / 4 || program.by_large == 0);
        }

        /// Beside a plain read of each run (two requests a MiB), and beside small faults alone.
        #[test]
        fn large_faults_are_used_where_they_gain(
            run in 16u64..128,
            speed in prop::sample::select(vec![125_000_000u64, 1_000_000_000]),
            per_second in prop::sample::select(vec![200u64, 1000, 16_000]),
            seed: u16,
        ) {
            let mut program = runs(speed, 1_000_000_000 / per_second);
            let (mut plain, mut small) = (runs(speed, program.request_ns), runs(speed, program.request_ns));
            for at in at_random(1 << 16, 500, seed.into()) {
                let bytes = run * AROUND;
                program.touch(bytes, at as u64 * AROUND);
                plain.ask(bytes.div_ceil(LARGE / 4), bytes);
                small.ask(bytes.div_ceil(2 * AROUND) + 1, bytes + AROUND);
            }
            let [took, plain, small] = [program, plain, small].map(|runs| runs.faults.waited_ns);
            let scarce = 4_000_000_000 / per_second > cost_ns(LARGE, speed);
            let most = if scarce { plain * 3 } else { small + small / 8 };
            prop_assert!(took <= most, "{took} beside {plain} and {small}");
        }
    }

    /// A device that takes a time for each request and a time for each byte, in order of arrival. It opens at times, as a throttle does, and
    /// then does at once what it could have done since.
    #[derive(Clone, Copy, Debug)]
    struct Device {
        per_second: u64,
        speed: u64,
        opens_ms: u64,
    }

    impl Device {
        fn takes(&self, requests: u64, bytes: u64) -> u64 {
            (requests * 1_000_000_000 / self.per_second).max(cost_ns(bytes, self.speed))
        }
    }

    /// A request of the program or of the load: the windows that it brings.
    struct Request {
        windows: std::ops::Range<usize>,
        asked_by_load: bool,
    }

    /// What a fault brings.
    const WINDOW: usize = 128 << 10;
    /// Windows of a step, which is as much as the largest request brings.
    const STEP: usize = 10;
    /// Windows that a request brings beside a hole, where pages are single: the device cuts it, and the rest queues again.
    const CUT: usize = 4;
    /// How often the simulation looks, and how long a fault takes that does not wait.
    const TICK_NS: u64 = 50_000;

    /// A program that touches windows in some order, and the helper.
    struct Simulation {
        device: Device,
        cached: Vec<bool>,
        queue: std::collections::VecDeque<Request>,
        now: u64,
        /// What the device may still do before it opens again. (A debt, if negative.)
        requests: i64,
        bytes: i64,
        loaded_ahead: usize,
    }

    impl Simulation {
        fn new(device: Device, whole: u64) -> Simulation {
            let cached = vec![false; whole as usize / WINDOW];
            let queue = Default::default();
            Simulation { device, cached, queue, now: 0, requests: 0, bytes: 0, loaded_ahead: 0 }
        }

        fn serve(&mut self) {
            let opens_ns = (self.device.opens_ms * 1_000_000).max(TICK_NS);
            if self.now.is_multiple_of(opens_ns) {
                // In thousandths.
                let share = |per_second: u64| (per_second * opens_ns / 1_000_000) as i64;
                self.requests = self.requests.min(0) + share(self.device.per_second);
                self.bytes = self.bytes.min(0) + (self.device.speed * (opens_ns / 1_000) / 1_000_000) as i64;
            }
            while self.requests > 0
                && self.bytes > 0
                && let Some(request) = self.queue.pop_front()
            {
                let Request { mut windows, asked_by_load } = request;
                if (CUT + 1..STEP).contains(&windows.len()) {
                    let rest = windows.start + CUT..windows.end;
                    self.queue.push_back(Request { windows: rest, asked_by_load });
                    windows.end = windows.start + CUT;
                }
                self.requests -= 1000;
                self.bytes -= (windows.len() * WINDOW) as i64;
                if asked_by_load {
                    self.loaded_ahead += windows.len() * WINDOW;
                }
                self.cached[windows].fill(true);
            }
        }

        fn is_queued(&self, window: usize) -> bool {
            self.queue.iter().any(|request| request.windows.contains(&window))
        }

        /// A request for each gap.
        fn ask(&mut self, step: usize) {
            let end = ((step + 1) * STEP).min(self.cached.len());
            let mut at = step * STEP;
            while at < end {
                let from = at;
                while at < end && !self.cached[at] && !self.is_queued(at) {
                    at += 1;
                }
                if at > from {
                    self.queue.push_back(Request { windows: from..at, asked_by_load: true });
                }
                at += 1;
            }
        }

        fn rest(&self) -> u64 {
            let missing = (0..self.cached.len()).filter(|&at| !self.cached[at] && !self.is_queued(at));
            (missing.count() * WINDOW) as u64
        }

        /// How long it takes to touch them all.
        fn run(&mut self, touched: impl Iterator<Item = usize>) -> u64 {
            let mut touched = touched.peekable();
            let (whole, mut waited, mut look) = (self.rest(), 0, 0);
            let (mut asked, mut done, mut depth, mut speed) = (0, 0, SHALLOW, FASTEST);
            let (mut loads, mut busy_ns, mut busy, mut sure, mut before) = (false, 0, 0, false, (0, 0));
            let steps = self.cached.len().div_ceil(STEP);
            let mut reading = Reading { threads: 1, ..Reading::default() };
            let mut waiting = Waiting::begin(reading);
            while let Some(&window) = touched.peek() {
                self.serve();
                reading.stuck = !self.cached[window];
                if self.cached[window] {
                    while touched.next_if(|&window| self.cached[window]).is_some() {}
                    reading.faults += 1;
                    reading.busy_ns += TICK_NS;
                } else if !self.is_queued(window) {
                    self.queue.push_back(Request { windows: window..window + 1, asked_by_load: false });
                }
                self.now += TICK_NS;
                if !self.now.is_multiple_of(1_000_000) {
                    continue;
                }
                reading.now_ns = self.now;
                waited += waiting.since(reading);
                if !loads && waited >= look {
                    loads = should_load(waited, whole, self.rest(), speed);
                    look = waited + patience_ns(whole, speed) / 4;
                    (busy_ns, busy, before.1) = (self.now, done, whole - self.rest());
                }
                if done == busy {
                    before.0 = waited;
                }
                if !loads {
                    continue;
                }
                let last = |step: usize| ((step + 1) * STEP).min(self.cached.len()) - 1;
                done = come(done, asked, |step| self.cached[last(step)]);
                if done == asked && asked > 0 {
                    (busy_ns, busy) = (self.now, done);
                    depth = deeper(depth);
                }
                if self.now - busy_ns > 200_000_000 && done > busy {
                    speed =
                        ((done - busy) * STEP * WINDOW) as u64 * 1_000 / ((self.now - busy_ns) / 1_000_000);
                    depth = super::depth(speed, STEP * WINDOW);
                    (busy_ns, busy) = (self.now, done);
                    sure |= !loads_well(before.0, before.1, speed);
                    loads = sure;
                }
                while asked < steps && asked - done < depth {
                    self.ask(asked);
                    asked += 1;
                }
            }
            self.now
        }
    }

    /// Windows in an order without a pattern.
    fn at_random(windows: usize, touches: usize, seed: usize) -> impl Iterator<Item = usize> {
        let mut state = seed as u64 * 2 + 1;
        (0..touches).map(move |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % windows as u64) as usize
        })
    }

    fn devices() -> impl Strategy<Value = Device> {
        let rates = prop::sample::select(vec![200u64, 1000, 16_000]);
        let speeds = prop::sample::select(vec![125_000_000u64, 1_000_000_000]);
        let opens = prop::sample::select(vec![0u64, 100]);
        (rates, speeds, opens).prop_map(|(per_second, speed, opens_ms)| Device {
            per_second,
            speed,
            opens_ms,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn no_use_takes_much_longer_than_a_plain_read(
            device in devices(),
            whole in (64u64 << 20)..(1 << 30),
            touches in 1usize..10_000,
            order in 0..3,
            seed: u16,
        ) {
            let plain = device.takes(whole.div_ceil((STEP * WINDOW) as u64), whole) + cost_ns(whole, 2 << 30);
            let mut simulation = Simulation::new(device, whole);
            let windows = simulation.cached.len();
            let took = match order {
                0 => simulation.run((0..windows).rev()),
                1 => simulation.run((0..2).flat_map(|first| (first..windows).step_by(2))),
                _ => simulation.run(at_random(windows, touches, seed.into())),
            };
            // The faults for which a device opens before it makes the program wait, and the holes that they leave, cannot be foreseen.
            let at_once = 2 * (device.opens_ms * 1_000_000 + device.takes(3, 0));
            prop_assert!(
                took <= plain + plain * 15 / 100 + 20_000_000 + at_once,
                "{} ms beside {}",
                took / 1_000_000,
                plain / 1_000_000
            );
        }

    }

    /// The device of a control group: the program's faults must not take the requests of the load.
    #[test]
    fn the_load_takes_the_requests_that_a_throttle_lets_through() {
        for (per_second, touches) in [(200, 655), (200, 3276), (1000, 655), (1000, 3276), (1000, 6553)] {
            let device = Device { per_second, speed: 1_000_000_000, opens_ms: 100 };
            let mut simulation = Simulation::new(device, 256 << 20);
            let took = simulation.run(at_random(2048, touches, 1)) / 1_000_000;
            let plain = (device.takes(205, 256 << 20) + cost_ns(256 << 20, 2 << 30)) / 1_000_000;
            assert!(took <= plain + plain * 15 / 100 + 20, "{per_second} a second: {took} ms beside {plain}");
        }
    }

    proptest! {
        /// Few faults load little unasked.
        #[test]
        fn sparse_use_stays_sparse(
            whole in (32u64 << 20)..=(256 << 20),
            speed in prop::sample::select(vec![125_000_000u64, 1_000_000_000]),
            opens_ms in prop::sample::select(vec![0u64, 100]),
            seed: u16,
        ) {
            let device = Device { per_second: 1000, speed, opens_ms };
            let mut simulation = Simulation::new(device, whole);
            let windows = simulation.cached.len();
            simulation.run(at_random(windows, whole as usize / 4096 / 1000, seed.into()));
            prop_assert!(simulation.loaded_ahead < whole as usize / 8, "{}", simulation.loaded_ahead);
        }
    }
}
