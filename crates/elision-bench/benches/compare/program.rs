//! An unmodified program under the drop-in: the one that `elision demo` runs.

use elision_bench::{Bench, Lap, Result, Rng, Samples, Table, bytes, check_file, settle, speed, time};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Size of the program's records, and where in one the number is that it counts up.
const RECORD: usize = 256;
const VALUE: std::ops::Range<usize> = 8..16;

pub fn run(bench: &Bench) -> Result {
    let mut contents = Rng(7).bytes(bench.size);
    let path = bench.file("program", &contents)?;
    let library = drop_in()?;
    let program = built("elision-demo-edit")?;
    let records = bench.size / RECORD;
    let change = [records / 7, records / 2, records - 1];

    let [mut with, mut without]: [Samples<1>; 2] = Default::default();
    let [mut steps_with, mut steps_without]: [Samples<3>; 2] = Default::default();
    for _ in 0..bench.rounds {
        for (who, preload) in [("without", None), ("drop-in", Some(&library))] {
            settle(&path)?;
            let mut command = ordinary(&program);
            command
                .arg(&path)
                .arg("in_place")
                .args([records / 3].iter().chain(&change).map(usize::to_string));
            if let Some(library) = preload {
                command.env("LD_PRELOAD", library);
            }
            let mut lap = Lap::start();
            let output = command.output()?;
            let wall = lap.lap();
            let report = String::from_utf8(output.stdout)?;
            if !output.status.success() {
                return Err(format!("{who}: {}", String::from_utf8_lossy(&output.stderr)).into());
            }
            let steps = ["read_us", "edit_us", "write_us"].map(|name| member(&report, name) * 1e-6);
            let (all, each) = if preload.is_some() {
                (&mut with, &mut steps_with)
            } else {
                (&mut without, &mut steps_without)
            };
            all.push([wall]);
            each.push(steps);
            for record in change {
                let value = &mut contents[record * RECORD..][VALUE];
                let changed =
                    value.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte)).wrapping_add(1);
                value.copy_from_slice(&changed.to_le_bytes());
            }
            check_file(who, &path, &contents)?;
        }
    }
    let mut table =
        Table::new(&["", "read", "edit", "write", "wall time of the process", "speed, without = 1"]);
    for (who, all, each) in [("without", &without, &steps_without), ("drop-in", &with, &steps_with)] {
        let mut row = vec![who.to_owned()];
        row.extend((0..3).map(|step| time(each.step(step))));
        row.extend([time(all.total()), speed(all.total(), without.total())]);
        table.row(row);
    }
    table.print(&format!(
        "An unmodified program: read {}, find one record, change three, write it back",
        bytes(bench.size as u64)
    ));
    std::fs::remove_file(path)?;
    Ok(())
}

/// A number in one line of JSON.
fn member(json: &str, name: &str) -> f64 {
    let rest = json.split_once(&format!("\"{name}\":")).map_or("", |(_, rest)| rest);
    rest.split([',', '}']).next().and_then(|number| number.trim().parse().ok()).unwrap_or(f64::NAN)
}

/// A program to be run without anything that is set for another one.
pub fn ordinary(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_remove("LD_PRELOAD");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"ELISION")) {
        command.env_remove(name);
    }
    command
}

/// The drop-in.
pub fn drop_in() -> Result<PathBuf> {
    built("libelision_preload.so")
}

/// Something that was built beside this bench.
fn built(name: &str) -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    let found = here.ancestors().skip(2).take(1).map(|dir| dir.join(name)).find(|path| path.exists());
    Ok(found.ok_or_else(|| format!("{name} is not built; scripts/bench builds it"))?)
}
