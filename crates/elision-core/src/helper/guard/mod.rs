//! Guards: what keeps a file's bytes fixed while extents depend on them.
//!
//! A lease is granted only when nobody has the file open in a conflicting way, and from then on the kernel makes
//! everybody who wants to (open for writing, truncate; for a write lease any open at all) wait until we let
//! go. So the rule is: extents that depend on the file get memory of their own first, then the lease goes.

pub mod breaks;

use crate::extent::{FileId, Kind};
use crate::helper::files::{File, Guard, NO_FILE};
use crate::helper::guard::breaks::Broken;
use crate::helper::processes;
use crate::helper::state::{self, State};
use crate::shared::channel::Request;
use crate::stats::Reason;
use core::sync::atomic::{AtomicI32, Ordering::Relaxed};
use elision_sys::file::{self, FileKey, ProcPath};
use elision_sys::raw::Errno;
use elision_sys::{pages, task};

/// File systems whose leases and page cache are known to keep the promise: ext2/3/4, XFS, btrfs, tmpfs.
/// /proc and others grant leases on contents that are not stable.
pub fn file_system_allowed(magic: i64) -> bool {
    matches!(magic, 0xEF53 | file::XFS | 0x9123_683E | file::TMPFS)
}

/// When the sidecar looks for the first and for the last time whether a close was the last one.
const FIRST_LOOK_MS: u64 = 100;
const LAST_LOOK_MS: u64 = 1600;

/// It is closed, and there is no need to look.
const NEVER: u64 = u64::MAX >> 1;

fn refused(error: Errno) -> Reason {
    match error {
        Errno(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOLCK) => Reason::Limit,
        _ => Reason::LeaseRefused,
    }
}

/// Descriptors that no guard may take: to hold the program still, threads have to be listed; and without that whoever waits for a
/// lease would wait for as long as the kernel does. (They did, when all descriptors were guards.)
const SPARE: u64 = 32;

/// Guards have descriptors below this one.
static ROOM: AtomicI32 = AtomicI32::new(i32::MAX);

/// So many descriptors may be open.
pub(crate) fn keep_spare_descriptors(limit: u64) {
    ROOM.store(i32::try_from(limit.saturating_sub(SPARE)).unwrap_or(i32::MAX), Relaxed);
}

/// Is there a descriptor to spare for a guard, after this one?
fn room_for(fd: i32) -> elision_sys::raw::Result<()> {
    if fd < ROOM.load(Relaxed) { Ok(()) } else { Err(Errno(libc::EMFILE)) }
}

/// Takes a lease on the file `key`, if `fd` is of that one.
fn take_lease(fd: i32, key: FileKey, lease: i32) -> Result<(), Reason> {
    let stat = file::stat(fd).map_err(refused)?;
    if stat.id != key {
        return Err(Reason::Raced);
    }
    let file_system = file::filesystem(fd).map_err(refused)?;
    if !file_system_allowed(file_system) {
        return Err(Reason::FileSystem);
    }
    room_for(fd).map_err(refused)?;
    let refused = |errno| if lease == libc::F_WRLCK { Reason::NotSole } else { refused(errno) };
    if file::nameless(file_system, &stat) {
        return Err(refused(Errno(libc::EAGAIN)));
    }
    if lease == libc::F_RDLCK {
        name_breaks(fd);
    }
    file::set_lease_of_named(fd, lease).map_err(refused)
}

/// Has the breaking of the read lease that will be on a description of our own announced by name, or at least announced.
fn name_breaks(fd: i32) {
    // Before the lease: there is no moment at which it could be broken in silence. If the signal cannot be set, it is SIGIO.
    let _ = file::set_lease_signal(fd, crate::helper::serve::NAMED_BREAK);
}

/// Takes a read lease on a description of our own that is known to be of an allowed file.
pub(crate) fn take_read_lease(fd: i32) -> elision_sys::raw::Result<()> {
    room_for(fd)?;
    name_breaks(fd);
    file::set_lease(fd, libc::F_RDLCK)
}

impl State {
    /// A file guarded well enough to map it: the entry, or why not.
    pub(crate) fn guard_for_read(&mut self, request: &Request) -> Result<FileId, Reason> {
        let access = request.flags & libc::O_ACCMODE;
        if let Some(id) = self.files.find(request.key) {
            let known = self.file(id);
            match known.guard {
                // (The helper answers a break before requests, but it may have been stopped in between.)
                Guard::Read if access == libc::O_RDONLY && is_whole(&known) => return Ok(id),
                Guard::Write
                    if is_whole(&known) && has_our_lease(request.pid, request.fd, request.key, false) =>
                {
                    return Ok(id);
                }
                // Two ways into one file: whichever it is, one of them cannot be followed.
                Guard::Read | Guard::Write => return Err(Reason::OwnWriter),
                Guard::None => {}
            }
        }
        match access {
            libc::O_RDONLY => self.acquire_read(request),
            libc::O_RDWR if request.owned => self.acquire_write(request),
            _ => Err(Reason::OwnWriter),
        }
    }

    fn acquire_read(&mut self, request: &Request) -> Result<FileId, Reason> {
        // A description of our own: the program's may be closed, and its descriptor table must not change.
        // O_NOATIME is passed on because mapping counts as access.
        let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK | (request.flags & libc::O_NOATIME);
        let path = ProcPath::new(request.pid, "fd", Some(request.fd));
        let fd = processes::open(&path, flags).map_err(refused)?;
        let taken = (|| {
            take_lease(fd, request.key, libc::F_RDLCK)?;
            self.enter(request.key, Guard::Read, fd)
        })();
        if taken.is_err() {
            file::close(fd);
        }
        taken
    }

    /// Takes a write lease on the program's own description.
    pub(crate) fn acquire_write(&mut self, request: &Request) -> Result<FileId, Reason> {
        let fd = task::take_descriptor(request.pid, request.fd).map_err(refused)?;
        self.taking = request.key;
        let taken = (|| {
            take_lease(fd, request.key, libc::F_WRLCK)?;
            let entered = self.enter(request.key, Guard::Write, fd);
            if entered.is_err() {
                let _ = file::set_lease(fd, libc::F_UNLCK);
            }
            entered
        })();
        self.taking = FileKey::default();
        if taken.is_err() {
            file::close(fd);
        }
        taken
    }

    /// Enters a file that is guarded now. Tracked extents of earlier hold on only if the file did not change unguarded.
    pub(crate) fn enter(&mut self, key: FileKey, guard: Guard, fd: i32) -> Result<FileId, Reason> {
        let changed = file::ctime(fd).map_err(refused)?;
        if let Some(id) = self.files.find(key) {
            let known = self.file(id);
            if known.stamp != changed {
                // (Mapped extents there are if their mappings carry a guard.)
                self.map().retain_of(id, |row| row.kind == Kind::Mapped);
                self.publish();
            }
            self.files.set(id, File { guard, fd, mapped: known.mapped, ..NO_FILE });
            self.files.watch(fd, id);
            return Ok(id);
        }
        let id = self.files.add(File { key, guard, fd, ..NO_FILE }).ok_or(Reason::Limit)?;
        self.files.watch(fd, id);
        Ok(id)
    }

    /// Answers the leases that are being broken, as far as anybody has told us. True if one has to be asked about again soon.
    pub(crate) fn answer_breaks(&mut self) -> bool {
        let mut again = false;
        breaks::take(|broken| {
            let named = match broken {
                Broken::One(fd) => self.files.watched(fd),
                Broken::All => None,
            };
            match named {
                Some(id) => again |= !self.answer_break(id),
                // Also if the descriptor that was named is no guard any more: that happens seldom enough.
                None => self.files.ids().for_each(|id| again |= !self.answer_break(id)),
            }
        });
        again
    }

    /// Lets the guard of a file go, if its lease is being broken. False: it has to be asked about again.
    fn answer_break(&mut self, id: FileId) -> bool {
        let known = self.file(id);
        let good = is_whole(&known);
        // Whoever wants the file would wait for a write under way traditionally, too; unless the program is stopped in the middle
        // of it, which it would not be.
        let under_way = known.writer != 0 && !processes::is_stopped(self.program);
        let broken = known.used && !good && !under_way;
        if broken {
            self.learn_of_break(id);
        }
        let answered = !known.used || good || broken && self.release(id);
        if !answered {
            breaks::note(self.file(id).fd);
        }
        answered
    }

    /// Gives what depends on a file memory of its own, then lets the guard go. False: a forked child is not covered
    /// yet, and it has to wait.
    pub(crate) fn release(&mut self, id: FileId) -> bool {
        if self.file(id).guard == Guard::None {
            return true;
        }
        let known = self.file(id);
        // Asked while the file is still guarded; asking makes the kernel mark
        // the next change with a new time. A lease that the kernel has taken away guarded nothing: whether it is there is asked last.
        let stamp = file::ctime(known.fd).ok().filter(|&(_, nanoseconds)| {
            // Whole seconds are all that some ext file systems keep. And on tmpfs a store through a shared mapping
            // that has been read from moves no time at all.
            self.fine_ctime
                && nanoseconds != 0
                && file::filesystem(known.fd).is_ok_and(|magic| magic != file::TMPFS)
                && is_held(&known)
        });
        state::count_change();
        let gone = self.materialise_file(id);
        // A write lease was given up before any fork, so no child depends on this one.
        if known.guard == Guard::Read && crate::client::fork::children_uncovered() {
            return false;
        }
        // Whoever waits goes on when the lease has ended. If that is to execute the file, nobody may have it open for writing by
        // then: if nobody does but us, closing ends both. Else that is not enough: a mapping that is left (pages that were
        // copied in place, or one of the program's own) keeps the description, and with it the lease; and so does the program.
        let ends_with_us = gone
            && known.guard == Guard::Write
            && known.closed != 0
            && !self.program_holds(&known)
            && self.maps >= 0
            && !pages::is_mapped(self.maps, known.key.ino);
        if !ends_with_us {
            give_up(&known);
        }
        file::close(known.fd);
        match stamp.filter(|_| self.map().share(id).tracked > 0) {
            Some(stamp) => {
                self.files.set(id, File { guard: Guard::None, fd: -1, stamp, solid: 0, writer: 0, ..known })
            }
            None => self.drop_file(id),
        }
        self.publish();
        true
    }

    /// Lets go of files that nothing depends on any more.
    pub(crate) fn sweep(&mut self) {
        self.dirty = false;
        for id in self.files.ids() {
            let known = self.file(id);
            let share = self.map().share(id);
            if known.used && known.writer == 0 && share.mapped + share.tracked == 0 {
                match known.guard {
                    Guard::None => self.files.remove(id),
                    _ => self.dirty |= !self.release(id),
                }
            }
        }
    }

    /// Releases the guard of the file `key`, if there is one.
    pub(crate) fn release_key(&mut self, request: &mut Request) {
        if let Some(id) = self.files.find(request.key) {
            self.release_for_nothing(id, request);
        }
    }

    /// The same, and says how much had been deferred of a file that was then changed in another way than by saving it: in vain.
    fn release_for_nothing(&mut self, id: FileId, request: &mut Request) {
        if !self.file(id).saved {
            request.known = self.map().share(id).mapped;
        }
        self.release(id);
    }

    /// A small write to a guarded file. Each is a request, and so costs several times what it would: after many of them the guard goes.
    pub(crate) fn small_write(&mut self, request: &mut Request) {
        const MANY: u32 = 256;
        let Some(id) = self.files.find(request.key) else { return };
        let Some(entry) = self.files.get_mut(id) else { return };
        entry.small += 1;
        if entry.small > MANY && entry.writer == 0 {
            self.release_for_nothing(id, request);
        } else {
            self.before_write(id, request.offset, request.offset + request.len as u64, None);
        }
    }

    /// The program closes a descriptor of a file under a write lease. Our own keeps the description open, and with it
    /// whatever else ends with the last close: somebody who watches the file is told only then that the writer is done.
    /// That is worth it only for what has not been loaded yet, and for a moment: most programs are done with the
    /// buffer by then. Not if somebody may be waiting for a lock that the description holds.
    pub(crate) fn closing(&mut self, request: &Request) {
        let Some(id) = self.files.find(request.key) else { return };
        let known = self.file(id);
        if known.guard != Guard::Write {
            return;
        }
        if self.map().share(id).mapped == 0 || holds_locks(known.fd) {
            self.release(id);
        } else if !request.owned {
            self.put_off_closing(id, FIRST_LOOK_MS);
        } else if let Some(entry) = self.files.get_mut(id) {
            entry.closed = NEVER;
        }
    }

    fn put_off_closing(&mut self, id: FileId, put_off: u64) {
        // Many files that are closed one after the other are looked at together.
        let when = (task::now_ms() + put_off).next_multiple_of(FIRST_LOOK_MS / 2);
        if let Some(entry) = self.files.get_mut(id) {
            (entry.closed, entry.put_off) = (when, put_off);
        }
        self.look_when(when);
    }

    fn look_when(&mut self, when: u64) {
        self.closed = if self.closed == 0 { when } else { self.closed.min(when) };
    }

    /// Gives up the guards of files that the program has closed, when it is time.
    pub(crate) fn look_at_closed(&mut self) {
        let now = if self.closed == 0 { 0 } else { task::now_ms() };
        if now < self.closed || self.closed == 0 {
            return;
        }
        self.closed = 0;
        for id in self.files.ids() {
            let known = self.file(id);
            if known.guard != Guard::Write || known.closed == 0 {
                continue;
            }
            if known.closed > now {
                self.look_when(known.closed);
            } else if !self.program_holds(&known) {
                self.release(id);
            } else if known.put_off < LAST_LOOK_MS {
                // A duplicate; or the thread has not come to its close yet.
                self.put_off_closing(id, known.put_off * 4);
            } else if let Some(entry) = self.files.get_mut(id) {
                entry.closed = 0;
            }
        }
    }

    /// Has the program a descriptor of the description that has our lease? True where the kernel does not say, or the lease has been lost.
    fn program_holds(&self, known: &File) -> bool {
        if !has_our_lease(task::pid(), known.fd, known.key, false) {
            return true;
        }
        let mut holds = false;
        processes::each_descriptor(self.program, |theirs| {
            holds = has_our_lease(self.program, theirs, known.key, true);
            !holds
        });
        holds
    }

    /// Releases every write lease.
    pub(crate) fn surrender(&mut self) {
        for id in self.files.ids() {
            if self.file(id).guard == Guard::Write {
                self.release(id);
            }
        }
    }

    /// The program is no more, and nothing depends on anything. But another may have taken its place, with descriptors of its.
    pub(crate) fn give_back_descriptions(&self) {
        self.files.known().filter(|file| file.guard == Guard::Write).for_each(give_up);
    }

    /// Has the file holes in the range? A traditional write would fill them; eliding would not.
    pub(crate) fn holes(&mut self, id: FileId, start: u64, end: u64) -> bool {
        let known = self.file(id);
        if start.max(end) <= known.solid {
            return false;
        }
        let Ok(stat) = file::stat(known.fd) else { return true };
        let holes = match file::has_hole(known.fd, known.solid, end.max(start)) {
            Some(hole) => hole,
            // Without FIEMAP (tmpfs) blocks are exactly the pages that exist.
            None => !stat.is_solid(),
        };
        // It stays so while guarded: only a change that is shown to us first could make a hole there. (Behind the end of the
        // file a write makes one without being asked.)
        if !holes && let Some(entry) = self.files.get_mut(id) {
            entry.solid = end.max(start).min(stat.size);
        }
        holes
    }

    /// Write leases that a dead sidecar left on descriptions of the program's. They would hold everybody up who wants one of
    /// these files, for as long as the kernel waits or until the program closes it. (A read lease goes with the last
    /// mapping.) What depended on them has memory of its own by now.
    pub(crate) fn give_up_orphaned_leases(&self) {
        let guarded = || {
            let known = self.files.known().filter(|file| file.guard == Guard::Write);
            known.map(|file| file.key).chain(Some(self.taking).filter(|&key| key != FileKey::default()))
        };
        if guarded().next().is_none() {
            return;
        }
        processes::each_descriptor(self.program, |number| {
            if let Ok(fd) = task::take_descriptor(self.program, number) {
                let ours = file::stat(fd).is_ok_and(|stat| guarded().any(|key| key == stat.id));
                // A lease that the program has taken itself has the program for its owner.
                if ours && file::fcntl(fd, libc::F_GETOWN, 0) != Ok(self.program) {
                    let _ = file::set_lease(fd, libc::F_UNLCK);
                }
                file::close(fd);
            }
            true
        });
    }
}

/// Gives up the lease on a description, and gives it back as it was if it is the program's and lives on.
fn give_up(known: &File) {
    let _ = file::set_lease(known.fd, libc::F_UNLCK);
    if known.guard == Guard::Write {
        let _ = file::fcntl(known.fd, libc::F_SETOWN, 0);
    }
}

/// Is the lease of a guard held, and does nobody wait for it?
pub(crate) fn is_whole(known: &File) -> bool {
    let lease = match known.guard {
        Guard::None => return true,
        Guard::Read => libc::F_RDLCK,
        Guard::Write => libc::F_WRLCK,
    };
    file::lease(known.fd) == Ok(lease)
}

/// Is the lease of a guard held, though somebody may wait for it? The kernel takes it away from a helper that was stopped for too long, and
/// the file may have changed since.
pub(crate) fn is_held(known: &File) -> bool {
    is_whole(known) || shows_lock(task::pid(), known.fd, &[b"LEASE"], false)
}

/// Does the open file description hold locks of the kinds that end with it (flock, OFD)?
fn holds_locks(fd: i32) -> bool {
    shows_lock(task::pid(), fd, &[b"FLOCK", b"OFDLCK"], true)
}

/// Is descriptor `fd` of a process one of the description that has our write lease on the file `key`? The kernel shows a lease with the
/// description that has it, and grants no other beside a write lease. `otherwise`: the answer where it does not say.
pub(crate) fn has_our_lease(pid: i32, fd: i32, key: FileKey, otherwise: bool) -> bool {
    shows_lock(pid, fd, &[b"LEASE"], otherwise)
        && processes::open(&ProcPath::new(pid, "fd", Some(fd)), libc::O_PATH).is_ok_and(|fd| {
            let same = file::stat(fd).is_ok_and(|stat| stat.id == key);
            file::close(fd);
            same
        })
}

/// Does /proc show locks of these kinds with a descriptor of a process? `otherwise`: that cannot be read.
fn shows_lock(pid: i32, fd: i32, kinds: &[&[u8]], otherwise: bool) -> bool {
    // A text that does not fit has more locks than anybody needs.
    let mut text = [0u8; 4096];
    let Ok(info) = processes::open(&ProcPath::new(pid, "fdinfo", Some(fd)), 0) else { return otherwise };
    let filled = file::read(info, &mut text);
    file::close(info);
    let Ok(text) = filled.map(|n| text.get(..n).unwrap_or(&[])) else { return otherwise };
    kinds.iter().any(|kind| text.windows(kind.len()).any(|w| w == *kind)) || text.len() == 4096 && otherwise
}
