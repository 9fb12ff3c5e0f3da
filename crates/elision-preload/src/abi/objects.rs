//! dlsym's answers, from the loader's list of objects, in its search order.
//!
//! dlsym itself calls malloc and free for errors, which the program's malloc would see. This file allocates and locks nothing,
//! and calls only resolvers (STT_GNU_IFUNC).
#![allow(unsafe_code)] // Structures of the loader and of mapped ELF files.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};
use libc::dl_phdr_info;
use object::NativeEndian as NATIVE;
use object::elf::{self, *};

type Entry = elf::Dyn64<NATIVE>;
type Symbol = elf::Sym64<NATIVE>;
type Number = object::U32<NATIVE>;

#[repr(C)]
pub(crate) struct Object {
    base: usize,
    name: *const c_char,
    dynamic: *const Entry,
    next: *const Object,
}

#[repr(C)]
struct Debug {
    version: c_int,
    objects: *const Object,
}

unsafe extern "C" {
    #[link_name = "_r_debug"]
    static DEBUG: Debug;
    #[link_name = "_DYNAMIC"]
    static OUR_DYNAMIC: [u64; 2];
}

/// The last object loaded before the program started. dlopen's may go at any moment.
static LAST: AtomicPtr<Object> = AtomicPtr::new(ptr::null_mut());

/// The objects loaded with the program, which is the first. Before any dlopen, the loader's first malloc or the constructor calls
/// this.
fn objects() -> impl Iterator<Item = &'static Object> {
    // SAFETY: the loader's list. These objects stay, and only the last one's `next` changes.
    let follow = |object: *const Object| unsafe { object.as_ref() };
    // SAFETY: as above.
    let first = follow(unsafe { (&raw const DEBUG.objects).read_volatile() });
    let mut last = LAST.load(Ordering::Acquire).cast_const();
    if last.is_null() {
        last = core::iter::successors(first, |object| follow(object.next)).last().map_or(last, ptr::from_ref);
        LAST.store(last.cast_mut(), Ordering::Release);
    }
    // SAFETY: takes a number.
    let kernels = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) as usize };
    core::iter::successors(first, move |object| {
        follow(if ptr::eq(*object, last) { ptr::null() } else { object.next })
    })
    // The loader does not search the vDSO.
    .filter(move |object| object.base == 0 || object.base != kernels)
}

#[derive(Clone, Copy)]
pub(crate) struct Found {
    pub(crate) address: *mut c_void,
    pub(crate) ours: bool,
    /// Is it a position-dependent executable's PLT entry, which it gives out as the function's address?
    pub(crate) entry: bool,
}

/// `dlsym(RTLD_NEXT, name)`.
pub(crate) fn next(name: &CStr) -> Option<*mut c_void> {
    let behind = objects().skip_while(|object| !object.is_ours()).skip(1);
    Some(search(behind, name)?.address)
}

/// `dlsym(RTLD_DEFAULT, name)`.
pub(crate) fn first(name: &CStr) -> Option<Found> {
    search(objects(), name)
}

fn search(mut objects: impl Iterator<Item = &'static Object>, name: &CStr) -> Option<Found> {
    objects.find_map(|object| {
        let (address, entry) = object.tables().find(name.to_bytes())?;
        Some(Found { address, ours: object.is_ours(), entry })
    })
}

/// `dlsym` in a loaded library, for plugins' libraries, which RTLD_NEXT does not reach. Only the function's caller keeps the
/// library loaded.
pub(crate) fn find_in(library: &CStr, name: &CStr) -> Option<*mut c_void> {
    struct Search<'a> {
        library: &'a CStr,
        name: &'a CStr,
        found: Option<*mut c_void>,
    }
    unsafe extern "C" fn look(info: *mut dl_phdr_info, _: usize, search: *mut c_void) -> c_int {
        // SAFETY: the loader's description of an object, and the local `search`.
        let (info, search) = unsafe { (&*info, &mut *search.cast::<Search<'_>>()) };
        // SAFETY: the loader gives their number.
        let headers = unsafe { core::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum as usize) };
        let base = info.dlpi_addr as usize;
        if let Some(header) = headers.iter().find(|header| header.p_type == libc::PT_DYNAMIC) {
            let dynamic = ptr::with_exposed_provenance(base.wrapping_add(header.p_vaddr as usize));
            let object = Object { base, name: info.dlpi_name, dynamic, next: ptr::null() };
            let tables = object.tables();
            if tables.soname.is_some_and(|named| named == search.library) {
                search.found = tables.find(search.name.to_bytes()).map(|(address, _)| address);
            }
        }
        search.found.is_some() as c_int
    }
    let mut search = Search { library, name, found: None };
    // SAFETY: the callback gets what it expects, and keeps nothing.
    unsafe { libc::dl_iterate_phdr(Some(look), (&raw mut search).cast()) };
    search.found
}

struct Tables {
    base: usize,
    symbols: *const Symbol,
    strings: *const c_char,
    versions: *const u16,
    gnu_hash: *const GnuHashHeader<NATIVE>,
    hash: *const Number,
    soname: Option<&'static CStr>,
}

impl Object {
    fn is_ours(&self) -> bool {
        ptr::eq(self.dynamic.cast(), &raw const OUR_DYNAMIC)
    }

    fn tables(&self) -> Tables {
        let mut tables = Tables {
            base: self.base,
            symbols: ptr::null(),
            strings: ptr::null(),
            versions: ptr::null(),
            gnu_hash: ptr::null(),
            hash: ptr::null(),
            soname: None,
        };
        let mut soname = None;
        let mut entry = self.dynamic;
        // SAFETY: the section ends with tag 0.
        while let Some(Entry { d_tag, d_val }) = unsafe { entry.as_ref() } {
            let value = d_val.get(NATIVE) as usize;
            // Where the section is writable, the loader has added the base.
            let table = if value < self.base { value.wrapping_add(self.base) } else { value };
            match d_tag.get(NATIVE) {
                DT_NULL => break,
                DT_HASH => tables.hash = ptr::with_exposed_provenance(table),
                DT_STRTAB => tables.strings = ptr::with_exposed_provenance(table),
                DT_SYMTAB => tables.symbols = ptr::with_exposed_provenance(table),
                DT_SONAME => soname = Some(value),
                DT_GNU_HASH => tables.gnu_hash = ptr::with_exposed_provenance(table),
                DT_VERSYM => tables.versions = ptr::with_exposed_provenance(table),
                _ => {}
            }
            // SAFETY: the last entry has tag 0.
            entry = unsafe { entry.add(1) };
        }
        if !tables.strings.is_null() {
            // SAFETY: a terminated string of the table.
            tables.soname = soname.map(|at| unsafe { CStr::from_ptr(tables.strings.add(at)) });
        }
        tables
    }
}

impl Tables {
    /// The default version of `name`, and [`Found::entry`].
    fn find(&self, name: &[u8]) -> Option<(*mut c_void, bool)> {
        if self.symbols.is_null() || self.strings.is_null() {
            return None;
        }
        // SAFETY: a loaded object's tables, laid out by the ELF specification.
        unsafe {
            match (self.gnu_hash.is_null(), self.hash.is_null()) {
                (false, _) => self.find_by_gnu_hash(name),
                (true, false) => self.find_by_hash(name),
                (true, true) => None,
            }
        }
    }

    /// # Safety: the table exists.
    unsafe fn find_by_gnu_hash(&self, name: &[u8]) -> Option<(*mut c_void, bool)> {
        let hash = elf::gnu_hash(name);
        let shift = hash as usize;
        // SAFETY: the header gives the numbers of 64-bit filter words and of chains (each its first symbol's number); then each
        // symbol from `symbol_base` on has a hash, odd at a chain's end.
        unsafe {
            let header = &*self.gnu_hash;
            let [buckets, base, words, second] =
                [header.bucket_count, header.symbol_base, header.bloom_count, header.bloom_shift]
                    .map(|number| number.get(NATIVE) as usize);
            let filter = self.gnu_hash.add(1).cast::<u64>();
            let word = filter.add((shift / 64).checked_rem(words)?).read();
            let bits = 1 << (shift % 64) | 1 << ((shift >> (second % 32)) % 64);
            if word & bits != bits {
                return None;
            }
            let chains = filter.add(words).cast::<u32>();
            let hashes = chains.add(buckets);
            let mut at = chains.add(shift.checked_rem(buckets)?).read() as usize;
            while at >= base {
                let its = hashes.add(at - base).read();
                if its | 1 == hash | 1
                    && let found @ Some(_) = self.defines(at, name)
                {
                    return found;
                }
                at = if its & 1 == 0 { at + 1 } else { 0 };
            }
        }
        None
    }

    /// # Safety: the table exists.
    unsafe fn find_by_hash(&self, name: &[u8]) -> Option<(*mut c_void, bool)> {
        let read = |at: usize| {
            // SAFETY: the numbers of chains and symbols, each chain's first symbol, each symbol's successor or 0.
            unsafe { self.hash.add(at).read() }.get(NATIVE) as usize
        };
        let buckets = read(0);
        let mut at = read(2 + (elf::hash(name) as usize).checked_rem(buckets)?);
        while at != 0 {
            // SAFETY: a symbol number of the table.
            if let found @ Some(_) = unsafe { self.defines(at, name) } {
                return found;
            }
            at = read(2 + buckets + at);
        }
        None
    }

    /// # Safety: the symbol exists.
    unsafe fn defines(&self, at: usize, name: &[u8]) -> Option<(*mut c_void, bool)> {
        // SAFETY: the caller's promise.
        let symbol = unsafe { self.symbols.add(at).as_ref()? };
        let (section, value) = (symbol.st_shndx.get(NATIVE), symbol.st_value.get(NATIVE) as usize);
        // (Thread-local data have no one address.)
        let takes = matches!(symbol.st_bind(), STB_GLOBAL | STB_WEAK | STB_GNU_UNIQUE)
            && matches!(symbol.st_type(), STT_NOTYPE | STT_OBJECT | STT_FUNC | STT_COMMON | STT_GNU_IFUNC);
        let public = !matches!(symbol.st_visibility(), STV_INTERNAL | STV_HIDDEN);
        if !takes || !public || value == 0 && section != SHN_ABS {
            return None;
        }
        if !self.versions.is_null() {
            // SAFETY: a number per symbol.
            let version = unsafe { self.versions.add(at).read() };
            // Not the default version.
            if version & VERSYM_VERSION > VER_NDX_GLOBAL && version & VERSYM_HIDDEN != 0 {
                return None;
            }
        }
        // SAFETY: a terminated string of the table.
        let its_name = unsafe { CStr::from_ptr(self.strings.add(symbol.st_name.get(NATIVE) as usize)) };
        if its_name.to_bytes() != name {
            return None;
        }
        let base = if section == SHN_ABS { 0 } else { self.base };
        let address: *mut c_void = ptr::with_exposed_provenance_mut(base.wrapping_add(value));
        if symbol.st_type() != STT_GNU_IFUNC || section == SHN_UNDEF {
            return Some((address, section == SHN_UNDEF));
        }
        // SAFETY: by the symbol's type, a resolver: no arguments, and an address as its result.
        let resolver =
            unsafe { core::mem::transmute::<*mut c_void, extern "C" fn() -> *mut c_void>(address) };
        Some((resolver(), false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::{Object as _, ObjectSymbol as _};
    use std::collections::BTreeSet;
    use std::ffi::CString;
    use std::path::PathBuf;
    use std::process::Command;

    /// Versioned, resolved, weak, protected, hidden and absolute symbols.
    const ODD: &str = r#"
        #include <stddef.h>
        int first_read(void) { return 1; }
        int second_read(void) { return 2; }
        __asm__(".symver first_read, read@A");
        __asm__(".symver second_read, read@@B");
        int old_write(void) { return 3; }
        __asm__(".symver old_write, write@A");
        static int chosen(void) { return 4; }
        static void *choose(void) { return chosen; }
        int pread(void) __attribute__((ifunc("choose")));
        __attribute__((weak)) int pwrite(void) { return 5; }
        __attribute__((visibility("protected"))) int readv(void) { return 6; }
        __attribute__((visibility("hidden"))) int writev(void) { return 7; }
        __asm__(".globl odd_absolute\nodd_absolute = 0x1234");
        __thread int odd_thread;
        int odd_data = 8;
    "#;

    fn names() -> BTreeSet<Vec<u8>> {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let drop_in = std::env::current_exe().unwrap().with_file_name("libelision_preload.so");
        assert!(drop_in.exists());
        let loaded = maps.lines().filter_map(|line| Some(PathBuf::from(&line[line.find('/')?..])));
        let mut names = BTreeSet::new();
        for path in loaded.chain([drop_in]).collect::<BTreeSet<_>>() {
            let Ok(bytes) = std::fs::read(&path) else { continue };
            let Ok(file) = object::File::parse(&*bytes) else { continue };
            let symbols = file.dynamic_symbols();
            let named = symbols.filter(|symbol| symbol.kind() != object::SymbolKind::Tls);
            names.extend(named.map(|symbol| symbol.name_bytes().unwrap().to_vec()));
        }
        names
    }

    fn all_agree() {
        let names = names();
        assert!(names.len() > 2000 && names.contains(&b"pwritev2"[..]));
        for name in names {
            let name = CString::new(name).unwrap();
            // SAFETY: C strings.
            let theirs =
                [libc::RTLD_NEXT, libc::RTLD_DEFAULT].map(|from| unsafe { libc::dlsym(from, name.as_ptr()) });
            let ours = [next(&name), first(&name).map(|found| found.address)];
            assert_eq!(ours.map(|found| found.unwrap_or(ptr::null_mut())), theirs, "{name:?}");
        }
    }

    #[test]
    fn names_are_found_as_dlsym_finds_them() {
        all_agree();
        if std::env::var_os("LD_PRELOAD").is_some() {
            return;
        }
        let made = tempfile::tempdir().unwrap();
        let (source, script) = (made.path().join("odd.c"), made.path().join("odd.map"));
        std::fs::write(&source, ODD).unwrap();
        std::fs::write(&script, "A {}; B { *; } A;").unwrap();
        for hashes in ["gnu", "sysv", "both"] {
            let library = made.path().join(format!("{hashes}.so"));
            let compiled = Command::new("cc")
                .args(["-shared", "-fPIC", "-fno-builtin", "-w", "-o"])
                .args([&library, &source])
                .arg(format!("-Wl,--hash-style={hashes},--version-script={}", script.display()))
                .output();
            assert!(compiled.as_ref().is_ok_and(|output| output.status.success()), "{compiled:?}");
            let run = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "abi::objects::tests::names_are_found_as_dlsym_finds_them"])
                .env("LD_PRELOAD", &library)
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&run.stdout);
            assert!(run.status.success() && said.contains("1 passed"), "{hashes}: {said}");
        }
    }

    #[test]
    fn a_library_is_found_by_its_own_name() {
        // SAFETY: a C string.
        let theirs = unsafe { libc::dlsym(libc::RTLD_NEXT, c"ferror".as_ptr()) };
        assert_eq!(find_in(c"libc.so.6", c"ferror"), Some(theirs));
        assert_eq!(find_in(c"libc.so.6", c"no_such_name"), None);
        assert_eq!(find_in(c"libno.so.1", c"ferror"), None);
    }
}
