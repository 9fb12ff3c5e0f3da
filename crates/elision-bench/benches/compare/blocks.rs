//! Large blocks of malloc's that are filled and freed, again and again: the drop-in places them itself.
#![allow(unsafe_code)] // Calls malloc as a C program does, through the symbols that the drop-in stands in for.

use crate::program::{drop_in, ordinary};
use elision_bench::{Bench, PAGE, Result, Rng, Table, median, speed, time};
use std::ffi::c_void;
use std::hint::black_box;
use std::time::Instant;

const MIB: usize = 1 << 20;

/// What is done: for how many blocks at a time, of which sizes in MiB, and whether a block is made longer where it could be freed.
const WAYS: [(&str, usize, std::ops::Range<usize>, bool); 6] = [
    ("of 8 MiB", 1, 8..9, false),
    ("of 4 to 30 MiB", 1, 4..31, false),
    ("of 4 to 19 MiB, four at a time", 4, 4..20, false),
    ("of 4 to 19 MiB, four at a time, by realloc", 4, 4..20, true),
    ("of 4 to 8 MiB, forty at a time", 40, 4..9, false),
    ("of 40 MiB", 1, 40..41, false),
];

pub fn run(bench: &Bench) -> Result {
    let library = drop_in()?;
    let (processes, blocks) = if bench.smoke { (1, 10) } else { (9, 400) };
    let mut table = Table::new(&["blocks", "process", "each", "speed, without = 1"]);
    for (way, (name, ..)) in WAYS.iter().enumerate() {
        let mut seconds: [Vec<f64>; 2] = Default::default();
        // In turn: what disturbs the machine disturbs both.
        for _ in 0..processes {
            for (preloads, seconds) in seconds.iter_mut().enumerate() {
                let mut command = ordinary(&std::env::current_exe()?);
                command.args(["--child", "blocks", &way.to_string(), &blocks.to_string()]);
                if preloads == 1 {
                    command.env("LD_PRELOAD", &library);
                }
                let output = command.output()?;
                if !output.status.success() {
                    return Err(format!("{name}: {}", output.status).into());
                }
                seconds.push(String::from_utf8(output.stdout)?.trim().parse::<f64>()?);
            }
        }
        let [without, with] = seconds.map(median);
        table.row([(*name).to_owned(), "without".to_owned(), time(without), speed(without, without)]);
        table.row([(*name).to_owned(), "drop-in".to_owned(), time(with), speed(with, without)]);
    }
    table.print(&format!("Large blocks that are allocated, stored into once a page, and freed: {blocks} in each of {processes} processes"));
    Ok(())
}

/// In a child: prints seconds for a block.
pub fn child(way: usize, blocks: usize) -> Result {
    let (_, live, sizes, grows) = WAYS.get(way).cloned().ok_or("no such way")?;
    let mut random = Rng(3);
    let mut held: Vec<*mut c_void> = vec![std::ptr::null_mut(); live];
    let begun = Instant::now();
    for _ in 0..blocks {
        let len = (sizes.start + random.number() as usize % sizes.len()) * MIB;
        let place = &mut held[random.number() as usize % live];
        // SAFETY: what is freed or made longer was allocated here; the bytes stored into are the block's.
        unsafe {
            let block = if grows {
                libc::realloc(*place, len)
            } else {
                libc::free(*place);
                libc::malloc(len)
            };
            if block.is_null() {
                return Err("no memory".into());
            }
            (0..len).step_by(PAGE).for_each(|at| block.cast::<u8>().add(at).write(1));
            *place = black_box(block);
        }
    }
    println!("{}", begun.elapsed().as_secs_f64() / blocks as f64);
    Ok(())
}
