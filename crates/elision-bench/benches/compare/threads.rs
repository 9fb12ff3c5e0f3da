//! Several threads that read at the same time, each its own file or all the same: do they hold each other up?

use crate::peers;
use crate::program::{drop_in, ordinary};
use elision_bench::{Bench, PAGE, Result, Rng, Samples, Table, bytes, check_bytes, sum, time, touch};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::Instant;

const THREADS: [usize; 3] = [1, 2, 4];

/// Bytes of a small read.
const SMALL: usize = 64;

/// A peer as its child knows it, what it reads, and whether the child is under the drop-in.
struct Peer {
    title: &'static str,
    name: &'static str,
    preload: bool,
}

const PEERS: [Peer; 12] = [
    Peer { title: "elision::read", name: "whole", preload: false },
    Peer { title: "elision Buffer::read_at", name: "buffer", preload: false },
    Peer { title: "memmap2 map_copy", name: "mapped", preload: false },
    Peer { title: "drop-in: read into the same memory", name: "std", preload: true },
    Peer { title: "std: read into the same memory", name: "std", preload: false },
    Peer { title: "drop-in: the same, touch all", name: "all", preload: true },
    Peer { title: "std: the same, touch all", name: "all", preload: false },
    Peer { title: "elision::read, sum every byte", name: "whole, summed", preload: false },
    Peer { title: "drop-in: read into the same memory, sum", name: "summed", preload: true },
    Peer { title: "std: read into the same memory, sum", name: "summed", preload: false },
    Peer { title: "drop-in: 64 bytes", name: "small", preload: true },
    Peer { title: "std: 64 bytes", name: "small", preload: false },
];

pub fn run(bench: &Bench) -> Result {
    let size = if bench.smoke { 4 << 20 } else { 16 << 20 };
    let contents = Rng(8).bytes(size);
    let paths: Vec<PathBuf> =
        (0..4).map(|at| bench.file(&format!("threads{at}"), &contents)).collect::<std::io::Result<_>>()?;
    let library = drop_in()?;
    let heads = ["peer", "files", "1 thread", "2 threads, each", "4 threads, each"];
    let mut table =
        Table::new(&[&heads[..], &["2 threads: reads, 1 = 1", "4 threads: reads, 1 = 1"]].concat());
    for (files, one) in [("its own", false), ("the same", true)] {
        let mut samples: [Samples<3>; PEERS.len()] = Default::default();
        for _ in 0..bench.rounds {
            for (peer, samples) in PEERS.iter().zip(&mut samples) {
                let mut seconds = [0.0; 3];
                for (threads, seconds) in THREADS.iter().zip(&mut seconds) {
                    let mut command = ordinary(&std::env::current_exe()?);
                    let reads = match (bench.smoke, peer.name) {
                        (true, _) => 5,
                        (false, "small") => 100_000,
                        (false, _) => 40,
                    };
                    command.args(["--child", "threads", peer.name, &reads.to_string()]);
                    command.args((0..*threads).map(|at| &paths[if one { 0 } else { at }]));
                    if peer.preload {
                        command.env("LD_PRELOAD", &library);
                    }
                    let output = command.output()?;
                    if !output.status.success() {
                        let error = String::from_utf8_lossy(&output.stderr);
                        return Err(format!("{}: {}, {error}", peer.title, output.status).into());
                    }
                    *seconds = String::from_utf8(output.stdout)?.trim().parse()?;
                }
                samples.push(seconds);
            }
        }
        for (peer, samples) in PEERS.iter().zip(&samples) {
            let mut row = vec![peer.title.to_owned(), files.to_owned()];
            row.extend((0..3).map(|step| time(samples.least(step))));
            row.extend(
                (1..3).map(|step| {
                    format!("{:.2}", samples.least(0) * THREADS[step] as f64 / samples.least(step))
                }),
            );
            table.row(row);
        }
    }
    table.print(&format!(
        "Threads that read {} (or 64 bytes) again and again, and touch 1 %; the least of all rounds",
        bytes(size as u64)
    ));
    paths.into_iter().try_for_each(|path| Ok(std::fs::remove_file(path)?))
}

/// In a child: `[peer, reads, a file for each thread]`; prints the seconds of one read, as each thread sees it.
pub fn child(arguments: &[String]) -> Result {
    let [peer, reads, paths @ ..] = arguments else { return Err("peer, reads, paths".into()) };
    let reads: usize = reads.parse()?;
    elision::set_min_bytes(1 << 20);
    let barrier = Barrier::new(paths.len());
    let seconds = std::thread::scope(|scope| -> Result<f64> {
        let threads: Vec<_> = paths
            .iter()
            .map(|path| {
                let barrier = &barrier;
                // (As text, since a `dyn Error` may not leave its thread.)
                scope.spawn(move || {
                    let reader = reader(peer, path.as_ref()).map_err(|error| error.to_string());
                    let warm = reader.and_then(|mut reader| match reader() {
                        Ok(()) => Ok(reader),
                        Err(error) => Err(error.to_string()),
                    });
                    barrier.wait();
                    let mut reader = warm?;
                    let begun = Instant::now();
                    (0..reads).try_for_each(|_| reader().map_err(|error| error.to_string()))?;
                    Ok::<_, String>((begun, Instant::now()))
                })
            })
            .collect();
        let times: Vec<(Instant, Instant)> = threads
            .into_iter()
            .map(|thread| Ok(thread.join().map_err(|_| "a thread panicked")??))
            .collect::<Result<_>>()?;
        // From the first that began to the last that ended.
        let begun = times.iter().map(|time| time.0).min().ok_or("no threads")?;
        let ended = times.iter().map(|time| time.1).max().ok_or("no threads")?;
        Ok((ended - begun).as_secs_f64() / reads as f64)
    })?;
    println!("{seconds}");
    Ok(())
}

/// What one thread does again and again. Looks at the bytes of the pages that it touches.
fn reader(peer: &str, path: &Path) -> Result<Box<dyn FnMut() -> Result>> {
    let expected = std::fs::read(path)?;
    let len = expected.len();
    let pages = Rng(9).pages(len, if peer == "all" { 1.0 } else { 0.01 });
    let every = peer.ends_with("summed");
    let look = move |data: &[u8]| if every { sum(data) } else { touch(data, &pages) };
    let seen = look(&expected);
    let check = move |data: &[u8]| -> Result { elision_bench::check_sum("a reader", look(data), seen) };
    let path = path.to_owned();
    Ok(match peer {
        "whole" | "whole, summed" => Box::new(move || check(&elision::read(&path)?)),
        "mapped" => Box::new(move || check(&peers::map_copy(&path)?)),
        "buffer" => {
            let file = elision::File::open(&path)?;
            let mut buffer = elision::Buffer::new(len)?;
            Box::new(move || {
                buffer.read_at(0, len, &file, 0)?;
                check(&buffer)
            })
        }
        "std" | "all" | "summed" => {
            let file = File::open(&path)?;
            let mut data = peers::warm_aligned(len)?;
            Box::new(move || {
                file.read_exact_at(&mut data, 0)?;
                check(&data)
            })
        }
        "small" => {
            let file = File::open(&path)?;
            let mut data = [0; SMALL];
            let mut at = 0;
            Box::new(move || {
                at = (at + PAGE) % len;
                file.read_exact_at(&mut data, at as u64)?;
                check_bytes("a small read", &data, &expected[at..at + SMALL], at)
            })
        }
        _ => return Err("no such peer".into()),
    })
}
