//! Reading a file and looking at every byte of it: where nothing can be saved but the copy.

use crate::peers;
use elision_bench::{Bench, Lap, Result, Rng, Samples, Table, bytes, check_sum, speed, sum, time};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// From this size on the library defers unless told otherwise.
const THRESHOLD: usize = 256 << 10;

pub fn run(bench: &Bench) -> Result {
    let mut fresh = Table::new(&[
        "size",
        "elision::read",
        "std::fs::read",
        "std, page aligned",
        "memmap2 map_copy",
        "std, pieces of 128 KiB",
        "speed, std = 1",
        "speed, aligned = 1",
        "speed, memmap2 = 1",
        "speed, pieces = 1",
    ]);
    let mut reused = Table::new(&[
        "size",
        "elision Buffer::read_at",
        "std, Vec",
        "std, page aligned",
        "speed, Vec = 1",
        "speed, aligned = 1",
    ]);
    let mut size = 64 << 10;
    while size <= bench.size {
        let contents = Rng(size as u64).bytes(size);
        let path = bench.file("sum", &contents)?;
        let expected = sum(&contents);
        drop(contents);
        // About as many bytes per sample whatever the size, and more rounds where they are cheap.
        let repeats = ((8 << 20) / size).max(1);
        let rounds = if bench.smoke { 1 } else { bench.rounds.max((64 << 20) / size).min(15) };
        let measure = |who: &str, work: &mut dyn FnMut() -> Result<u64>| -> Result<[f64; 1]> {
            let mut lap = Lap::start();
            for _ in 0..repeats {
                check_sum(who, work()?, expected)?;
            }
            Ok([lap.lap() / repeats as f64])
        };

        let mut samples: [Samples<1>; 8] = Default::default();
        let [deferred, std, aligned, mapped, pieces, again, std_again, aligned_again] = &mut samples;
        let file = elision::File::open(&path)?;
        let mut buffer = elision::Buffer::new(size)?;
        buffer.fill(1);
        let std_file = File::open(&path)?;
        let mut std_buffer = vec![1; size];
        let mut aligned_buffer = peers::warm_aligned(size)?;
        for _ in 0..rounds {
            deferred.push(measure("elision::read", &mut || Ok(sum(&elision::read(&path)?)))?);
            std.push(measure("std::fs::read", &mut || Ok(sum(&std::fs::read(&path)?)))?);
            aligned.push(measure("std, aligned", &mut || Ok(sum(&peers::read_aligned(&path)?)))?);
            mapped.push(measure("memmap2", &mut || Ok(sum(&peers::map_copy(&path)?)))?);
            pieces.push(measure("std, pieces", &mut || Ok(peers::sum_in_pieces(&path)?))?);
            again.push(measure("elision, reused", &mut || {
                buffer.read_at(0, size, &file, 0)?;
                Ok(sum(&buffer))
            })?);
            std_again.push(measure("std, reused", &mut || {
                std_file.read_exact_at(&mut std_buffer, 0)?;
                Ok(sum(&std_buffer))
            })?);
            aligned_again.push(measure("std, aligned, reused", &mut || {
                std_file.read_exact_at(&mut aligned_buffer, 0)?;
                Ok(sum(&aligned_buffer))
            })?);
        }
        let [deferred, std, aligned, mapped, pieces, again, std_again, aligned_again] =
            samples.map(|peer| peer.total());
        let name = bytes(size as u64) + if size < THRESHOLD { " (below the threshold)" } else { "" };
        fresh.row([
            name.clone(),
            time(deferred),
            time(std),
            time(aligned),
            time(mapped),
            time(pieces),
            speed(deferred, std),
            speed(deferred, aligned),
            speed(deferred, mapped),
            speed(deferred, pieces),
        ]);
        reused.row([
            name,
            time(again),
            time(std_again),
            time(aligned_again),
            speed(again, std_again),
            speed(again, aligned_again),
        ]);
        drop(buffer);
        std::fs::remove_file(path)?;
        size *= 4;
    }
    fresh.print("Read and sum every byte, into fresh memory");
    reused.print("Read and sum every byte, into the same memory again and again");
    Ok(())
}
