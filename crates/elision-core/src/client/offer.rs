//! What a caller offers to the library.

use crate::client::fork;
use crate::client::life;
use crate::fs_traits::FsTraits;
use crate::stats::Reason;
use elision_sys::file::{self, Stat};

/// What a caller wants of a transfer, and vouches for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TransferOptions {
    /// File position of the first byte. `None`: the position of the open file description, which is then moved.
    pub offset: Option<u64>,
    /// Every change through this open file description is shown to the library first, and no other process shares it.
    pub owned: bool,
    /// The [count of forks](fork::forks) up to which `owned` holds.
    pub forks: u64,
    /// No other thread stores into the pages around the buffer.
    pub exclusive: bool,
    /// Transfers of fewer bytes are declined.
    pub least: usize,
}

impl TransferOptions {
    /// The options for a call of an unmodified program.
    pub fn for_program(offset: Option<u64>, owned: bool) -> TransferOptions {
        TransferOptions { offset, owned, forks: fork::forks(), exclusive: false, least: life::min_bytes() }
    }
}

/// What the kernel says of an open regular file. Asked once for each transfer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileFacts {
    pub stat: Stat,
    /// Status flags of the open file description (`F_GETFL`).
    pub flags: i32,
    /// The file system. `None`: nothing of it is deferred.
    pub fs: Option<&'static FsTraits>,
}

impl FileFacts {
    /// Asks the kernel.
    ///
    /// # Errors
    /// The reason to decline a transfer of at least `least` bytes: not a regular file, or a smaller one.
    pub fn of(fd: i32, least: usize) -> Result<FileFacts, Reason> {
        let stat = file::stat(fd).map_err(|_| Reason::NotRegular)?;
        if !stat.is_regular() {
            return Err(Reason::NotRegular);
        }
        if stat.size < least as u64 {
            return Err(Reason::Small);
        }
        let flags = file::flags(fd).map_err(|_| Reason::NotRegular)?;
        Ok(FileFacts { stat, flags, fs: fs(fd) })
    }
}

/// The file system of the file behind `fd`. `None`: nothing of it is deferred, by whatever process.
pub fn fs(fd: i32) -> Option<&'static FsTraits> {
    file::filesystem(fd).ok().and_then(FsTraits::of)
}

/// The file system, if a lease on the file would hold.
///
/// # Errors
/// The reason to decline. The helper relies on this check: it never opens a file on a network, or one that another process
/// serves, and so never hangs.
pub(crate) fn check_lease(
    fs: Option<&'static FsTraits>,
    stat: &Stat,
    writes: bool,
) -> Result<&'static FsTraits, Reason> {
    match fs {
        None => Err(Reason::FileSystem),
        Some(fs) if stat.links > 0 || fs.counts_nameless_writers => Ok(fs),
        Some(_) if writes => Err(Reason::NotSole),
        Some(_) => Err(Reason::LeaseRefused),
    }
}
