//! What is known of file systems: a row for each supported one.

/// File systems without a row are declined: contents may be unstable (/proc), or block the helper (network, FUSE).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FsTraits {
    pub magic: i64,
    pub name: &'static str,
    /// Every change moves the ctime, to the nanosecond where the kernel can (6.13).
    pub times_tell: bool,
    /// A hole touched through a mapping stays one.
    pub keeps_holes: bool,
    /// The kernel counts writers of unnamed files (not those of memfd_create).
    pub counts_nameless_writers: bool,
    /// A read never shows part of a write.
    pub reads_atomic: bool,
    /// Files can share blocks (FICLONE), if it was made so.
    pub clones: bool,
    /// It can be mounted read-only alone.
    pub immutable: bool,
    /// Its files belong to layers. A lease counts no writable mapping of the upper layer's files whose descriptor is closed, and `cachestat`
    /// counts nothing.
    pub layered: bool,
}

const USUAL: FsTraits = FsTraits {
    magic: 0,
    name: "",
    times_tell: true,
    keeps_holes: true,
    counts_nameless_writers: true,
    reads_atomic: false,
    clones: false,
    immutable: false,
    layered: false,
};

/// Times tell nothing: another image may have the same.
const IMMUTABLE: FsTraits = FsTraits { times_tell: false, immutable: true, ..USUAL };

const TABLE: [FsTraits; 8] = [
    FsTraits { magic: 0xEF53, name: "ext2/ext3/ext4", ..USUAL },
    FsTraits { magic: 0x5846_5342, name: "xfs", reads_atomic: true, clones: true, ..USUAL },
    FsTraits { magic: 0x9123_683E, name: "btrfs", clones: true, ..USUAL },
    FsTraits {
        magic: 0x0102_1994,
        name: "tmpfs",
        // A store through a shared mapping that was read moves no time.
        times_tell: false,
        // A touch fills a hole, or raises SIGBUS without room.
        keeps_holes: false,
        counts_nameless_writers: false,
        ..USUAL
    },
    FsTraits {
        magic: 0x794c_7630,
        name: "overlayfs",
        // As far as is known of the layers below.
        times_tell: false,
        keeps_holes: false,
        layered: true,
        ..USUAL
    },
    FsTraits { magic: 0x7371_7368, name: "squashfs", ..IMMUTABLE },
    FsTraits { magic: 0xE0F5_E1E2, name: "erofs", ..IMMUTABLE },
    FsTraits { magic: 0x9660, name: "iso9660", ..IMMUTABLE },
];

impl FsTraits {
    pub fn of(magic: i64) -> Option<&'static FsTraits> {
        TABLE.iter().find(|row| row.magic == magic)
    }
}
