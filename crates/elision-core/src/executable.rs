//! What kind of program a file holds: can the drop-in be loaded into it? (elf(5), execve(2))
//!
//! Runs between fork and exec and in signal handlers: no allocation, little stack.

use object::elf::{
    DT_NEEDED, DT_NULL, DT_STRTAB, Dyn64, ELFCLASS32, ELFCLASS64, ELFDATA2LSB, ELFDATA2MSB, EM_AARCH64,
    EM_X86_64, FileHeader64, PT_DYNAMIC, PT_INTERP, PT_LOAD, ProgramHeader64,
};
use object::{LittleEndian, Pod};

/// As much of a file as the kernel looks at.
const BEGINNING: usize = 256;

/// Passed in: the drop-in's stack may be small.
#[derive(Clone, Copy)]
pub struct Room {
    pieces: [[u8; 512]; 2],
    text: [u8; BEGINNING],
}

impl Default for Room {
    fn default() -> Room {
        Room { pieces: [[0; 512]; 2], text: [0; BEGINNING] }
    }
}

fn kept<'a>(text: &'a mut [u8; BEGINNING], bytes: &[u8]) -> &'a [u8] {
    let len = bytes.len().min(BEGINNING);
    text[..len].copy_from_slice(&bytes[..len]);
    &text[..len]
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Program<'a> {
    /// Its first line, without `#!`.
    Script(&'a [u8]),
    /// Of 32 bits.
    Narrow,
    /// For another processor.
    Foreign,
    /// Linked statically, or itself a loader.
    Bare,
    Loaded {
        loader: &'a [u8],
        /// A needed library that must be loaded before all others.
        first: Option<&'static str>,
    },
    Unknown,
}

/// gcc's and clang's address sanitizers. (clang links its own statically by default.)
const FIRST: [&str; 2] = ["libasan", "libclang_rt.asan"];

/// Does this library end the program unless loaded first?
pub fn must_be_first(library: &[u8]) -> Option<&'static str> {
    let name = name_of(library);
    FIRST.into_iter().find(|first| name.starts_with(first.as_bytes()))
}

fn name_of(path: &[u8]) -> &[u8] {
    path.rsplit(|&byte| byte == b'/').next().unwrap_or_default()
}

pub fn is_glibc_loader(path: &[u8]) -> bool {
    name_of(path).starts_with(b"ld-linux")
}

pub fn is_named_like_a_loader(path: &[u8]) -> bool {
    [b"ld-".as_slice(), b"ld.so", b"libc."].iter().any(|start| name_of(path).starts_with(start))
}

pub const MACHINE: u16 = if cfg!(target_arch = "aarch64") { EM_AARCH64 } else { EM_X86_64 };

const LE: LittleEndian = LittleEndian;
type Segment = ProgramHeader64<LittleEndian>;

/// The kernel executes no file with other program headers.
const SEGMENT: u16 = size_of::<Segment>() as u16;
const MOST_SEGMENTS: u16 = u16::MAX / SEGMENT;
const MOST_ENTRIES: u64 = 4096;

/// Fills the buffer from an offset on; returns the bytes read.
pub type Read<'a> = &'a dyn Fn(&mut [u8], u64) -> usize;

struct Window<'a> {
    read: Read<'a>,
    at: u64,
    bytes: &'a mut [u8; 512],
    len: usize,
}

impl<'a> Window<'a> {
    fn new(read: Read<'a>, bytes: &'a mut [u8; 512]) -> Window<'a> {
        Window { read, at: 0, bytes, len: 0 }
    }

    /// At least `wanted` bytes, unless the file ends before.
    fn look(&mut self, offset: u64, wanted: usize) -> &[u8] {
        let start = offset.wrapping_sub(self.at);
        if start.checked_add(wanted as u64).is_some_and(|end| end <= self.len as u64) {
            return &self.bytes[start as usize..self.len];
        }
        self.at = offset;
        self.len = (self.read)(self.bytes, offset);
        &self.bytes[..self.len]
    }

    fn get<T: Pod>(&mut self, offset: u64) -> Option<T> {
        Some(*object::from_bytes(self.look(offset, size_of::<T>())).ok()?.0)
    }

    fn segment(&mut self, (start, count): (u64, u16), number: u16) -> Option<Segment> {
        if number >= count {
            return None;
        }
        self.get(start.checked_add(u64::from(number * SEGMENT))?)
    }

    fn entry(&mut self, section: &Segment, number: u64) -> Option<(i64, u64)> {
        type Entry = Dyn64<LittleEndian>;
        const SIZE: u64 = size_of::<Entry>() as u64;
        if number >= (section.p_filesz.get(LE) / SIZE).min(MOST_ENTRIES) {
            return None;
        }
        let entry: Entry = self.get(section.p_offset.get(LE).checked_add(number * SIZE)?)?;
        Some((entry.d_tag.get(LE), entry.d_val.get(LE))).filter(|&(tag, _)| tag != DT_NULL)
    }
}

pub fn examine<'a>(read: Read<'_>, room: &'a mut Room) -> Program<'a> {
    let Room { pieces: [piece, names], text } = room;
    let window = &mut Window::new(read, piece);
    let beginning = window.look(0, BEGINNING);
    if let Some(line) = beginning.strip_prefix(b"#!") {
        let line = &line[..line.len().min(BEGINNING - 2)];
        return Program::Script(kept(text, line.split(|&byte| byte == b'\n').next().unwrap_or_default()));
    }
    match beginning {
        [0x7f, b'E', b'L', b'F', ELFCLASS32, ..] => Program::Narrow,
        [0x7f, b'E', b'L', b'F', ELFCLASS64, ELFDATA2MSB, ..] => Program::Foreign,
        [0x7f, b'E', b'L', b'F', ELFCLASS64, ELFDATA2LSB, ..] => {
            elf(window, &mut Window::new(read, names), text).unwrap_or(Program::Unknown)
        }
        _ => Program::Unknown,
    }
}

fn elf<'a>(
    window: &mut Window<'_>,
    names: &mut Window<'_>,
    text: &'a mut [u8; BEGINNING],
) -> Option<Program<'a>> {
    let header: FileHeader64<LittleEndian> = window.get(0)?;
    if header.e_machine.get(LE) != MACHINE {
        return Some(Program::Foreign);
    }
    let segments = (header.e_phoff.get(LE), header.e_phnum.get(LE));
    if header.e_phentsize.get(LE) != SEGMENT || segments.1 > MOST_SEGMENTS {
        return None;
    }
    let mut of_kind = |kind| {
        (0..)
            .map_while(|number| window.segment(segments, number))
            .find(|segment| segment.p_type.get(LE) == kind)
    };
    let Some(name) = of_kind(PT_INTERP) else { return Some(Program::Bare) };
    let dynamic = of_kind(PT_DYNAMIC);
    let len = BEGINNING.min(name.p_filesz.get(LE) as usize);
    let loader = window.look(name.p_offset.get(LE), len);
    let loader = loader[..loader.len().min(len)].split(|&byte| byte == 0).next()?;
    let loader = kept(text, loader);
    let first = dynamic.and_then(|dynamic| needed_first(window, names, segments, &dynamic));
    Some(Program::Loaded { loader, first })
}

fn needed_first(
    window: &mut Window<'_>,
    names: &mut Window<'_>,
    segments: (u64, u16),
    dynamic: &Segment,
) -> Option<&'static str> {
    let mut entries = (0..).map_while(|number| window.entry(dynamic, number));
    let (_, addr) = entries.find(|&(tag, _)| tag == DT_STRTAB)?;
    let strings = (0..).map_while(|number| window.segment(segments, number)).find_map(|segment| {
        let inside = addr.checked_sub(segment.p_vaddr.get(LE))?;
        let holds = segment.p_type.get(LE) == PT_LOAD && inside < segment.p_filesz.get(LE);
        holds.then(|| segment.p_offset.get(LE).checked_add(inside)).flatten()
    })?;
    let longest = FIRST.iter().map(|name| name.len()).max()?;
    let needed = (0..).map_while(|number| window.entry(dynamic, number)).filter(|&(tag, _)| tag == DT_NEEDED);
    needed.map(|(_, name)| name).find_map(|name| {
        let name = names.look(strings.checked_add(name)?, longest);
        must_be_first(name.split(|&byte| byte == 0).next()?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::FileExt;

    fn of(bytes: &[u8]) -> Program<'static> {
        let read = |room: &mut [u8], offset| {
            let rest = usize::try_from(offset).ok().and_then(|start| bytes.get(start..)).unwrap_or_default();
            let len = rest.len().min(room.len());
            room[..len].copy_from_slice(&rest[..len]);
            len
        };
        examine(&read, Box::leak(Box::new(Room::default())))
    }

    fn elf(loader: &str, libraries: &[&str]) -> Vec<u8> {
        let mut strings = vec![0];
        let mut dynamic = Vec::new();
        for library in libraries {
            dynamic.extend([DT_NEEDED as u64, strings.len() as u64]);
            strings.extend([library.as_bytes(), &[0]].concat());
        }
        let (above, segments) = (1 << 20, 3);
        let name_at = 64 + segments * 56;
        let strings_at = name_at + loader.len() as u64 + 1;
        let dynamic_at = strings_at + strings.len() as u64;
        dynamic.extend([DT_STRTAB as u64, above + strings_at, DT_NULL as u64, 0]);
        let dynamic: Vec<u8> = dynamic.into_iter().flat_map(u64::to_le_bytes).collect();
        let end = dynamic_at + dynamic.len() as u64;

        let mut file = vec![0; 64];
        file[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
        file[18..20].copy_from_slice(&MACHINE.to_le_bytes());
        file[32] = 64;
        file[54..58].copy_from_slice(&[56, 0, segments as u8, 0]);
        let places = [
            (PT_LOAD, 0, end),
            (PT_INTERP, name_at, loader.len() as u64 + 1),
            (PT_DYNAMIC, dynamic_at, dynamic.len() as u64),
        ];
        for (kind, offset, len) in places {
            let words = [u64::from(kind), offset, above + offset, above + offset, len, len, 8];
            file.extend(words.into_iter().flat_map(u64::to_le_bytes));
        }
        [&file, loader.as_bytes(), &[0], &strings, &dynamic].concat()
    }

    fn loaded(program: Program) -> Option<(String, Option<&'static str>)> {
        match program {
            Program::Loaded { loader, first } => Some((String::from_utf8_lossy(loader).into(), first)),
            _ => None,
        }
    }

    #[test]
    fn this_very_program_is_loaded_by_glibc() {
        let file = std::fs::File::open("/proc/self/exe").expect("this test");
        let mut room = Room::default();
        let found = examine(&|room, offset| file.read_at(room, offset).unwrap_or(0), &mut room);
        let (loader, first) = loaded(found).expect("dynamic");
        assert!(is_glibc_loader(loader.as_bytes()), "{loader}");
        assert_eq!(first, None);
    }

    #[test]
    fn loaders_and_libraries_are_found() {
        let glibc = "/lib64/ld-linux-x86-64.so.2";
        assert_eq!(loaded(of(&elf(glibc, &["libm.so.6", "libc.so.6"]))), Some((glibc.into(), None)));
        assert_eq!(
            loaded(of(&elf(glibc, &["libm.so.6", "libasan.so.8"]))),
            Some((glibc.into(), Some("libasan")))
        );
        let many: Vec<String> = (0..200).map(|number| format!("lib{number}.so")).collect();
        let mut many: Vec<&str> = many.iter().map(String::as_str).collect();
        many.push("libclang_rt.asan-x86_64.so");
        assert_eq!(loaded(of(&elf(glibc, &many))), Some((glibc.into(), Some("libclang_rt.asan"))));
        let (loader, _) = loaded(of(&elf("/lib/ld-musl-x86_64.so.1", &[]))).expect("loaded");
        assert!(!is_glibc_loader(loader.as_bytes()) && is_glibc_loader(glibc.as_bytes()));
        assert_eq!(must_be_first(b"/usr/lib/libasan.so.8"), Some("libasan"));
        assert_eq!(must_be_first(b"/libasan.so/libc.so.6"), None);
        for (path, expected) in [
            (glibc, true),
            ("/lib/ld-2.31.so", true),
            ("/lib/libc.so", true),
            ("ld", false),
            ("/ld-x/a", false),
        ] {
            assert_eq!(is_named_like_a_loader(path.as_bytes()), expected, "{path}");
        }
    }

    #[test]
    fn kinds_are_told_apart() {
        let mut file = elf("/l", &[]);
        file[4] = 1;
        assert!(matches!(of(&file), Program::Narrow));
        file[4..6].copy_from_slice(&[2, 2]);
        assert!(matches!(of(&file), Program::Foreign));
        file[5] = 1;
        file[18] ^= 1;
        assert!(matches!(of(&file), Program::Foreign));
        file[18] ^= 1;
        file[56] = 1; // the mapping alone
        assert!(matches!(of(&file), Program::Bare));
        assert!(matches!(of(b""), Program::Unknown));
        assert!(matches!(of(b"echo"), Program::Unknown));
        let Program::Script(line) = of(b"#! /bin/sh -e\ntrue\n") else { panic!("a script") };
        assert_eq!(line, b" /bin/sh -e");
        let Program::Script(line) = of(&[b"#!".as_slice(), &[b'a'; 1000]].concat()) else {
            panic!("a script")
        };
        assert_eq!(line.len(), BEGINNING - 2);
    }

    proptest! {
        #[test]
        fn spoiled_files_are_survived(
            cut in 0usize..1000,
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        ) {
            let mut file = elf("/lib64/ld-linux-x86-64.so.2", &["libasan.so.8"]);
            for (at, byte) in changes {
                let at = at.index(file.len());
                file[at] = byte;
            }
            file.truncate(cut.max(7));
            of(&file);
        }
    }
}
