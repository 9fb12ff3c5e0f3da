//! What the drop-in adds to the start of a program that does nothing.

use crate::program::{drop_in, ordinary};
use elision_bench::{Bench, Result, Table, median, time};
use std::time::Instant;

pub fn run(bench: &Bench) -> Result {
    let library = drop_in()?;
    let rounds = if bench.smoke { 5 } else { 500 };
    let names = ["without", "drop-in, ELISION=off", "drop-in"];
    let mut seconds: [Vec<f64>; 3] = Default::default();
    // In turn, one start at a time: what disturbs the machine disturbs all three.
    for _ in 0..rounds {
        for (variant, seconds) in seconds.iter_mut().enumerate() {
            let mut command = ordinary("/bin/true".as_ref());
            if variant > 0 {
                command.env("LD_PRELOAD", &library);
            }
            if variant == 1 {
                command.env("ELISION", "off");
            }
            let begun = Instant::now();
            let status = command.status()?;
            seconds.push(begun.elapsed().as_secs_f64());
            if !status.success() {
                return Err(format!("{}: {status}", names[variant]).into());
            }
        }
    }
    let mut table = Table::new(&["/bin/true", "least", "difference", "median", "difference"]);
    let least = seconds.each_ref().map(|seconds| seconds.iter().copied().fold(f64::INFINITY, f64::min));
    let medians = seconds.map(median);
    let more = |value: f64, without: f64| format!("{:+.1} µs", (value - without) * 1e6);
    for (variant, name) in names.iter().enumerate() {
        table.row([
            (*name).to_owned(),
            time(least[variant]),
            more(least[variant], least[0]),
            time(medians[variant]),
            more(medians[variant], medians[0]),
        ]);
    }
    table.print(&format!("From the start of a program to its end, {rounds} times each"));
    Ok(())
}
