//! The files of the demo: what they contain before and after the edit.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use indicatif::ProgressBar;

/// The size of a record: a number, a value, a text.
const RECORD: usize = 256;
const CHUNK: usize = 4 << 20;
/// The program edits the file once for each way to save it.
pub const WAYS: [&str; 3] = ["in_place", "renamed", "over_it"];
/// Each adds one to the changed values.
const EDITS: u64 = WAYS.len() as u64;
/// With fewer records, the three to change would not differ.
const FEWEST: u64 = 16;

/// The records of a file, and those to find and to change.
pub struct Job {
    records: u64,
    find: u64,
    change: [u64; 3],
}

impl Job {
    pub fn new(size: u64) -> Result<Job> {
        let records = size / RECORD as u64;
        ensure!(records >= FEWEST, "--size must be at least {} bytes", FEWEST * RECORD as u64);
        Ok(Job { records, find: records / 3, change: [records / 7, records / 2, records - 1] })
    }

    /// The size of the file.
    pub fn bytes(&self) -> u64 {
        self.records * RECORD as u64
    }

    /// The value of the record to be found.
    pub fn found(&self) -> u64 {
        value(self.find)
    }

    /// The editing program, to be run on `file`.
    pub fn command(&self, editor: &Path, file: &Path) -> Command {
        let mut command = Command::new(editor);
        command
            .arg(file)
            .arg(WAYS.join(","))
            .arg(self.find.to_string())
            .args(self.change.map(|number| number.to_string()));
        command
    }

    /// Writes the file as before the edit, and syncs it.
    pub fn make(&self, path: &Path, progress: &ProgressBar) -> Result<()> {
        let mut file = File::create_new(path)?;
        self.each_chunk(false, |expected| {
            file.write_all(expected)?;
            progress.inc(expected.len() as u64);
            Ok(())
        })?;
        // Dirty pages would blur what the runs write.
        Ok(file.sync_all()?)
    }

    /// Is the file as the edit should have left it?
    pub fn check(&self, path: &Path, progress: &ProgressBar) -> Result<()> {
        let name = path.file_name().unwrap_or_default().display();
        let mut file = File::open(path)?;
        let (mut found, mut offset) = (vec![0; CHUNK], 0);
        self.each_chunk(true, |expected| {
            let found = &mut found[..expected.len()];
            file.read_exact(found).with_context(|| format!("the {name} file is too short"))?;
            if let Some(at) = (found != expected)
                .then(|| found.iter().zip(expected).position(|(found, expected)| found != expected))
                .flatten()
            {
                bail!("the {name} file is wrong at byte {}", offset + at as u64);
            }
            offset += expected.len() as u64;
            progress.inc(expected.len() as u64);
            Ok(())
        })?;
        ensure!(file.read(&mut [0])? == 0, "the {name} file is too long");
        Ok(())
    }

    /// Passes the contents before or after the edit, piece by piece.
    fn each_chunk(&self, edited: bool, mut visit: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut chunk = vec![0; CHUNK];
        let mut number = 0;
        while number < self.records {
            let mut filled = 0;
            for record in chunk.chunks_exact_mut(RECORD).take((self.records - number) as usize) {
                let changed = if edited && self.change.contains(&number) { EDITS } else { 0 };
                fill_record(record, number, value(number).wrapping_add(changed));
                number += 1;
                filled += RECORD;
            }
            visit(&chunk[..filled])?;
        }
        Ok(())
    }
}

/// The value of a record: scattered, so that no two pages are alike.
fn value(number: u64) -> u64 {
    (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn fill_record(record: &mut [u8], number: u64, value: u64) {
    let (head, text) = record.split_at_mut(16);
    head[..8].copy_from_slice(&number.to_le_bytes());
    head[8..].copy_from_slice(&value.to_le_bytes());
    for word in text.chunks_exact_mut(8) {
        word.copy_from_slice(&number.rotate_left(32).to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::PathBuf;
    use tempfile::TempDir;

    fn job() -> (TempDir, PathBuf, Job) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("file");
        let job = Job::new((CHUNK + 5 * RECORD) as u64).expect("big enough");
        job.make(&path, &ProgressBar::hidden()).expect("made");
        (dir, path, job)
    }

    fn check(job: &Job, path: &Path) -> Result<(), String> {
        job.check(path, &ProgressBar::hidden()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_that_was_not_edited_fails_the_check() {
        let (_dir, path, job) = job();
        let first = job.change.iter().min().expect("three") * RECORD as u64 + 8;
        assert_eq!(check(&job, &path), Err(format!("the file file is wrong at byte {first}")));
    }

    #[test]
    fn every_byte_and_the_length_are_checked() {
        let (_dir, path, job) = job();
        let mut right = fs::read(&path).expect("read");
        for &number in &job.change {
            let at = number as usize * RECORD;
            fill_record(&mut right[at..at + RECORD], number, value(number).wrapping_add(EDITS));
        }
        fs::write(&path, &right).expect("write");
        assert_eq!(check(&job, &path), Ok(()));
        for at in [0, CHUNK - 1, CHUNK, right.len() - 1] {
            let mut wrong = right.clone();
            wrong[at] ^= 1;
            fs::write(&path, &wrong).expect("write");
            assert_eq!(check(&job, &path), Err(format!("the file file is wrong at byte {at}")));
        }
        fs::write(&path, &right[..right.len() - 1]).expect("write");
        assert_eq!(check(&job, &path), Err("the file file is too short".into()));
        right.push(0);
        fs::write(&path, &right).expect("write");
        assert_eq!(check(&job, &path), Err("the file file is too long".into()));
    }
}
