//! libc's own reads, writes and closes for a FILE go through two exported tables (byte and wide streams), of which glibc checks
//! only the section: three entries of each are replaced. The layouts are glibc's ABI since 2.1, but undocumented. Unless all is
//! as expected, nothing changes, [`visible`] is false, and a descriptor that ever had a FILE is owned no longer.
#![allow(unsafe_code)] // libc's tables and structures.

use core::ffi::{CStr, c_void};
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use elision_sys::raw;
use libc::{FILE, c_int, ssize_t};

use crate::abi::objects;
use crate::state::descriptions::{self, changing};
use crate::state::heap::expected;
use crate::wrap::offer::{self, Cancel, offer_write, write_matters};

const READ: usize = 14;
const WRITE: usize = 15;
const CLOSE: usize = 17;

/// Offsets in FILE, in bytes.
const FLAGS: usize = 0;
const FILENO: usize = 0x70;
const OFFSET: usize = 0x90;
const TABLE: usize = 0xd8;

/// The flags' constant half, and the error indicator.
const MAGIC: u32 = 0xfbad_0000;
const MAGIC_MASK: u32 = 0xffff_0000;
const ERROR: u32 = 0x20;

const PAGE: usize = 4096;

type Transfer = unsafe extern "C-unwind" fn(*mut FILE, *mut c_void, ssize_t) -> ssize_t;
type Close = unsafe extern "C-unwind" fn(*mut FILE) -> c_int;

static ORIGINAL_READ: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());
static ORIGINAL_WRITE: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());
static ORIGINAL_CLOSE: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());

static VISIBLE: AtomicBool = AtomicBool::new(false);

static TABLES: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

/// Streams of mode `m` use other tables. Safety: `file` is a FILE of glibc's.
pub(crate) unsafe fn led_through_here(file: *mut FILE) -> bool {
    // SAFETY: the caller's promise; the table follows FILE's public part.
    let table = unsafe { field::<AtomicUsize>(file, TABLE) }.load(Ordering::Relaxed);
    TABLES.iter().any(|known| known.load(Ordering::Relaxed) == table)
}

pub(crate) fn visible() -> bool {
    VISIBLE.load(Ordering::Relaxed)
}

/// Atomic: other threads may look without the lock. Safety: `file` is a FILE of glibc's, with a `T` there.
unsafe fn field<'a, T>(file: *mut FILE, at: usize) -> &'a T {
    // SAFETY: the caller's promise.
    unsafe { &*file.byte_add(at).cast::<T>() }
}

/// Safety: `file` is a FILE of glibc's.
pub(crate) unsafe fn descriptor(file: *mut FILE) -> c_int {
    // SAFETY: the caller's promise; `install` has found the field.
    unsafe { field::<AtomicU32>(file, FILENO) }.load(Ordering::Relaxed) as c_int
}

unsafe extern "C-unwind" fn read(file: *mut FILE, buf: *mut c_void, len: ssize_t) -> ssize_t {
    // SAFETY: stdio passes its FILE.
    let fd = unsafe { descriptor(file) };
    expected::used(fd);
    offer::reading(fd, buf as usize, len as usize, Some(None), Cancel::No, || {
        // SAFETY: the original entry.
        unsafe { original::<Transfer>(&ORIGINAL_READ)(file, buf, len) }
    })
}

/// Writes all. An error is left in the FILE and `errno`.
unsafe extern "C-unwind" fn write(file: *mut FILE, buf: *mut c_void, len: ssize_t) -> ssize_t {
    // SAFETY: stdio passes its FILE.
    let fd = unsafe { descriptor(file) };
    if !write_matters(fd, len as usize) {
        // SAFETY: the original entry.
        return unsafe { original::<Transfer>(&ORIGINAL_WRITE)(file, buf, len) };
    }
    changing(fd, || {
        let written = match offer_write(fd, buf as usize, len as usize, None, Cancel::No) {
            None => 0,
            Some(failed) if failed < 0 => {
                // SAFETY: `install` has found the flags.
                unsafe { field::<AtomicU32>(file, FLAGS) }.fetch_or(ERROR, Ordering::Relaxed);
                return 0;
            }
            Some(written) => written,
        };
        if written > 0 {
            // SAFETY: between two fields that `install` has found. Negative: unknown.
            let offset = unsafe { field::<AtomicI64>(file, OFFSET) };
            let before = offset.load(Ordering::Relaxed);
            if before >= 0 {
                offset.store(before.wrapping_add(written as i64), Ordering::Relaxed);
            }
        }
        if written == len {
            return written;
        }
        // SAFETY: the original entry.
        written
            + unsafe {
                original::<Transfer>(&ORIGINAL_WRITE)(file, buf.byte_add(written as usize), len - written)
            }
    })
}

unsafe extern "C-unwind" fn close(file: *mut FILE) -> c_int {
    // SAFETY: stdio passes its FILE.
    descriptions::closing(unsafe { descriptor(file) });
    // SAFETY: the original entry.
    unsafe { original::<Close>(&ORIGINAL_CLOSE)(file) }
}

/// Safety: `install` has filled the slot, with an `F`.
unsafe fn original<F: Copy>(slot: &AtomicPtr<c_void>) -> F {
    const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
    // SAFETY: the caller's promise.
    unsafe { core::mem::transmute_copy(&slot.load(Ordering::Relaxed)) }
}

fn symbol(name: &CStr) -> *mut c_void {
    objects::next(name).unwrap_or(core::ptr::null_mut())
}

pub(crate) fn install() {
    let expected = [
        (READ, symbol(c"_IO_file_read"), &ORIGINAL_READ, read as Transfer as *mut c_void),
        (WRITE, symbol(c"_IO_file_write"), &ORIGINAL_WRITE, write as Transfer as *mut c_void),
        (CLOSE, symbol(c"_IO_file_close"), &ORIGINAL_CLOSE, close as Close as *mut c_void),
    ];
    let tables =
        [symbol(c"_IO_file_jumps"), symbol(c"_IO_wfile_jumps")].map(|table| table.cast::<AtomicUsize>());
    if tables.iter().any(|table| table.is_null()) || !layout_holds() {
        return;
    }
    for &(slot, function, _, _) in &expected {
        for table in tables {
            // SAFETY: glibc's table has 21 pointers; nothing else stores to it.
            let found = unsafe { &*table.add(slot) }.load(Ordering::Relaxed);
            if function.is_null() || found != function as usize {
                return;
            }
        }
    }
    for (_, function, keep, _) in &expected {
        keep.store(*function, Ordering::Relaxed);
    }
    // SAFETY: within the tables.
    let slots =
        tables.map(|table| unsafe { [table.add(READ), table.add(CLOSE + 1)] }.map(|slot| slot as usize));
    let [start, end] = [slots[0][0].min(slots[1][0]), slots[0][1].max(slots[1][1])];
    let replaced = writable(start, end - start, || {
        for &(slot, _, _, ours) in &expected {
            // SAFETY: within the tables, and writable now.
            tables
                .iter()
                .for_each(|table| unsafe { &*table.add(slot) }.store(ours as usize, Ordering::Relaxed));
        }
    });
    if replaced.is_none() {
        return;
    }
    for (known, table) in TABLES.iter().zip(tables) {
        known.store(table as usize, Ordering::Relaxed);
    }
    VISIBLE.store(true, Ordering::Relaxed);
}

/// Tries the offsets on the standard streams.
fn layout_holds() -> bool {
    [c"stdin", c"stdout", c"stderr"].into_iter().all(|name| {
        let stream = symbol(name).cast::<*mut FILE>();
        if stream.is_null() {
            return false;
        }
        // SAFETY: libc's variable, and its FILE.
        unsafe {
            let file = *stream;
            let before = crate::abi::raw::errno();
            let fd = if file.is_null() { -1 } else { libc::fileno(file) };
            crate::abi::raw::set_errno(before);
            fd >= 0
                && descriptor(file) == fd
                && field::<AtomicU32>(file, FLAGS).load(Ordering::Relaxed) & MAGIC_MASK == MAGIC
        }
    })
}

/// Runs `store` while these read-only bytes can be written.
fn writable(addr: usize, len: usize, store: impl FnOnce()) -> Option<()> {
    let start = addr & !(PAGE - 1);
    let end = (addr + len).next_multiple_of(PAGE);
    let protect = |protection: c_int| {
        // SAFETY: whole pages of libc's data, which stay readable.
        unsafe { raw::syscall(libc::SYS_mprotect, [start, end - start, protection as usize, 0, 0, 0]) }.ok()
    };
    match read_only_after_loading(start, end) {
        // The loader does not protect the pages, or other data with them.
        false => return None,
        true => protect(libc::PROT_READ | libc::PROT_WRITE)?,
    };
    store();
    protect(libc::PROT_READ).map(|_| ())
}

fn read_only_after_loading(start: usize, end: usize) -> bool {
    struct Search {
        start: usize,
        end: usize,
        found: bool,
    }
    unsafe extern "C" fn look(info: *mut libc::dl_phdr_info, _: usize, search: *mut c_void) -> c_int {
        // SAFETY: the loader's object, and the structure below.
        let (info, search) = unsafe { (&*info, &mut *search.cast::<Search>()) };
        // SAFETY: as many headers as the loader says.
        let headers = unsafe { core::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum as usize) };
        for header in headers {
            if header.p_type == libc::PT_GNU_RELRO {
                let from = (info.dlpi_addr + header.p_vaddr) as usize;
                let to = (from + header.p_memsz as usize) & !(PAGE - 1);
                search.found |= from & !(PAGE - 1) <= search.start && search.end <= to;
            }
        }
        search.found as c_int
    }
    let mut search = Search { start, end, found: false };
    // SAFETY: the callback gets its structure.
    unsafe { libc::dl_iterate_phdr(Some(look), (&raw mut search).cast()) };
    search.found
}
