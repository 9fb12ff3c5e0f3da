//! A device of so many requests and bytes a second: a file system on a loop device, throttled for the processes that join its control
//! group. Only for root, where control groups can throttle.
#![allow(unsafe_code)] // One call without memory.

use std::error::Error;
use std::fs;
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What the device allows in a second, and what the kernel reads ahead.
#[derive(Clone, Copy, Debug)]
pub struct Speed {
    pub requests: u64,
    pub bytes: u64,
    pub read_ahead_kib: u64,
}

/// Taken down when dropped. Its processes must have ended by then.
pub struct Device {
    mounted: PathBuf,
    device: PathBuf,
    number: String,
    group: PathBuf,
    /// Where the kernel has one for each resource.
    memory: Option<PathBuf>,
    version: Version,
    scratch: tempfile::TempDir,
}

#[derive(Clone, Copy)]
enum Version {
    One,
    Two,
}

fn run(program: &str, arguments: &[&Path]) -> Result<String> {
    let output =
        Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim()).into());
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Where groups are made that limit devices (`blkio`, or `io` of the second version), or memory.
fn groups(one: &str, two: &str) -> Result<(PathBuf, Version)> {
    for line in fs::read_to_string("/proc/self/mounts")?.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [_, at, kind, options, ..] = words[..] else { continue };
        if kind == "cgroup" && options.split(',').any(|option| option == one) {
            return Ok((at.into(), Version::One));
        }
        let controllers =
            || fs::read_to_string(Path::new(at).join("cgroup.subtree_control")).unwrap_or_default();
        if kind == "cgroup2" && controllers().split_whitespace().any(|name| name == two) {
            return Ok((at.into(), Version::Two));
        }
    }
    Err(format!("no control groups for {two}").into())
}

impl Device {
    /// An ext4 with room for `bytes` of files. `within`: where its image is made. An error says what is missing.
    pub fn new(within: &Path, bytes: u64) -> Result<Device> {
        let (groups, version) = groups("blkio", "io")?;
        let scratch = tempfile::tempdir_in(within)?;
        let (image, mounted) = (scratch.path().join("image"), scratch.path().join("mounted"));
        fs::File::create(&image)?.set_len(bytes + bytes / 8 + (32 << 20))?;
        fs::create_dir(&mounted)?;
        run(
            "mkfs.ext4",
            &["-q".as_ref(), "-F".as_ref(), "-E".as_ref(), "lazy_itable_init=0".as_ref(), &image],
        )?;
        let device = PathBuf::from(run("losetup", &["-f".as_ref(), "--show".as_ref(), &image])?);
        let number = fs::metadata(&device)?.st_rdev();
        let number = format!("{}:{}", libc::major(number), libc::minor(number));
        let group = groups.join(scratch.path().file_name().unwrap_or_default());
        let new = Device { mounted, device, number, group, memory: None, version, scratch };
        run("mount", &[&new.device, &new.mounted])?;
        fs::create_dir(&new.group)?;
        Ok(new)
    }

    /// Where its files are.
    pub fn path(&self) -> &Path {
        &self.mounted
    }

    pub fn limit(&self, speed: Speed) -> Result<()> {
        let Device { number, group, .. } = self;
        let Speed { requests, bytes, read_ahead_kib } = speed;
        match self.version {
            Version::One => {
                fs::write(group.join("blkio.throttle.read_iops_device"), format!("{number} {requests}"))?;
                fs::write(group.join("blkio.throttle.read_bps_device"), format!("{number} {bytes}"))?;
            }
            Version::Two => {
                fs::write(group.join("io.max"), format!("{number} riops={requests} rbps={bytes}"))?
            }
        }
        let queue = format!("/sys/dev/block/{number}/queue/read_ahead_kb");
        Ok(fs::write(queue, read_ahead_kib.to_string())?)
    }

    /// The processes that join from now on have so much memory together, page cache included.
    #[allow(dead_code)] // The benches do not call it.
    pub fn limit_memory(&mut self, bytes: u64) -> Result<()> {
        let name = match groups("memory", "memory")? {
            (_, Version::Two) => self.group.join("memory.max"),
            (groups, Version::One) => {
                let group = groups.join(self.group.file_name().unwrap_or_default());
                fs::create_dir(&group)?;
                self.memory.insert(group).join("memory.limit_in_bytes")
            }
        };
        Ok(fs::write(name, bytes.to_string())?)
    }

    /// Requests to read so far.
    #[allow(dead_code)] // The benches do not call it.
    pub fn requests(&self) -> Result<u64> {
        let counts = fs::read_to_string(format!("/sys/dev/block/{}/stat", self.number))?;
        Ok(counts.split_whitespace().next().ok_or("no counts")?.parse()?)
    }

    /// The process and those that it starts from now on are throttled.
    pub fn join(&self, pid: u32) -> Result<()> {
        for group in [Some(&self.group), self.memory.as_ref()].into_iter().flatten() {
            fs::write(group.join("cgroup.procs"), pid.to_string())?;
        }
        Ok(())
    }

    /// Nothing of the file is in the page cache afterwards.
    pub fn make_cold(&self, file: &fs::File) -> Result<()> {
        use std::os::fd::AsRawFd;
        file.sync_all()?;
        // SAFETY: no memory.
        match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
            0 => Ok(()),
            error => Err(std::io::Error::from_raw_os_error(error).into()),
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = run("umount", &["-l".as_ref(), &self.mounted]);
        let _ = run("losetup", &["-d".as_ref(), &self.device]);
        for group in [Some(&self.group), self.memory.as_ref()].into_iter().flatten() {
            let _ = fs::remove_dir(group);
        }
        let _ = &self.scratch;
    }
}
