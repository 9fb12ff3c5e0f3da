//! What a caller offers to the library.

use crate::client::fork;
use crate::client::life;
use crate::fs_traits::FsTraits;
use crate::helper::guard::is_immutable;
use crate::stats::Reason;
use elision_sys::file::{self, Stat};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TransferOptions {
    /// `None`: the position of the description, which is then moved.
    pub offset: Option<u64>,
    /// The library sees every change through this description first, and no other process shares it.
    pub owned: bool,
    pub forks: u64,
    pub exclusive: bool,
    pub least: usize,
    pub judged: Judged,
    /// Was the buffer's place in its page chosen here? For a person who reads why it was declined.
    pub placed: bool,
}

/// The earlier reads whose outcome decides whether this read is deferred.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Judged {
    /// Reads of the same file, or of about the same length.
    BySize,
    /// As [`Judged::BySize`], with the length up to the end of file: this read is the first of several.
    ByRest,
    /// None: this read continues one that was decided on.
    Before,
}

impl TransferOptions {
    pub fn for_program(offset: Option<u64>, owned: bool) -> TransferOptions {
        TransferOptions {
            offset,
            owned,
            forks: fork::forks(),
            exclusive: false,
            least: life::min_bytes(),
            judged: Judged::BySize,
            placed: false,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileFacts {
    pub stat: Stat,
    pub flags: i32,
    /// `None`: nothing of it is deferred.
    pub fs: Option<&'static FsTraits>,
    /// It can never change, so no lease is needed.
    pub immutable: bool,
}

impl FileFacts {
    /// # Errors
    /// The reason to decline: not a regular file, or smaller than `least`.
    pub fn of(fd: i32, least: usize) -> Result<FileFacts, Reason> {
        let stat = file::stat(fd).map_err(|_| Reason::NotRegular)?;
        if !stat.is_regular() {
            return Err(Reason::NotRegular);
        }
        if stat.size < least as u64 {
            return Err(Reason::Small);
        }
        let flags = file::flags(fd).map_err(|_| Reason::NotRegular)?;
        let fs = fs(fd);
        let immutable = fs.is_some_and(|fs| is_immutable(fd, fs, &stat));
        Ok(FileFacts { stat, flags, fs, immutable })
    }
}

/// The file system behind `fd`. `None`: nothing of it is deferred, by any process.
pub fn fs(fd: i32) -> Option<&'static FsTraits> {
    file::filesystem(fd).ok().and_then(FsTraits::of)
}

/// The file system, if a lease would hold. Of an overlay: on a file of a lower layer, which nobody can have mapped writably. A writer's has
/// been copied up.
///
/// # Errors
/// The reason to decline. The helper relies on this: it never opens a network or user-space file, and so never hangs.
pub(crate) fn check_lease(
    fd: i32,
    fs: Option<&'static FsTraits>,
    stat: &Stat,
    writes: bool,
) -> Result<&'static FsTraits, Reason> {
    match fs {
        None => Err(Reason::FileSystem),
        Some(fs) if fs.layered && (writes || !stat.local || !file::only_in_lower_layer(fd)) => {
            Err(Reason::FileSystem)
        }
        Some(fs) if stat.links > 0 || fs.counts_nameless_writers => Ok(fs),
        Some(_) if writes => Err(Reason::NotSole),
        Some(_) => Err(Reason::LeaseRefused),
    }
}
