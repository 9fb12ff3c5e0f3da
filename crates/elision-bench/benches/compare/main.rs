//! Elision beside std and memory maps: the same work in one run, losing cases included.
//!
//! `compare [smoke] [CASE...]`: with `smoke`, on tiny files and once, only to see that no byte is wrong.

mod blocks;
mod calls;
mod checkpoint;
mod cold;
mod contention;
mod cost;
mod edit;
mod extents;
mod peers;
mod program;
mod read;
mod saves;
mod share;
mod start;
mod sum;
mod threads;

use elision_bench::{Bench, Result};

type Case = (&'static str, fn(&Bench) -> Result);

const CASES: [Case; 16] = [
    ("read", read::run),
    ("sum", sum::run),
    ("edit", edit::run),
    ("checkpoint", checkpoint::run),
    ("saves", saves::run),
    ("rewrite", saves::rewrite),
    ("calls", calls::run),
    ("blocks", blocks::run),
    ("start", start::run),
    ("program", program::run),
    ("extents", extents::run),
    ("threads", threads::run),
    ("cost", cost::run),
    ("share", share::run),
    ("contention", contention::run),
    (SLOW, cold::run),
];

/// Runs only if it is named, or in the short form.
const SLOW: &str = "cold";

fn main() -> Result {
    // cargo adds `--bench`.
    let mut arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let Some(("--child", child)) = arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return match child {
            [name, path] if name == "first-read" => read::child(path.as_ref()),
            [name, path, rest @ ..] if name == "calls" => calls::child(path.as_ref(), rest),
            [name, way, blocks] if name == "blocks" => blocks::child(way.parse()?, blocks.parse()?),
            [name, rest @ ..] if name == "extents" => extents::child(rest),
            [name, rest @ ..] if name == "threads" => threads::child(rest),
            [name, rest @ ..] if name == "cold" => cold::child(rest),
            [name, row] if name == "cost" => cost::child(row),
            [name, rest @ ..] if name == "contention" => contention::child(rest),
            [name] if name == "writer" => contention::writer(),
            [name] if name == "open" => extents::other(),
            _ => Err("no such child".into()),
        };
    }
    let smoke = arguments.first().is_some_and(|first| first == "smoke");
    if smoke {
        arguments.remove(0);
    }
    if let Some(unknown) = arguments.iter().find(|name| CASES.iter().all(|(case, _)| case != name)) {
        let names = CASES.map(|(case, _)| case).join(", ");
        return Err(format!("no such case: {unknown}; there are {names}").into());
    }
    peers::keep_memory_fresh();
    let bench = Bench::new(smoke)?;
    println!("{}", bench.conditions()?);
    println!("\"Speed\" is how many times as fast as the peer named in the head: above 1 is faster.");
    for (name, run) in CASES {
        let by_default = arguments.is_empty() && (smoke || name != SLOW);
        if by_default || arguments.iter().any(|wanted| wanted == name) {
            run(&bench).map_err(|error| format!("case {name}: {error}"))?;
        }
    }
    let stats = elision::stats::snapshot();
    let declined: Vec<String> =
        stats.declined.iter().map(|(reason, count)| format!("{} {count}", reason.name())).collect();
    println!(
        "\nDeclined by the library in this run: {}.",
        if declined.is_empty() { "nothing".into() } else { declined.join(", ") }
    );
    Ok(())
}
