//! An ordinary program that edits a big file the simple way: read all of it, find one record, change three, write all of it back. It
//! knows nothing of Elision and uses nothing but std's `File`.
//!
//! `elision-demo-edit FILE WAYS FIND CHANGE CHANGE CHANGE`: it does so once for each way to save, of `in_place`, `renamed` (another file)
//! and `over_it` (the file is emptied first), with commas between. The last four are numbers of records. What it cost is printed as
//! one line of JSON.

use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// A record is its number, its value, and a text that nothing here looks at.
const RECORD: usize = 256;
const VALUE: std::ops::Range<usize> = 8..16;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (path, ways) =
        arguments.next().zip(arguments.next()).ok_or("usage: elision-demo-edit FILE WAYS FIND CHANGE...")?;
    let records = arguments.map(|number| number.parse()).collect::<Result<Vec<usize>, _>>()?;
    let (find, change) = records.split_first().ok_or("which record?")?;

    let (mut found, mut account, mut steps) = (0, String::new(), [Duration::ZERO; 3]);
    for way in ways.split(',') {
        let begun = Instant::now();
        found = edit(path.as_ref(), way, *find, change, &mut steps)?;
        account += &format!(r#""{way}_us":{},"#, begun.elapsed().as_micros());
    }
    for (name, step) in ["read", "edit", "write"].iter().zip(steps) {
        account += &format!(r#""{name}_us":{},"#, step.as_micros());
    }
    println!(r#"{{"found":{found},{account}{},"peak_bytes":{}}}"#, transferred()?, peak_memory()?);
    Ok(())
}

/// The value that was found. Each step's time is added to `steps`.
fn edit(
    path: &Path,
    way: &str,
    find: usize,
    change: &[usize],
    [read, edit, write]: &mut [Duration; 3],
) -> Result<u64, Box<dyn Error>> {
    let begun = Instant::now();
    let mut file = OpenOptions::new().read(true).write(way == "in_place").open(path)?;
    let mut data = vec![0; file.metadata()?.len() as usize];
    fill(&mut file, &mut data)?;
    *read += begun.elapsed();

    let begun = Instant::now();
    let found = u64::from_le_bytes(value(&mut data, find)?.try_into()?);
    for &record in change {
        let value = value(&mut data, record)?;
        let changed = u64::from_le_bytes(value.try_into()?).wrapping_add(1);
        value.copy_from_slice(&changed.to_le_bytes());
    }
    *edit += begun.elapsed();

    let begun = Instant::now();
    match way {
        "in_place" => {
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&data)?;
        }
        "renamed" => {
            let new = path.with_extension("new");
            fs::write(&new, &data)?;
            fs::rename(new, path)?;
        }
        "over_it" => {
            drop(file);
            fs::write(path, &data)?;
        }
        _ => return Err(format!("{way}: no way to save").into()),
    }
    *write += begun.elapsed();
    Ok(found)
}

fn fill(file: &mut File, mut data: &mut [u8]) -> Result<(), Box<dyn Error>> {
    while !data.is_empty() {
        match file.read(data)? {
            0 => return Err("the file became shorter".into()),
            count => data = &mut data[count..],
        }
    }
    Ok(())
}

fn value(data: &mut [u8], record: usize) -> Result<&mut [u8], Box<dyn Error>> {
    let record = data.chunks_exact_mut(RECORD).nth(record).ok_or("there is no such record")?;
    Ok(&mut record[VALUE])
}

/// The kernel's account of what this process read and wrote, as members of a JSON object.
fn transferred() -> Result<String, Box<dyn Error>> {
    let account = fs::read_to_string("/proc/self/io")?;
    let members = account.lines().filter_map(|line| line.split_once(": "));
    Ok(members.map(|(name, count)| format!(r#""{name}":{count}"#)).collect::<Vec<_>>().join(","))
}

fn peak_memory() -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}
