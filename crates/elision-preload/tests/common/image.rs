//! File systems of a test's own.
#![allow(unsafe_code)] // Mounts.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

pub fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_encoded_bytes()).unwrap()
}

/// Mounts of the calling thread and of the programs that it starts, seen by nobody else. False, and why is said, where that
/// is not allowed.
pub fn mounts_of_our_own() -> bool {
    // SAFETY: C strings; only this thread's view of the file system changes.
    let done = unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(
                c"none".as_ptr(),
                c"/".as_ptr(),
                std::ptr::null(),
                libc::MS_REC | libc::MS_PRIVATE,
                std::ptr::null(),
            ) == 0
    };
    if !done {
        println!("skipped: no mounts of one's own: {}", std::io::Error::last_os_error());
    }
    done
}

/// A program for file systems, to be named by the first argument. They live where a PATH does not always look.
pub fn tool() -> Command {
    let mut command = Command::new("env");
    command.env("PATH", std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin");
    command
}

const IMAGE: &str = "IMAGE";

/// A file system of a test's own in an image, which the test may spoil. It is gone with the value.
pub struct Image {
    pub image: PathBuf,
    /// Where it is mounted.
    pub root: PathBuf,
    _made: tempfile::TempDir,
}

impl Image {
    /// A new btrfs, after [`mounts_of_our_own`]. Its checksums make a page unreadable whose bytes on the device are wrong.
    /// None, and why is said, where it cannot be had.
    pub fn btrfs(options: &str) -> Option<Image> {
        Image::new("btrfs", options, &["mkfs.btrfs", "-q", IMAGE])
    }

    /// An ext4 with this feature, likewise.
    #[allow(dead_code)] // Few tests have files that can never change.
    pub fn ext4_with(feature: &str) -> Option<Image> {
        let image = Image::new("ext4", "defaults", &["mkfs.ext4", "-q", "-O", feature, IMAGE])?;
        std::fs::set_permissions(&image.root, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        Some(image)
    }

    /// One that is read-only by nature, with the files of a directory, likewise.
    #[allow(dead_code)] // As above.
    pub fn of(kind: &str, content: &Path) -> Option<Image> {
        let content = content.to_str().unwrap();
        let make: &[&str] = match kind {
            "squashfs" => &["mksquashfs", content, IMAGE, "-quiet", "-no-progress", "-noappend"],
            "erofs" => &["mkfs.erofs", "--quiet", "-zlz4", IMAGE, content],
            _ => &["genisoimage", "-quiet", "-R", "-o", IMAGE, content],
        };
        Image::new(kind, "ro", make)
    }

    /// `make`: the command, with [`IMAGE`] for the image.
    fn new(kind: &str, options: &str, make: &[&str]) -> Option<Image> {
        let made = tempfile::tempdir().unwrap();
        std::fs::set_permissions(&made, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let (image, root) = (made.path().join("image"), made.path().join("root"));
        std::fs::create_dir(&root).unwrap();
        std::fs::File::create(&image).unwrap().set_len(128 << 20).unwrap();
        let options = format!("loop,{options}");
        let mount = ["mount", "-t", kind, "-o", &options, IMAGE, root.to_str().unwrap()];
        for command in [make, &mount] {
            let words =
                command.iter().map(|&word| if word == IMAGE { image.to_str().unwrap() } else { word });
            let output = tool().args(words).output().unwrap();
            if !output.status.success() {
                println!("skipped: {}: {}", command[0], String::from_utf8_lossy(&output.stderr));
                return None;
            }
        }
        Some(Image { image, root, _made: made })
    }

    /// Has the kernel verify a file from now on (fs-verity).
    #[allow(dead_code)] // As above.
    pub fn verify(&self, file: &Path) -> std::io::Result<()> {
        use std::os::fd::AsRawFd;
        // Version 1, SHA-256, blocks of a page.
        let mut how = [0u8; 128];
        how[..12].copy_from_slice(&[1, 0, 0, 0, 1, 0, 0, 0, 0, 16, 0, 0]);
        const ENABLE: libc::c_ulong = 0x4080_6685;
        let file = std::fs::File::open(file)?;
        // SAFETY: the kernel reads 128 bytes.
        match unsafe { libc::ioctl(file.as_raw_fd(), ENABLE, how.as_ptr()) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }

    /// Spoils pages on the device, by their contents, which nothing else has; and has the kernel forget what it knows
    /// of the file.
    pub fn spoil(&self, file: &Path, pages: &[Vec<u8>]) {
        use std::os::fd::AsRawFd;
        use std::os::unix::fs::FileExt;
        let opened = std::fs::File::open(file).unwrap();
        opened.sync_all().unwrap();
        let device = std::fs::File::options().read(true).write(true).open(&self.image).unwrap();
        let bytes = std::fs::read(&self.image).unwrap();
        for page in pages {
            let places = bytes.chunks_exact(4096).enumerate().filter(|(_, chunk)| chunk == page);
            let places: Vec<_> = places.map(|(at, _)| at as u64 * 4096).collect();
            assert!(!places.is_empty(), "a page is not on the device");
            for at in places {
                device.write_all_at(b"spoiled", at).unwrap();
            }
        }
        // SAFETY: no memory is involved.
        assert_eq!(unsafe { libc::posix_fadvise(opened.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) }, 0);
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let root = c_path(&self.root);
        let deadline = Instant::now() + Duration::from_secs(10);
        // Nothing of a program may outlive it, though a helper needs a moment to notice.
        // SAFETY: a C string.
        while unsafe { libc::umount2(root.as_ptr(), 0) } != 0 {
            if std::thread::panicking() {
                return;
            }
            assert!(Instant::now() < deadline, "the file system is still in use");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
