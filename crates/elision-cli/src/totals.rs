//! The statistics of a tree of processes: their lines of JSON, added up.
//!
//! At its end, each process that used Elision appends one line to the file that `ELISION_STATS` names; and one when a program does
//! something that ends deferral:
//!
//! ```json
//! {"pid":1,"stopped":"why"}
//! {"pid":1,"deferred_bytes":0,"loaded_bytes":0,"materialised_bytes":0,"prefetched_bytes":0,"elided_bytes":0,"shared_bytes":0,"written_bytes":0,"declined":{"reason":1},"declined_read_bytes":{"reason":1}}
//! ```

use std::collections::{BTreeMap, BTreeSet};

use comfy_table::{CellAlignment, Table, presets};
use elision_core::stats::Reason;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::units::bytes;

/// Numbers of bytes.
#[derive(Default, Debug, Deserialize)]
#[serde(default)]
pub struct Amounts {
    pub deferred_bytes: u64,
    pub loaded_bytes: u64,
    pub materialised_bytes: u64,
    pub prefetched_bytes: u64,
    pub elided_bytes: u64,
    pub shared_bytes: u64,
    pub written_bytes: u64,
}

/// A line that a process reports.
#[derive(Deserialize)]
struct Line {
    pid: u64,
    stopped: Option<String>,
    /// The line is about a file (see `report/story.rs`).
    file: Option<String>,
    #[serde(flatten)]
    amounts: Amounts,
    #[serde(default)]
    declined: BTreeMap<String, u64>,
    #[serde(default)]
    declined_read_bytes: BTreeMap<String, u64>,
}

/// The sums.
#[derive(Default, Debug)]
pub struct Totals {
    pub amounts: Amounts,
    /// How often a transfer was declined, by the reason.
    pub declined: BTreeMap<String, u64>,
    /// Bytes of the reads among these.
    pub declined_read_bytes: BTreeMap<String, u64>,
    /// How often deferral ended, by what ended it.
    pub stopped: BTreeMap<String, u64>,
    processes: BTreeSet<u64>,
}

impl Totals {
    /// Adds up the lines of a statistics file. A malformed line is left out with a warning: the process may have been killed while it wrote.
    pub fn of(lines: &str) -> Totals {
        let mut totals = Totals::default();
        for line in lines.lines().filter(|line| !line.trim().is_empty()) {
            match serde_json::from_str(line) {
                Ok(line) => totals.add(line),
                Err(_) => eprintln!("elision: ignored a malformed line of statistics: {line}"),
            }
        }
        totals
    }

    fn add(&mut self, line: Line) {
        if line.file.is_some() {
            return;
        }
        if let Some(why) = line.stopped {
            *self.stopped.entry(why).or_default() += 1;
            return;
        }
        // A process that execs reports once for each program.
        self.processes.insert(line.pid);
        let add = |sum: &mut u64, amount| *sum = sum.saturating_add(amount);
        add(&mut self.amounts.deferred_bytes, line.amounts.deferred_bytes);
        add(&mut self.amounts.loaded_bytes, line.amounts.loaded_bytes);
        add(&mut self.amounts.materialised_bytes, line.amounts.materialised_bytes);
        add(&mut self.amounts.prefetched_bytes, line.amounts.prefetched_bytes);
        add(&mut self.amounts.elided_bytes, line.amounts.elided_bytes);
        add(&mut self.amounts.shared_bytes, line.amounts.shared_bytes);
        add(&mut self.amounts.written_bytes, line.amounts.written_bytes);
        for (reason, count) in line.declined {
            add(self.declined.entry(reason).or_default(), count);
        }
        for (reason, bytes) in line.declined_read_bytes {
            add(self.declined_read_bytes.entry(reason).or_default(), bytes);
        }
    }

    /// Did no process report?
    pub fn is_empty(&self) -> bool {
        self.processes.is_empty() && self.stopped.is_empty()
    }

    /// The sums as one JSON object.
    pub fn to_json(&self) -> Value {
        json!({
            "processes": self.processes.len(),
            "deferred_bytes": self.amounts.deferred_bytes,
            "loaded_bytes": self.amounts.loaded_bytes,
            "materialised_bytes": self.amounts.materialised_bytes,
            "prefetched_bytes": self.amounts.prefetched_bytes,
            "elided_bytes": self.amounts.elided_bytes,
            "shared_bytes": self.amounts.shared_bytes,
            "written_bytes": self.amounts.written_bytes,
            "declined": self.declined,
            "declined_read_bytes": self.declined_read_bytes,
            "stopped": self.stopped,
        })
    }

    /// The sums as a table for people, or one line that there are none, and `why`.
    pub fn to_text(&self, why: &str) -> String {
        match self.is_empty() {
            true => format!("elision: nothing to report: {why}"),
            false => self.to_table().to_string(),
        }
    }

    fn to_table(&self) -> Table {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_BORDERS_ONLY);
        table.set_header(["elision", "total"]);
        table.add_row(["processes that used it".into(), self.processes.len().to_string()]);
        for (meaning, amount) in [
            ("deferred: read without loading", self.amounts.deferred_bytes),
            ("loaded after all, when touched", self.amounts.loaded_bytes),
            ("materialised, because the file changed", self.amounts.materialised_bytes),
            ("loaded ahead, because the program waited", self.amounts.prefetched_bytes),
            ("elided: written without storing", self.amounts.elided_bytes),
            ("shared: another file has the same blocks", self.amounts.shared_bytes),
            ("written", self.amounts.written_bytes),
        ] {
            table.add_row([meaning.into(), bytes(amount)]);
        }
        for (reason, count) in &self.declined {
            let reads =
                self.declined_read_bytes.get(reason).map(|&read| format!(", {} of reads", bytes(read)));
            table.add_row([
                match what_would_do(reason) {
                    Some(what) => format!("declined: {reason} ({what})"),
                    None => format!("declined: {reason}"),
                },
                format!("{count} times{}", reads.unwrap_or_default()),
            ]);
        }
        for (why, count) in &self.stopped {
            table.add_row([format!("ended, for the use of {why}"), format!("{count} times")]);
        }
        if let Some(column) = table.column_mut(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }
}

/// What would have to be different, where that can be said in a few words.
pub fn what_would_do(reason: &str) -> Option<&'static str> {
    Some(match Reason::ALL.iter().find(|known| known.name() == reason)? {
        Reason::Phase => "the buffer could begin elsewhere: ELISION_VERBOSE=1",
        Reason::OddPhase => "no block of malloc begins where it had to",
        Reason::Small => "--min-bytes",
        Reason::Memory => "the buffer is no ordinary private memory",
        Reason::OwnWriter => "one O_RDWR descriptor for all",
        Reason::NotSole => "close the file elsewhere before the save",
        Reason::LeaseRefused | Reason::FileSystem => "elision doctor FILE",
        _ => return None,
    })
}

/// Why processes with the drop-in, switched on, have nothing to report.
pub fn nothing_big(least: usize) -> String {
    format!(
        "no process that it reached read or wrote {} or more at once (--min-bytes sets from which size on a transfer is \
         considered)",
        bytes(least as u64)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = concat!(
        r#"{"pid":7,"deferred_bytes":100,"loaded_bytes":1,"materialised_bytes":2,"elided_bytes":90,"#,
        r#""written_bytes":10,"declined":{"too small":2,"writer":1},"declined_read_bytes":{"writer":4096}}"#,
        "\n",
        r#"{"pid":8,"deferred_bytes":11,"elided_bytes":5,"shared_bytes":7,"declined":{"writer":4},"declined_read_bytes":{"writer":2048},"new_field":[1]}"#,
        "\n",
    );

    #[test]
    fn lines_add_up() {
        let totals = Totals::of(TWO);
        let expected = json!({
            "processes": 2, "deferred_bytes": 111, "loaded_bytes": 1, "materialised_bytes": 2, "prefetched_bytes": 0,
            "elided_bytes": 95, "shared_bytes": 7, "written_bytes": 10, "declined": {"too small": 2, "writer": 5},
            "declined_read_bytes": {"writer": 6144}, "stopped": {},
        });
        assert_eq!(totals.to_json(), expected);
        let table = totals.to_table().to_string();
        assert!(table.contains("declined: writer") && table.contains("5 times, 6.0 KiB of reads"), "{table}");
        let advised = Totals::of(r#"{"pid":1,"declined":{"phase":2}}"#).to_text("");
        assert!(advised.contains("declined: phase (the buffer could begin elsewhere"), "{advised}");
    }

    #[test]
    fn a_process_that_execs_counts_once() {
        let line = r#"{"pid":7,"elided_bytes":5,"declined":{}}"#;
        let totals = Totals::of(&format!("{line}\n{line}\n"));
        assert_eq!((totals.to_json()["processes"].clone(), totals.amounts.elided_bytes), (json!(1), 10));
    }

    #[test]
    fn malformed_lines_leave_no_trace() {
        let broken = [
            r#"{"pid":9,"deferred_bytes":7,"declined":{"writer":"#,
            r#"{"pid":9,"deferred_bytes":7,"loaded_bytes":-1}"#,
            r#"{"pid":9,"deferred_bytes":7,"declined":{"writer":"many"}}"#,
            r#"{"deferred_bytes":7}"#,
            "[]",
            "\u{fffd}",
        ];
        for broken in broken {
            let totals = Totals::of(&format!("{TWO}{broken}\n"));
            assert_eq!(totals.to_json(), Totals::of(TWO).to_json(), "after {broken}");
        }
    }

    #[test]
    fn sums_do_not_wrap() {
        let line = format!(r#"{{"pid":1,"elided_bytes":{}}}"#, u64::MAX);
        assert_eq!(Totals::of(&format!("{line}\n{line}")).amounts.elided_bytes, u64::MAX);
    }
}
