//! The page: one file of HTML, with nothing to fetch. It is readable in light and in dark, and each state has a pattern of its own.

use std::fmt::{self, Display, Write};

use crate::report::story::{Moment, Story};
use crate::totals::{Totals, what_would_do};
use crate::units::bytes;

const WIDTH: usize = 896;
/// Left of a picture: the time.
const MARGIN: usize = 72;
const ROW: usize = 11;
/// Below a row: what was done.
const DONE: usize = 7;

/// A state's letter, its class, and what it means.
const STATES: [(u8, &str, &str); 4] = [
    (b'd', "deferred", "deferred: not loaded, no memory"),
    (b'l', "loaded", "loaded: in the page cache, no memory of the program's own"),
    (b't', "tracked", "equal to the file, in memory of its own"),
    (b'a', "altered", "altered: not in the file yet"),
];

/// A bit, its class, and what it means. The last that is set is drawn.
const DEEDS: [(u8, &str, &str); 4] = [
    (8, "ahead", "loaded ahead of the program"),
    (1, "elided", "elided: a write left it out"),
    (4, "materialised", "materialised: copied, because the file was about to change"),
    (2, "written", "written, or compared with the file page by page"),
];

/// Text in a page.
struct Text<'a>(&'a str);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|letter| match letter {
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '&' => f.write_str("&amp;"),
            '"' => f.write_str("&quot;"),
            other => f.write_char(other),
        })
    }
}

/// The page for a program: its command line, the sums, and the story of each file.
pub fn page(program: &str, totals: &Totals, nothing: &str, stories: &[Story]) -> String {
    let mut page = String::new();
    write(&mut page, program, totals, nothing, stories).expect("a String takes everything");
    page
}

fn write(page: &mut String, program: &str, totals: &Totals, nothing: &str, stories: &[Story]) -> fmt::Result {
    let program = Text(program);
    write!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>elision: {program}</title>\n\
         <style>{STYLE}</style>\n{PATTERNS}\n<h1>elision</h1>\n<p><code>{program}</code></p>\n"
    )?;
    if totals.is_empty() {
        writeln!(page, "<p>Nothing to report: {}.</p>", Text(nothing))?;
    } else {
        sums(page, totals)?;
        declined(page, totals)?;
    }
    if !stories.is_empty() {
        legend(page)?;
    }
    stories.iter().try_for_each(|story| picture(page, story))?;
    writeln!(page, "</html>")
}

fn sums(page: &mut String, totals: &Totals) -> fmt::Result {
    let amounts = &totals.amounts;
    let own = amounts.loaded_bytes + amounts.materialised_bytes;
    let all = amounts.written_bytes + amounts.elided_bytes + amounts.shared_bytes;
    writeln!(
        page,
        "<h2>What it cost</h2>\n<table>\n<tr><th><th>with Elision<th>traditionally\n\
         <tr><td>read<td>{}<td>{}\n<tr><td>written<td>{}<td>{}\n</table>\n<ul>",
        bytes(own),
        bytes(amounts.deferred_bytes.max(own)),
        bytes(amounts.written_bytes),
        bytes(all),
    )?;
    for (amount, meaning) in [
        (amounts.loaded_bytes, "loaded when the program touched them"),
        (amounts.materialised_bytes, "copied because the file was about to change"),
        (amounts.prefetched_bytes, "brought into the page cache ahead of the program"),
        (amounts.elided_bytes, "not written, since the file has them"),
        (amounts.shared_bytes, "not written, but shared with another file"),
    ] {
        if amount > 0 {
            writeln!(page, "<li>{} {meaning}", bytes(amount))?;
        }
    }
    writeln!(page, "</ul>")
}

fn declined(page: &mut String, totals: &Totals) -> fmt::Result {
    if totals.declined.is_empty() && totals.stopped.is_empty() {
        return writeln!(page, "<p>Nothing was declined.</p>");
    }
    writeln!(page, "<h2>Declined</h2>\n<table>\n<tr><th>why<th>times<th>bytes of reads<th>what to do")?;
    for (reason, times) in &totals.declined {
        let read = totals.declined_read_bytes.get(reason).copied().unwrap_or_default();
        let what = what_would_do(reason).unwrap_or("nothing");
        writeln!(page, "<tr><td>{}<td>{times}<td>{}<td>{}", Text(reason), bytes(read), Text(what))?;
    }
    for (why, times) in &totals.stopped {
        writeln!(page, "<tr><td>ended, for the use of {}<td>{times}<td><td>nothing", Text(why))?;
    }
    writeln!(page, "</table>")
}

fn legend(page: &mut String) -> fmt::Result {
    writeln!(
        page,
        "<h2>Files</h2>\n<p>From left to right: the file, in {} parts. From top to bottom: time. Of a part, the page that has come \
         furthest is shown. The narrow line below a row shows what was done since the row above.</p>\n<ul class=\"legend\">",
        CELLS
    )?;
    for (_, class, meaning) in STATES.iter().chain(&DEEDS) {
        writeln!(
            page,
            "<li><svg width=\"28\" height=\"{ROW}\" aria-hidden=\"true\"><rect class=\"{class}\" width=\"28\" \
             height=\"{ROW}\"/></svg> {meaning}"
        )?;
    }
    writeln!(page, "</ul>")
}

/// As many as the helper has (`elision-core/src/helper/strips.rs`).
const CELLS: usize = 128;

fn picture(page: &mut String, story: &Story) -> fmt::Result {
    let path = Text(&story.path);
    writeln!(page, "<h3>{path}</h3>\n<p>{}, process {}</p>", bytes(story.bytes), story.pid)?;
    let height = story.moments.len() * (ROW + DONE);
    let (whole, said) = (MARGIN + WIDTH, summary(story));
    writeln!(
        page,
        "<svg class=\"picture\" viewBox=\"0 0 {whole} {height}\" role=\"img\" aria-label=\"{said}\">"
    )?;
    for (row, moment) in story.moments.iter().enumerate() {
        let top = row * (ROW + DONE);
        let seconds = moment.ms as f64 / 1000.0;
        writeln!(page, "<text x=\"{}\" y=\"{}\">{seconds:.2} s</text>", MARGIN - 8, top + ROW - 2)?;
        let state = |&state: &u8| STATES.iter().find(|known| known.0 == state);
        strip(page, story, moment.states.iter().map(state), top, ROW)?;
        let deed = |&bits: &u8| DEEDS.iter().rfind(|known| bits & known.0 != 0);
        strip(page, story, moment.did.iter().map(deed), top + ROW + 1, DONE - 2)?;
    }
    writeln!(page, "</svg>\n<p>{said}</p>")
}

type Look = &'static (u8, &'static str, &'static str);

/// One rectangle for each run of equal cells.
fn strip(
    page: &mut String,
    story: &Story,
    cells: impl ExactSizeIterator<Item = Option<Look>>,
    top: usize,
    height: usize,
) -> fmt::Result {
    let count = cells.len().max(1);
    let cells: Vec<_> = cells.collect();
    let mut from = 0;
    for run in cells.chunk_by(|one, next| one.map(|look| look.0) == next.map(|look| look.0)) {
        let to = from + run.len();
        if let Some((_, class, meaning)) = run[0] {
            let x = |cell: usize| MARGIN + WIDTH * cell / count;
            let offset = |cell: usize| bytes((story.bytes as u128 * cell as u128 / count as u128) as u64);
            writeln!(
                page,
                "<rect class=\"{class}\" x=\"{}\" y=\"{top}\" width=\"{}\" height=\"{height}\"><title>{} to {}: \
                 {meaning}</title></rect>",
                x(from),
                x(to) - x(from),
                offset(from),
                offset(to)
            )?;
        }
        from = to;
    }
    Ok(())
}

/// For who cannot see the picture: of how many parts it ever was so.
fn summary(story: &Story) -> String {
    let ever = |holds: &dyn Fn(&Moment, usize) -> bool| {
        let cells = story.moments.iter().map(|moment| moment.states.len()).max().unwrap_or_default();
        let count = (0..cells).filter(|&cell| story.moments.iter().any(|moment| holds(moment, cell))).count();
        format!("{} %", 100 * count / cells.max(1))
    };
    let was = |state: u8| ever(&move |moment, cell| moment.states.get(cell) == Some(&state));
    let had = |bit: u8| ever(&move |moment, cell| moment.did.get(cell).is_some_and(|bits| bits & bit != 0));
    format!(
        "Of the parts of the file, {} had a page loaded, {} one altered, {} one elided, {} one written.",
        was(b'l'),
        was(b'a'),
        had(1),
        had(2)
    )
}

const PATTERNS: &str = concat!(
    r#"<svg width="0" height="0" aria-hidden="true" style="position: absolute"><defs>"#,
    r#"<pattern id="loaded" width="4" height="4" patternUnits="userSpaceOnUse"><rect class="blue" width="4" height="4"/>"#,
    r#"<circle class="ink" cx="2" cy="2" r=".8"/></pattern>"#,
    r#"<pattern id="tracked" width="4" height="4" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">"#,
    r#"<rect class="green" width="4" height="4"/><rect class="ink" width="1.2" height="4"/></pattern>"#,
    r#"<pattern id="ahead" width="6" height="4" patternUnits="userSpaceOnUse"><rect class="blue" width="3" height="4"/></pattern>"#,
    r#"<pattern id="materialised" width="3" height="4" patternUnits="userSpaceOnUse"><rect class="ink" width="1.5" height="4"/></pattern>"#,
    "</defs></svg>"
);

const STYLE: &str = "
:root { color-scheme: light dark; --paper: #fff; --ink: #1a1a1a; --faint: #d8d8d8; --blue: #a9c9ec; --green: #c3e3c0; --orange: #b34700; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15171a; --ink: #e8e8e8; --faint: #3a3d42; --blue: #27507d; --green: #275c2b; --orange: #ff9d4d; }
}
body { background: var(--paper); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h3, code { font-family: ui-monospace, monospace; overflow-wrap: anywhere; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .15rem 1.2rem .15rem 0; border-bottom: 1px solid var(--faint); }
.legend { list-style: none; padding: 0; columns: 2; } .legend svg { vertical-align: -1px; outline: 1px solid var(--faint); }
.picture { width: 100%; height: auto; } text { fill: var(--ink); font: 9px ui-monospace, monospace; text-anchor: end; }
.ink { fill: var(--ink); } .blue { fill: var(--blue); } .green { fill: var(--green); }
.deferred { fill: var(--faint); } .loaded { fill: url(#loaded); } .tracked { fill: url(#tracked); } .altered { fill: var(--orange); }
.elided { fill: var(--green); } .written { fill: var(--ink); } .ahead { fill: url(#ahead); } .materialised { fill: url(#materialised); }
";
