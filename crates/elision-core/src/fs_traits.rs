//! What is known of file systems: one row for each that Elision works on.

/// How a file system behaves. One that has no row is declined: /proc and others grant leases on contents that are not stable, and network
/// file systems and FUSE may keep the helper waiting for ever.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FsTraits {
    /// `statfs.f_type`.
    pub magic: i64,
    /// What the kernel calls it.
    pub name: &'static str,
    /// Every change moves the ctime, to the nanosecond where the kernel can (6.13).
    pub times_tell: bool,
    /// A hole that is touched through a mapping stays one.
    pub keeps_holes: bool,
    /// The kernel knows who has a file without a name open for writing. (memfd_create makes descriptions that can write and are not counted.)
    pub counts_nameless_writers: bool,
    /// A read never shows a part of a write.
    pub reads_atomic: bool,
}

const USUAL: FsTraits = FsTraits {
    magic: 0,
    name: "",
    times_tell: true,
    keeps_holes: true,
    counts_nameless_writers: true,
    reads_atomic: false,
};

const TABLE: [FsTraits; 4] = [
    FsTraits { magic: 0xEF53, name: "ext2/ext3/ext4", ..USUAL },
    FsTraits { magic: 0x5846_5342, name: "xfs", reads_atomic: true, ..USUAL },
    FsTraits { magic: 0x9123_683E, name: "btrfs", ..USUAL },
    FsTraits {
        magic: 0x0102_1994,
        name: "tmpfs",
        // A store through a shared mapping that has been read from moves no time at all.
        times_tell: false,
        // It fills a hole where there is room, and raises SIGBUS where there is none.
        keeps_holes: false,
        counts_nameless_writers: false,
        ..USUAL
    },
];

impl FsTraits {
    /// The row of a file system. `None`: decline.
    pub fn of(magic: i64) -> Option<&'static FsTraits> {
        TABLE.iter().find(|row| row.magic == magic)
    }
}
