//! Where a file itself says that so many bytes are. Pure: the caller passes what reads.
//!
//! Two forms are known: an offset of 64 bits with a length of 64 bits behind it, near the file's begin or where the last big read ended
//! (HDF5, ELF); and the directory of a ZIP archive (torch). Where more than one place fits, it is the one behind the last big read's; in
//! an archive the one with the next number in its name.

/// Bytes of the file at a position; how many there were.
type Read<'a> = &'a dyn Fn(u64, &mut [u8]) -> usize;

/// What is looked at: of a header, of an archive's end.
const HEADER: u64 = 4096;
const DIRECTORY: u64 = 32 << 10;

/// A record of a ZIP archive's directory, without the name; a member's header.
const RECORD: usize = 46;
const MEMBER: usize = 30;

/// The stack holds that much of the file; windows overlap by a record and its name.
const WINDOW: usize = 1024;
const OVERLAP: usize = 128;

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at + N)?;
    Some(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
}

/// Calls `found` for each place within `[start, end)`, with what follows it.
fn scan(read: Read, start: u64, end: u64, mut found: impl FnMut(&[u8])) {
    let mut window = [0; WINDOW];
    let mut at = start;
    while at < end {
        let got = read(at, &mut window);
        let Some(bytes) = window.get(..got) else { return };
        let last = got < WINDOW || end - at <= WINDOW as u64;
        let step = if last { got } else { WINDOW - OVERLAP };
        (0..step).filter_map(|place| bytes.get(place..)).for_each(&mut found);
        if last {
            return;
        }
        at += step as u64;
    }
}

/// Where `bytes` of a file of `size` begin. `after`: where the last big read ended, or 0.
pub fn find(read: Read, bytes: u64, size: u64, after: u64) -> Option<u64> {
    let mut signature = [0; 4];
    if read(0, &mut signature) == 4 && signature == *b"PK\x03\x04" {
        member(read, bytes, size, after)
    } else {
        pair(read, bytes, size, after)
    }
}

fn pair(read: Read, bytes: u64, size: u64, after: u64) -> Option<u64> {
    let mut best: Option<(bool, u64)> = None;
    let mut look = |here: &[u8]| {
        if here.get(8..16) == Some(&bytes.to_le_bytes())
            && let Some(offset) = number::<8>(here, 0)
            && (1..=size.saturating_sub(bytes)).contains(&offset)
        {
            let found = (offset < after, offset);
            best = Some(best.map_or(found, |best| best.min(found)));
        }
    };
    scan(read, 0, HEADER.min(size), &mut look);
    if after >= HEADER {
        scan(read, after, after.saturating_add(HEADER).min(size), &mut look);
    }
    best.map(|(_, offset)| offset)
}

/// A member that is not compressed: the last number in its name (none: the greatest), where its header is, its length.
fn stored(record: &[u8]) -> Option<(u64, u64, u64)> {
    if !record.starts_with(b"PK\x01\x02") || number::<2>(record, 10)? != 0 {
        return None;
    }
    let name = record.get(RECORD..)?;
    let name = name.get(..(number::<2>(record, 28)? as usize).min(name.len()))?;
    let end = name.iter().rposition(u8::is_ascii_digit);
    let digits = name.get(..end.map_or(0, |end| end + 1))?.rsplit(|byte| !byte.is_ascii_digit()).next()?;
    let value = |index: u64, digit: &u8| index.wrapping_mul(10).wrapping_add(u64::from(digit & 15));
    let index = if digits.is_empty() { u64::MAX } else { digits.iter().fold(0, value) };
    Some((index, number::<4>(record, 42)?, number::<4>(record, 24)?))
}

fn member(read: Read, bytes: u64, size: u64, after: u64) -> Option<u64> {
    let members = |found: &mut dyn FnMut((u64, u64, u64))| {
        scan(read, size.saturating_sub(DIRECTORY), size, |here| {
            if let Some(member) = stored(here) {
                found(member);
            }
        });
    };
    let mut last: Option<(u64, u64)> = None;
    if after > 0 {
        members(&mut |(index, header, _)| {
            if header < after && last.is_none_or(|(_, before)| before < header) {
                last = Some((index, header));
            }
        });
    }
    let mut best: Option<(bool, u64, u64)> = None;
    members(&mut |(index, header, len)| {
        if len == bytes {
            let found = (last.is_some_and(|last| (index, header) <= last), index, header);
            best = Some(best.map_or(found, |best| best.min(found)));
        }
    });
    let (_, _, header) = best?;
    let mut local = [0; MEMBER];
    let whole = read(header, &mut local) == MEMBER && local.starts_with(b"PK\x03\x04");
    let begin = header + MEMBER as u64 + number::<2>(&local, 26)? + number::<2>(&local, 28)?;
    (whole && begin <= size.saturating_sub(bytes)).then_some(begin)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(file: &[u8]) -> impl Fn(u64, &mut [u8]) -> usize + '_ {
        |at, bytes: &mut [u8]| {
            let rest = file.get(usize::try_from(at).unwrap()..).unwrap_or(&[]);
            let got = rest.len().min(bytes.len());
            bytes[..got].copy_from_slice(&rest[..got]);
            got
        }
    }

    const LEN: u64 = 0x123456;

    /// Pairs of an offset of `LEN` bytes, and the place of the pair.
    fn with_pairs(size: usize, pairs: &[(usize, u64)]) -> Vec<u8> {
        let mut file = vec![0xa5; size];
        for &(at, offset) in pairs {
            file[at..at + 8].copy_from_slice(&offset.to_le_bytes());
            file[at + 8..at + 16].copy_from_slice(&LEN.to_le_bytes());
        }
        file
    }

    #[test]
    fn the_next_of_the_pairs_is_found() {
        // At the end of a window, within the overlap, behind it; one whose bytes would go beyond the file.
        for at in [0, 77, 887, 888, 895, 896, 897, 1008, 1023, 1024, 4079] {
            let file = with_pairs(3 << 20, &[(at, 2048), (at + 900, 3 << 20)]);
            assert_eq!(find(&of(&file), LEN, 3 << 20, 0), Some(2048), "{at}");
            assert_eq!(find(&of(&file), LEN - 1, 3 << 20, 0), None, "{at}");
        }
        let file =
            with_pairs(9 << 20, &[(930, 2048), (1530, 2048 + LEN), (2048 + 2 * LEN as usize + 130, 7 << 20)]);
        let next = |after| find(&of(&file), LEN, 9 << 20, after);
        assert_eq!(
            [0, 2048 + LEN, 2048 + 2 * LEN, 8 << 20].map(next),
            [Some(2048), Some(2048 + LEN), Some(7 << 20), Some(2048)]
        );
    }

    /// A stored archive of `LEN` zeroes for each name; and where each begins.
    fn archive(names: &[&str]) -> (Vec<u8>, Vec<u64>) {
        let (mut file, mut directory, mut begins) = (vec![], vec![], vec![]);
        for (n, name) in names.iter().enumerate() {
            let header = file.len() as u32;
            let extra = vec![7; 10 + n];
            file.extend(b"PK\x03\x04");
            file.extend([0; 22]);
            file.extend((name.len() as u16).to_le_bytes());
            file.extend((extra.len() as u16).to_le_bytes());
            file.extend([name.as_bytes(), &extra].concat());
            begins.push(file.len() as u64);
            file.extend(vec![0; LEN as usize]);
            directory.extend(b"PK\x01\x02");
            directory.extend([0; 16]);
            directory.extend([(LEN as u32).to_le_bytes(), (LEN as u32).to_le_bytes()].concat());
            directory.extend((name.len() as u16).to_le_bytes());
            directory.extend([0; 12]);
            directory.extend(header.to_le_bytes());
            directory.extend(name.as_bytes());
        }
        file.extend(directory);
        file.extend([0; 22]);
        (file, begins)
    }

    #[test]
    fn the_member_with_the_next_number_is_found() {
        let names = ["a/data/0", "a/data/1", "a/data/10", "a/data/2", "a/data/9", "a/version"];
        let (file, begins) = archive(&names);
        let size = file.len() as u64;
        let after = |n: usize| find(&of(&file), LEN, size, begins[n] + LEN);
        assert_eq!(find(&of(&file), LEN, size, 0), Some(begins[0]));
        assert_eq!([0, 1, 3, 4, 2].map(after), [1, 3, 4, 2, 5].map(|n| Some(begins[n])));
        assert_eq!(find(&of(&file), LEN + 33, size, 0), None);
    }

    proptest! {
        #[test]
        fn what_is_found_is_within_the_file(
            mut file in proptest::collection::vec(any::<u8>(), 0..9000),
            archived in any::<bool>(),
            marks in proptest::collection::vec((0usize..9000, any::<bool>(), 0u64..9000), 0..9),
            bytes in 0u64..9000,
            size in prop_oneof![0u64..9000, any::<u64>()],
            after in prop_oneof![0u64..9000, any::<u64>()],
        ) {
            for (at, zip, offset) in marks {
                let mark = if zip { b"PK\x01\x02".to_vec() } else { [offset.to_le_bytes(), bytes.to_le_bytes()].concat() };
                if let Some(place) = file.get_mut(at..at + mark.len()) {
                    place.copy_from_slice(&mark);
                }
            }
            if archived && let Some(place) = file.get_mut(..4) {
                place.copy_from_slice(b"PK\x03\x04");
            }
            if let Some(begin) = find(&of(&file), bytes, size, after) {
                prop_assert!(begin <= size - bytes);
            }
        }
    }
}
