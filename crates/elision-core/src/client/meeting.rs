//! Where the copies of this library in one program find the copy that serves them all.
//!
//! The drop-in exports a table, which the loader finds by name. Without the drop-in the first copy maps a page at a known address,
//! and names its table there: libraries that are loaded privately see no names of each other. A child has the page after fork,
//! as it has the copies; a program after exec has neither.
#![allow(unsafe_code)] // Looks at memory that another copy has set up.

use core::ffi::{CStr, c_void};
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering::*};
use elision_sys::raw::Errno;
use elision_sys::{PAGE, memory, task};

/// In the lower half of the address space, which the kernel gives to nobody who does not ask for it, nor a sanitizer to its shadow.
const PLACE: usize = 0x1e11_5100_0000;
const SIGN: u64 = 0x5e61_1a3d_0c97_e2b4;

#[repr(C)]
struct Page {
    sign: AtomicU64,
    /// 0: the first copy has just mapped the page.
    table: AtomicUsize,
}

/// The first copy needs two stores between mapping and naming.
const PATIENCE_MS: u64 = 1_000;

pub(crate) enum Served<T: 'static> {
    Here(&'static T),
    By(&'static T),
    /// By a copy of another version, or there is no telling.
    Nobody,
}

impl<T> Served<T> {
    pub(crate) fn engine(self) -> Option<&'static T> {
        match self {
            Served::Here(engine) | Served::By(engine) => Some(engine),
            Served::Nobody => None,
        }
    }
}

/// Null: not decided. [`NOBODY`], or a table.
static TABLE: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
static NOBODY: u8 = 0;

fn nobody() -> *mut c_void {
    ptr::from_ref(&NOBODY).cast_mut().cast()
}

/// The first call decides, for good. A table begins with its version; the loader's lock is taken, so no signal handler may call.
pub(crate) fn served<T>(own: &'static T, version: u64, symbol: &CStr) -> Served<T> {
    let own_table = ptr::from_ref(own).cast_mut().cast();
    let mut table = TABLE.load(Acquire);
    if table.is_null() {
        let found = exported(symbol).or_else(|| first(own_table)).filter(|&table| {
            // SAFETY: a table of some version, which is never unmapped.
            unsafe { table.cast::<u64>().read() == version }
        });
        table = found.unwrap_or(nobody());
        // Two threads may both decide: of the first, which has mapped the page, and of the same.
        table = TABLE
            .compare_exchange(ptr::null_mut(), table, AcqRel, Acquire)
            .map_or_else(|first| first, |_| table);
    }
    // SAFETY: a table of the same version.
    match unsafe { engine(table) } {
        Some(here) if ptr::eq(here, own) => Served::Here(here),
        Some(other) => Served::By(other),
        None => Served::Nobody,
    }
}

/// What [`served`] has decided.
///
/// # Safety
/// `T` must be what [`served`] was called with.
pub(crate) unsafe fn known<T>() -> Option<&'static T> {
    // SAFETY: the caller's promise.
    unsafe { engine(TABLE.load(Acquire)) }
}

/// # Safety
/// A table of this type, [`nobody`], or null.
unsafe fn engine<T>(table: *mut c_void) -> Option<&'static T> {
    // SAFETY: the caller's promise. The libraries that hold tables are never unloaded.
    if table == nobody() { None } else { unsafe { table.cast::<T>().as_ref() } }
}

fn exported(symbol: &CStr) -> Option<*mut c_void> {
    if cfg!(target_feature = "crt-static") {
        return None;
    }
    // SAFETY: looks a name up.
    Some(unsafe { libc::dlsym(libc::RTLD_DEFAULT, symbol.as_ptr()) }).filter(|found| !found.is_null())
}

/// The table of the copy that came first: this one's, if it is this one.
fn first(own: *mut c_void) -> Option<*mut c_void> {
    match memory::allocate_free(PLACE, PAGE) {
        Ok(()) => {
            // SAFETY: the page is fresh, aligned and ours.
            let page = unsafe { &*(PLACE as *const Page) };
            page.sign.store(SIGN, Relaxed);
            page.table.store(own.expose_provenance(), Release);
            Some(own)
        }
        Err(Errno(libc::EEXIST)) => another(),
        Err(_) => None,
    }
}

/// Copied, not touched: the page may be somebody else's.
fn another() -> Option<*mut c_void> {
    let begun = task::now_ms();
    let mut round = 0;
    loop {
        let [sign, table] = task::peek_at(task::pid(), PLACE).ok()?;
        if sign == SIGN && table != 0 {
            return Some(ptr::with_exposed_provenance_mut(table as usize));
        }
        // Another thread may have just mapped the page.
        if ![0, SIGN].contains(&sign) || task::ms_since(begun) > PATIENCE_MS {
            return None;
        }
        task::give_way(round);
        round += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a copy of this version has.
    static THEIRS: [u64; 2] = [7, 0];
    static OURS: [u64; 2] = [7, 1];
    const NONE: &CStr = c"no_library_has_this_name";

    fn page() -> &'static Page {
        memory::allocate_free(PLACE, PAGE).unwrap();
        // SAFETY: fresh, and never unmapped.
        unsafe { &*(PLACE as *const Page) }
    }

    fn name(table: &'static [u64; 2], sign: u64) {
        let page = page();
        page.sign.store(sign, Relaxed);
        page.table.store(ptr::from_ref(table).expose_provenance(), Release);
    }

    fn served_by() -> Option<u64> {
        let engine = served(&OURS, 7, NONE).engine().map(|engine| engine[1]);
        // SAFETY: the same type.
        assert_eq!(unsafe { known::<[u64; 2]>() }.map(|engine| engine[1]), engine);
        engine
    }

    #[test]
    fn the_first_copy_serves_itself_and_those_that_come_later() {
        assert_eq!(served_by(), Some(1));
        assert_eq!(another(), Some(ptr::from_ref(&OURS).cast_mut().cast()));
    }

    #[test]
    fn a_later_copy_is_served_by_the_first() {
        name(&THEIRS, SIGN);
        assert_eq!(served_by(), Some(0));
    }

    #[test]
    fn another_version_serves_nobody() {
        static OLDER: [u64; 2] = [6, 0];
        name(&OLDER, SIGN);
        assert_eq!(served_by(), None);
    }

    #[test]
    fn a_page_of_somebody_else_is_left_alone() {
        name(&THEIRS, SIGN + 1);
        assert_eq!(served_by(), None);
    }

    #[test]
    fn memory_that_cannot_be_read_is_left_alone() {
        page();
        // SAFETY: nobody uses it.
        unsafe { memory::protect(PLACE, PAGE, 0) }.unwrap();
        assert_eq!(served_by(), None);
    }

    #[test]
    fn a_copy_that_does_not_name_its_table_is_not_waited_for_without_end() {
        page();
        assert_eq!(served_by(), None);
    }

    #[test]
    fn a_copy_that_is_about_to_name_its_table_is_waited_for() {
        let page = page();
        let naming = std::thread::spawn(|| {
            page.sign.store(SIGN, Relaxed);
            page.table.store(ptr::from_ref(&THEIRS).expose_provenance(), Release);
        });
        assert_eq!(served_by(), Some(0));
        naming.join().unwrap();
    }
}
