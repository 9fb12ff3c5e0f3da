//! Where in its first page a large block starts. Pure arithmetic.
//!
//! A read can be deferred if address and file position agree modulo the page size; `malloc` promises 16 bytes only. The block
//! is allocated before the read, so this module guesses its place: from the file's position and size, and from the places that earlier
//! blocks of that size needed. A wrong guess only costs a deferral.

use super::PAGE;

const ALIGNMENT: usize = 16;

/// Where a CPython bytes object keeps its bytes; one more follows them.
const BYTES_HEADER: u64 = 32;

/// GNU as asks for 64 KiB and a header more than it reads; so much of its obstack comes before the header.
const AS_ROOM: u64 = 64 << 10;
const AS_HEADERS: core::ops::Range<u64> = 1..512;
const OBSTACK_HEADER: u64 = 16;

/// CPython makes objects for reads of so many bytes, and multiples.
const ROUND: u64 = 512;

/// How far a buffered reader may be ahead of the program, and how long a header may be.
const AHEAD: i64 = 256 << 10;
const HEADER: i64 = 64 << 10;

/// The file that a block is probably for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Source {
    /// The descriptor's, which may be a buffer's.
    pub position: u64,
    /// The program's, if it has sought in a stream.
    pub sought: Option<u64>,
    /// Where a trailer may begin: what the descriptor sought last. Else the size.
    pub trailer: u64,
    pub size: u64,
    /// Where the file itself says that so many bytes are ([`super::listed`]).
    pub listed: Option<u64>,
    /// Where the last block that was read into would end in the file.
    pub last: Option<u64>,
}

impl Source {
    pub fn at(self) -> u64 {
        self.sought.unwrap_or(self.position)
    }
}

/// What a place may depend on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Relation {
    /// The file position before the block was made.
    Position,
    /// The end of the last block: blocks are for what comes one behind the other.
    Last,
    /// The file's size less the request: the block is for all but a header.
    Rest,
    /// A trailer's position less the request: the block is for all between a header and the trailer.
    Before,
    Nothing,
}

const RELATIONS: [Relation; 5] =
    [Relation::Position, Relation::Last, Relation::Rest, Relation::Before, Relation::Nothing];

fn is_object(bytes: u64) -> bool {
    bytes > ROUND && (bytes - BYTES_HEADER - 1).is_multiple_of(ROUND)
}

/// Is a block of `bytes` perhaps for a file of that size?
pub fn fits(bytes: u64, size: u64) -> bool {
    bytes <= size.saturating_add(PAGE as u64) || headers(bytes, size) > 0
}

/// How far into its block a program reads the `rest` of a file.
fn headers(bytes: u64, rest: u64) -> u64 {
    let object = rest.saturating_add(BYTES_HEADER + 1);
    if is_object(bytes) || bytes == object || bytes == object + 1 {
        return BYTES_HEADER;
    }
    let header = bytes.checked_sub(rest).and_then(|more| more.checked_sub(AS_ROOM));
    header.filter(|header| AS_HEADERS.contains(header)).map_or(0, |header| header + OBSTACK_HEADER)
}

/// The place of what ends at `end`. A bytearray asks for a byte more than it reads, bytes for 33 or 34: only one of these is a
/// multiple of 16.
fn before(end: u64, bytes: u64) -> i64 {
    let begin = end.wrapping_sub(bytes) as i64;
    let up = begin.wrapping_add(ALIGNMENT as i64 - 1) & -(ALIGNMENT as i64);
    if up.wrapping_sub(begin) <= 2 { up } else { begin }
}

impl Relation {
    /// The place, if `bytes` of the file are read to the block's start, or behind a bytes object's header.
    fn place(self, bytes: usize, source: Option<Source>) -> Option<i64> {
        let bytes = bytes as u64;
        match self {
            Relation::Position => source.map(|source| {
                let position = source.at();
                position.wrapping_sub(headers(bytes, source.size.saturating_sub(position))) as i64
            }),
            Relation::Last => source.and_then(|source| source.last).map(|last| last as i64),
            Relation::Rest => source.map(|source| before(source.size, bytes)),
            Relation::Before => source.map(|source| before(source.trailer, bytes)),
            Relation::Nothing => Some(0),
        }
    }

    /// The best guess without experience.
    fn first(bytes: usize, source: Source) -> Relation {
        let begin = |end: u64| end.wrapping_sub(bytes as u64) as i64;
        let least = -(BYTES_HEADER as i64) - 2;
        let header = |begin: i64| (least..HEADER).contains(&begin);
        let (position, rest) = (source.position as i64, begin(source.size));
        let (fits_rest, fits_before) = match source.sought {
            // The program may have read on from there, as far as the stream has.
            Some(sought) => ((sought as i64..=position).contains(&rest), false),
            // A part of so many bytes, rather than all but a header.
            None if position == 0 && is_object(bytes as u64) => (false, false),
            None => {
                let ahead = rest >= least && (0..AHEAD).contains(&position.wrapping_sub(rest));
                let buffered = source.position.is_multiple_of(PAGE as u64);
                (
                    buffered && (ahead || header(rest)),
                    source.trailer <= source.position && header(begin(source.trailer)),
                )
            }
        };
        let reaches = |relation: Relation| relation.place(bytes, Some(source)).is_some_and(reachable);
        match () {
            () if fits_before && reaches(Relation::Before) => Relation::Before,
            () if fits_rest && reaches(Relation::Rest) => Relation::Rest,
            () => Relation::Position,
        }
    }
}

fn within_page(place: i64) -> usize {
    place.rem_euclid(PAGE as i64) as usize
}

fn reachable(place: i64) -> bool {
    within_page(place).is_multiple_of(ALIGNMENT)
}

/// What the places that were needed had in common, for blocks of one kind: for each [`Relation`] a distance (bits 11..0), and how
/// often in a row it was right (14..12).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Habit(pub [u16; 5]);

impl Habit {
    fn of(self, relation: Relation) -> (usize, u16) {
        let bits = self.0.get(relation as usize).copied().unwrap_or(0);
        (usize::from(bits & 0xfff), bits >> 12 & 7)
    }

    /// A read has shown the place that a block needed.
    pub fn learn(self, bytes: usize, source: Option<Source>, needed: usize) -> Habit {
        Habit(RELATIONS.map(|relation| {
            let (known, times) = self.of(relation);
            let (distance, times) = match relation.place(bytes, source) {
                None => (known, times),
                Some(place) => match within_page((needed as i64).wrapping_sub(place)) {
                    distance if distance == known => (distance, (times + 1).min(7)),
                    // Once may be a jump (tensors that are not read in order).
                    _ if times > 1 => (known, 1),
                    distance => (distance, 1),
                },
            };
            times << 12 | distance as u16
        }))
    }

    /// The place of a block: a multiple of 16, below a page.
    pub fn place(self, bytes: usize, source: Option<Source>) -> usize {
        let listed = source.and_then(|source| source.listed).map(|listed| listed as i64);
        if let Some(listed) = listed.filter(|&listed| reachable(listed)) {
            return within_page(listed);
        }
        let first = source.map_or(Relation::Nothing, |source| Relation::first(bytes, source));
        let places = RELATIONS.into_iter().filter_map(|relation| {
            let (distance, times) = self.of(relation);
            let place = relation.place(bytes, source)?.wrapping_add(distance as i64);
            (times > 0 && reachable(place)).then_some(((times, relation == first), place))
        });
        let untried = || match source {
            None if is_object(bytes as u64) => Some(-(BYTES_HEADER as i64)),
            None => None,
            Some(_) => first.place(bytes, source).filter(|&place| reachable(place)),
        };
        // Of equals the earlier relation.
        let best = places.rev().max_by_key(|(times, _)| *times).map(|(_, place)| place);
        within_page(best.or_else(untried).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: usize = 1 << 20;

    fn source(position: u64, size: u64) -> Option<Source> {
        Some(Source { position, sought: None, trailer: size, size, listed: None, last: None })
    }

    fn stream(position: u64, size: u64) -> Option<Source> {
        Some(Source {
            position: position / 4096 * 4096 + 4096,
            sought: Some(position),
            trailer: size,
            size,
            listed: None,
            last: None,
        })
    }

    #[test]
    fn first_places_of_the_programs_surveyed() {
        for (bytes, source, place) in [
            // The whole file (C, perl, numpy.fromfile).
            (MIB, source(0, 1 << 20), 0),
            // CPython's read(); bytearray: one byte more, no header.
            (MIB + 34, source(0, 1 << 20), 0xfe0),
            (MIB + 33, source(0, 1 << 20), 0xfe0),
            (MIB + 1, source(0, 1 << 20), 0),
            // ... behind a header that a buffered reader has read.
            (MIB + 33, source(8192, (1 << 20) + 64), 32),
            (MIB + 1, source(8192, (1 << 20) + 64), 64),
            (MIB, source(8192, (1 << 20) + 272), 272),
            // CPython's read(n), os.read(n).
            (MIB + 33, source(0, 1 << 27), 0xfe0),
            (MIB + 33, source(0, (1 << 20) + 1040), 0xfe0),
            (MIB + 33, None, 0xfe0),
            // A header that a stream has read (numpy.load), a place that was sought.
            (MIB, stream(0x80, 1 << 21), 0x80),
            (MIB, stream(0x2010, (1 << 20) + 0x80), 16),
            // ... and one that was read on from.
            (MIB, stream(0, (1 << 20) + 0x80), 0x80),
            (1 << 16, source(0x2180, 1 << 20), 0x180),
            // All but a header, by pread (HDF5).
            (MIB, source(0, (1 << 20) + 2048), 2048),
            // Between header and trailer, where the trailer was read first (TIFF).
            (
                MIB,
                Some(Source {
                    position: (1 << 20) + 5000,
                    sought: None,
                    trailer: (1 << 20) + 256,
                    size: (1 << 20) + 5000,
                    listed: None,
                    last: None,
                }),
                256,
            ),
            // GNU as, .incbin: 64 KiB and its header more.
            (MIB + (64 << 10) + 160, source(0, 1 << 20), 0x1000 - 176),
            // What a header lists; an odd place says nothing.
            (MIB, Some(Source { listed: Some(0x1230), ..source(8192, 1 << 21).unwrap() }), 0x230),
            (MIB, Some(Source { listed: Some(0x1231), ..source(8192, 1 << 21).unwrap() }), 0),
            // Positions that malloc cannot match.
            (MIB, stream(77, 1 << 20), 0),
            (MIB + 34, source(8, 1 << 20), 0),
            (MIB, None, 0),
        ] {
            assert_eq!(Habit::default().place(bytes, source), place, "{bytes} {source:?}");
        }
    }

    /// A read of `bytes` at `offset`, `skew` behind the block's start: is the guess right? It is remembered.
    fn read(habit: &mut Habit, bytes: usize, source: Option<Source>, skew: usize, offset: u64) -> bool {
        let needed = within_page(offset as i64 - skew as i64);
        let right = habit.place(bytes, source) == needed;
        *habit = habit.learn(bytes, source, needed);
        right
    }

    #[test]
    fn the_second_block_of_a_kind_is_right() {
        let mut habit = Habit::default();
        // read(n) behind a header that a buffered reader has read.
        let at = |n: u64| 256 + (n << 24);
        let rights = [0, 1, 2].map(|n| {
            read(&mut habit, (16 << 20) + 33, source(at(n) / 8192 * 8192 + 8192, 1 << 30), 32, at(n))
        });
        assert_eq!(rights, [false, true, true]);
        // Datasets one behind the other, by pread.
        let mut habit = Habit::default();
        let rights = [0, 1, 2].map(|n| read(&mut habit, 32 << 20, source(0, 1 << 30), 0, 2048 + (n << 25)));
        assert_eq!(rights, [false, true, true]);
    }

    #[test]
    fn objects_one_behind_the_other_are_right_from_the_fourth_on() {
        // A buffered reader (pandas.read_feather): reads of so many bytes, none a multiple of a page.
        let (n, mut habit) = (4_260_016u64, Habit::default());
        let rights = [0, 1, 2, 3, 4].map(|index| {
            let at = 1664 + index * n;
            let last = (index > 0).then_some(at + 1);
            let source = Some(Source { last, ..source(at / 4096 * 4096 + 1664, 1 << 27).unwrap() });
            read(&mut habit, n as usize + 33, source, 32, at)
        });
        assert_eq!(rights[3..], [true, true]);
    }

    #[test]
    fn what_fits_many_relations_does_not_replace_the_first_guess() {
        let mut habit = Habit::default();
        for _ in 0..9 {
            assert!(read(&mut habit, MIB, source(0, 1 << 20), 0, 0));
        }
        assert!(read(&mut habit, MIB, source(8192, (1 << 20) + 272), 0, 272));
        assert!(read(&mut habit, MIB, stream(128, (1 << 20) + 128), 0, 128));
    }

    fn sources() -> impl Strategy<Value = Option<Source>> {
        use proptest::option::of as may;
        let pair = || (may(any::<u64>()), may(any::<u64>()));
        let one = (any::<u64>(), may(any::<u64>()), any::<u64>(), any::<u64>(), pair());
        let within = || 0u64..1 << 40;
        let real = (within(), may(within()), within(), within(), pair());
        let of = |(position, sought, trailer, size, (listed, last))| Source {
            position,
            sought,
            trailer,
            size,
            listed,
            last,
        };
        proptest::option::of(prop_oneof![one.prop_map(of), real.prop_map(of)])
    }

    proptest! {
        #[test]
        fn every_place_is_one_that_malloc_may_give(
            habit in any::<[u16; 5]>(),
            bytes in prop_oneof![any::<usize>(), 0usize..1 << 30],
            source in sources(),
        ) {
            let place = Habit(habit).place(bytes, source);
            prop_assert!(place < PAGE && place.is_multiple_of(ALIGNMENT));
        }

        #[test]
        fn what_was_needed_once_is_the_place_the_next_time(
            bytes in 0usize..1 << 30,
            mut source in sources(),
            needed in 0usize..PAGE / ALIGNMENT,
            before in any::<[u16; 5]>(),
        ) {
            let needed = needed * ALIGNMENT;
            source.iter_mut().for_each(|source| source.listed = None);
            prop_assert_eq!(Habit::default().learn(bytes, source, needed).place(bytes, source), needed);
            // And seven times in a row, whatever was before.
            let learnt = (0..8).fold(Habit(before), |habit, _| habit.learn(bytes, source, needed));
            prop_assert_eq!(learnt.place(bytes, source), needed);
        }
    }
}
