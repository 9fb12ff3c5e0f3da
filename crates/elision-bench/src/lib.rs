//! What the cases of the bench share: files with known contents, a random number generator that repeats itself,
//! medians, and tables.
//!
//! - *case*: one table; the same work done by several peers.
//! - *peer*: one way to do the work (elision, std, memmap2…).
//! - *round*: every peer once, in turn, so that whatever disturbs the machine disturbs all of them.

use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Bytes in a page.
pub const PAGE: usize = 4096;

/// Whatever stops a case: an I/O error, or a wrong byte.
pub type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// How much to do, and where.
pub struct Bench {
    dir: tempfile::TempDir,
    /// Bytes in the big file.
    pub size: usize,
    /// Times that each peer does the work.
    pub rounds: usize,
    /// Only to see that everything works.
    pub smoke: bool,
}

impl Bench {
    /// Works in a fresh directory in `ELISION_BENCH_DIR`, or else in the default temporary directory.
    ///
    /// # Errors
    /// If nothing can be deferred on that file system.
    pub fn new(smoke: bool) -> Result<Bench> {
        let place = std::env::var_os("ELISION_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        if !elision::probe::file_system(&place)?.supported {
            return Err(
                "set ELISION_BENCH_DIR to a directory on ext4, XFS, btrfs or tmpfs: here nothing is deferred"
                    .into(),
            );
        }
        let dir = tempfile::Builder::new().prefix("elision-bench-").tempdir_in(place)?;
        let (size, rounds) = if smoke { (8 << 20, 1) } else { (1 << 30, 5) };
        Ok(Bench { dir, size, rounds, smoke })
    }

    /// A path in the directory of this run.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a file with these contents. It is on the disk and in the page cache when this returns.
    ///
    /// # Errors
    /// As writing it.
    pub fn file(&self, name: &str, contents: &[u8]) -> io::Result<PathBuf> {
        let path = self.path(name);
        let mut file = File::create(&path)?;
        file.write_all(contents)?;
        file.sync_all()?;
        Ok(path)
    }

    /// What holds for all numbers of this run, as a line of markdown.
    pub fn conditions(&self) -> Result<String> {
        let system = elision::probe::file_system(self.dir.path())?;
        let huge = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
        let huge = huge.split(['[', ']']).nth(1).unwrap_or("absent").to_owned();
        Ok(format!(
            "Linux {}, {}, {} processors, transparent huge pages: {huge}; {} in the page cache, medians of {} rounds.",
            kernel_version(),
            system.name,
            std::thread::available_parallelism()?,
            bytes(self.size as u64),
            self.rounds
        ))
    }
}

/// The version without what distributors and owners append to it.
fn kernel_version() -> String {
    let release = elision::probe::release();
    release.split('-').next().unwrap_or(&release).to_owned()
}

/// splitmix64: small, good enough, and the same in every run.
pub struct Rng(pub u64);

impl Rng {
    /// A number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// `len` random bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        for word in bytes.chunks_exact_mut(8) {
            word.copy_from_slice(&self.number().to_le_bytes());
        }
        bytes
    }

    /// `share` of the pages of `len` bytes, each at most once, in random order.
    pub fn pages(&mut self, len: usize, share: f64) -> Vec<usize> {
        let mut pages: Vec<usize> = (0..len / PAGE).collect();
        let count = (pages.len() as f64 * share).round() as usize;
        for at in 0..count {
            let other = at + (self.number() % (pages.len() - at) as u64) as usize;
            pages.swap(at, other);
        }
        pages.truncate(count);
        pages
    }
}

/// Changes eight bytes in each of these pages.
pub fn alter(data: &mut [u8], pages: &[usize], value: u64) {
    for &page in pages {
        let at = page * PAGE + page * 8 % PAGE;
        data[at..at + 8].copy_from_slice(&(value ^ page as u64).to_le_bytes());
    }
}

/// Looks at one byte of each of these pages.
pub fn touch(data: &[u8], pages: &[usize]) -> u64 {
    black_box(pages.iter().map(|&page| u64::from(data[page * PAGE + page * 8 % PAGE])).sum())
}

/// Looks at every byte.
pub fn sum(data: &[u8]) -> u64 {
    // In pieces whose sums fit into 32 bits, which makes it as fast as memory is.
    black_box(
        data.chunks(1 << 16).map(|piece| u64::from(piece.iter().map(|&b| u32::from(b)).sum::<u32>())).sum(),
    )
}

/// Fails unless the file consists of these bytes.
///
/// # Errors
/// Names the first byte that differs.
pub fn check_file(who: &str, path: &Path, expected: &[u8]) -> Result {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    if len != expected.len() as u64 {
        return Err(format!("{who}: the file has {len} bytes, not {}", expected.len()).into());
    }
    let mut piece = vec![0; 1 << 20];
    for (index, expected) in expected.chunks(piece.len()).enumerate() {
        let piece = &mut piece[..expected.len()];
        file.read_exact(piece)?;
        check_bytes(who, piece, expected, index << 20)?;
    }
    Ok(())
}

/// Fails unless these bytes, which begin at `offset` of something bigger, are the expected ones.
///
/// # Errors
/// Names the first byte that differs.
pub fn check_bytes(who: &str, found: &[u8], expected: &[u8], offset: usize) -> Result {
    if found == expected {
        return Ok(());
    }
    let at = found.iter().zip(expected).position(|(a, b)| a != b).unwrap_or(found.len().min(expected.len()));
    Err(format!("{who}: wrong byte at {}", offset + at).into())
}

/// Fails unless two numbers are equal.
///
/// # Errors
/// Says whose differ.
pub fn check_sum(who: &str, found: u64, expected: u64) -> Result {
    if found == expected { Ok(()) } else { Err(format!("{who}: the sum is {found}, not {expected}").into()) }
}

/// What one peer left behind must not cost the next one: dirty pages go to the disk, guards are let go.
///
/// # Errors
/// As opening and syncing the file.
pub fn settle(path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.sync_all()
}

/// Time since the last call, again and again.
pub struct Lap(Instant);

impl Lap {
    /// Starts.
    pub fn start() -> Lap {
        Lap(Instant::now())
    }

    /// Seconds since the start or the last call.
    pub fn lap(&mut self) -> f64 {
        let now = Instant::now();
        let seconds = (now - self.0).as_secs_f64();
        self.0 = now;
        seconds
    }
}

/// Long enough for every thread that polls to have gone to sleep.
pub fn pause() {
    std::thread::sleep(Duration::from_millis(3));
}

/// Measurements of one peer: in each round the same steps, each with its seconds.
#[derive(Default)]
pub struct Samples<const STEPS: usize>(Vec<[f64; STEPS]>);

impl<const STEPS: usize> Samples<STEPS> {
    /// Adds a round.
    pub fn push(&mut self, round: [f64; STEPS]) {
        self.0.push(round);
    }

    /// The median of a step.
    pub fn step(&self, step: usize) -> f64 {
        median(self.0.iter().map(|round| round[step]).collect())
    }

    /// The least of a step: for what other work on the machine disturbs more than anything else.
    pub fn least(&self, step: usize) -> f64 {
        self.0.iter().map(|round| round[step]).fold(f64::NAN, f64::min)
    }

    /// The median of the first `steps` steps together.
    pub fn first(&self, steps: usize) -> f64 {
        median(self.0.iter().map(|round| round[..steps].iter().sum()).collect())
    }

    /// The median of all steps together.
    pub fn total(&self) -> f64 {
        self.first(STEPS)
    }

    /// Was it measured at all?
    pub fn any(&self) -> bool {
        !self.0.is_empty()
    }
}

/// The middle value.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Seconds, for people.
pub fn time(seconds: f64) -> String {
    match seconds {
        s if s.is_nan() => "–".into(),
        s if s < 1e-3 => format!("{:.1} µs", s * 1e6),
        s if s < 1.0 => format!("{:.2} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

/// How many times as fast as another peer.
pub fn speed(seconds: f64, other: f64) -> String {
    match other / seconds {
        times if times.is_nan() => "–".into(),
        times if times >= 20.0 => format!("{times:.0}"),
        times if times >= 0.01 => format!("{times:.2}"),
        times => format!("1/{:.0}", 1.0 / times),
    }
}

/// A number of bytes, for people.
pub fn bytes(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 30 => format!("{} GiB", short(b as f64 / (1u64 << 30) as f64)),
        b if b >= 1 << 20 => format!("{} MiB", short(b as f64 / f64::from(1 << 20))),
        b if b >= 1 << 10 => format!("{} KiB", short(b as f64 / 1024.0)),
        b => format!("{b} B"),
    }
}

fn short(number: f64) -> String {
    if number.fract() == 0.0 { format!("{number}") } else { format!("{number:.2}") }
}

/// A table of markdown: the first column and the peers are text, the others are numbers.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these heads.
    pub fn new(heads: &[&str]) -> Table {
        Table { rows: vec![heads.iter().map(|&head| head.to_owned()).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Adds rows in the order of their ratios to a plain run, the largest first.
    pub fn rows_losing_first<const N: usize>(&mut self, mut rows: Vec<(f64, [String; N])>) {
        rows.sort_by(|(one, _), (other, _)| other.total_cmp(one));
        rows.into_iter().for_each(|(_, cells)| self.row(cells));
    }

    /// Prints it under its title.
    pub fn print(&self, title: &str) {
        println!("\n### {title}\n");
        let columns = self.rows[0].len();
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(|column| width(column).max(3)).collect();
        let text = |column: usize| column == 0 || self.rows[0][column] == "peer";
        for (index, row) in self.rows.iter().enumerate() {
            let mut line = String::from("|");
            for (column, width) in widths.iter().enumerate() {
                let cell = row.get(column).map_or("", String::as_str);
                line +=
                    &if text(column) { format!(" {cell:<width$} |") } else { format!(" {cell:>width$} |") };
            }
            println!("{line}");
            if index == 0 {
                let rule = |(column, width): (usize, &usize)| {
                    format!(" {}{} |", "-".repeat(width - 1), if text(column) { "-" } else { ":" })
                };
                println!("|{}", widths.iter().enumerate().map(rule).collect::<String>());
            }
        }
        let _ = io::stdout().flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_chosen_once_each() {
        let mut pages = Rng(1).pages(1 << 20, 1.0);
        pages.sort_unstable();
        assert!(pages.into_iter().eq(0..256));
        assert_eq!(Rng(1).pages(1 << 20, 0.1).len(), 26);
    }

    #[test]
    fn a_wrong_byte_is_found() {
        let good = Rng(2).bytes(1 << 20);
        let mut bad = good.clone();
        bad[777_777] ^= 1;
        let error = check_bytes("peer", &bad, &good, 1 << 20).unwrap_err().to_string();
        assert_eq!(error, format!("peer: wrong byte at {}", 777_777 + (1 << 20)));
    }

    #[test]
    fn sums_are_of_all_bytes() {
        assert_eq!(sum(&vec![255; (1 << 20) + 3]), 255 * ((1 << 20) + 3));
    }
}
