//! `elision top`: what running programs have deferred, once a second.

mod watch;

use std::io::{IsTerminal, stdout};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table, TableState};
use ratatui::{DefaultTerminal, Frame};

use crate::ending::Ending;
use crate::units::bytes;
use watch::{Held, Program, programs};

/// Shows what running programs have deferred.
#[derive(clap::Args)]
pub struct Args {
    /// Only this process [default: all that may be looked at]
    pid: Option<i32>,
    /// Print the table once, and end. So it is where standard output is no terminal
    #[arg(long)]
    once: bool,
}

const EVERY: Duration = Duration::from_secs(1);
const HEADINGS: [&str; 6] = ["pid", "program or file", "deferred", "loaded", "own", "pages"];
/// Cells of the picture of a file's pages.
const CELLS: usize = 16;

pub fn run(args: Args) -> Result<Ending> {
    let look = || programs(args.pid);
    let first = look();
    if let Some(pid) = args.pid.filter(|_| first.is_empty()) {
        bail!("process {pid} has deferred nothing, or is none of yours");
    }
    if args.once || !stdout().is_terminal() {
        print(&first);
        return Ok(Ending::Code(0));
    }
    let mut terminal = ratatui::try_init().context("cannot draw on this terminal")?;
    let done = show(&mut terminal, first, look);
    ratatui::restore();
    done.context("cannot draw on this terminal")?;
    Ok(Ending::Code(0))
}

/// Until a key ends it.
fn show(
    terminal: &mut DefaultTerminal,
    mut programs: Vec<Program>,
    look: impl Fn() -> Vec<Program>,
) -> std::io::Result<()> {
    let (mut looked, mut state) = (Instant::now(), TableState::default());
    loop {
        terminal.draw(|frame| draw(frame, &programs, &mut state))?;
        if event::poll(EVERY.saturating_sub(looked.elapsed()))?
            && let Event::Key(key) = event::read()?
            && key.kind == KeyEventKind::Press
        {
            match key {
                KeyEvent { code: KeyCode::Char('c'), modifiers: KeyModifiers::CONTROL, .. }
                | KeyEvent { code: KeyCode::Char('q') | KeyCode::Esc, .. } => return Ok(()),
                KeyEvent { code: KeyCode::Down | KeyCode::Char('j'), .. } => state.scroll_down_by(1),
                KeyEvent { code: KeyCode::Up | KeyCode::Char('k'), .. } => state.scroll_up_by(1),
                KeyEvent { code: KeyCode::PageDown, .. } => state.scroll_down_by(20),
                KeyEvent { code: KeyCode::PageUp, .. } => state.scroll_up_by(20),
                _ => (),
            }
        }
        if looked.elapsed() >= EVERY {
            (programs, looked) = (look(), Instant::now());
        }
    }
}

/// A program, or a file of the program above.
fn lines(programs: &[Program]) -> Vec<[String; 6]> {
    let sum = |program: &Program, of: fn(&Held) -> u64| bytes(program.files.iter().map(of).sum());
    let mut lines = Vec::new();
    for program in programs {
        lines.push([
            program.pid.to_string(),
            format!("{} ({} own, {} of files)", program.name, bytes(program.own), bytes(program.shared)),
            sum(program, |held| held.deferred),
            sum(program, |held| held.loaded),
            sum(program, |held| held.own),
            String::new(),
        ]);
        for held in &program.files {
            lines.push([
                String::new(),
                format!("  {}", held.path),
                bytes(held.deferred),
                bytes(held.loaded),
                bytes(held.own),
                picture(held),
            ]);
        }
    }
    lines
}

/// Shares of a file: loaded, of the program's own, deferred. Each that there is has a cell.
fn picture(held: &Held) -> String {
    let whole = (held.deferred + held.loaded + held.own).max(1);
    let cells =
        |part: u64| (part as usize).min(1).max((part as u128 * CELLS as u128 / whole as u128) as usize);
    let (loaded, own) = (cells(held.loaded), cells(held.own));
    let deferred = CELLS.saturating_sub(loaded + own);
    ["▒".repeat(loaded), "█".repeat(own), "·".repeat(deferred)].concat()
}

fn print(programs: &[Program]) {
    if programs.is_empty() {
        return println!("no program that may be looked at has deferred anything");
    }
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING).set_header(HEADINGS).add_rows(lines(programs));
    println!("{table}");
}

const KEYS: &str =
    "· deferred   ▒ loaded: in the page cache   █ own memory: altered, or since written   q: quit";

fn draw(frame: &mut Frame, programs: &[Program], state: &mut TableState) {
    let [title, body, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Min(1), Constraint::Length(1)])
            .areas(frame.area());
    let strong = Style::new().add_modifier(Modifier::BOLD);
    let deferred: u64 = programs.iter().flat_map(|program| &program.files).map(|held| held.deferred).sum();
    let what = format!(" {} programs, {} deferred", programs.len(), bytes(deferred));
    frame.render_widget(Line::from(vec![Span::styled("elision top", strong), Span::raw(what)]), title);
    if programs.is_empty() {
        let none = Paragraph::new("No program that may be looked at has deferred anything yet.");
        frame.render_widget(none, body);
    } else {
        let rows = lines(programs).into_iter().map(|line| {
            let style = if line[0].is_empty() { Style::new() } else { strong };
            Row::new(line.map(Cell::from)).style(style)
        });
        let widths = [
            Constraint::Length(8),
            Constraint::Min(20),
            Constraint::Length(10),
            Constraint::Length(10),
            Constraint::Length(10),
            Constraint::Length(CELLS as u16),
        ];
        let table =
            Table::new(rows, widths).header(Row::new(HEADINGS).style(Style::new().fg(Color::DarkGray)));
        frame.render_stateful_widget(table, body, state);
    }
    frame.render_widget(Paragraph::new(KEYS).style(Style::new().fg(Color::DarkGray)), foot);
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn program() -> Program {
        let held = Held { path: "/data/table".into(), deferred: 60 << 20, loaded: 3 << 20, own: 1 << 20 };
        Program {
            pid: 4711,
            name: "python3 edit.py".into(),
            own: 9 << 20,
            shared: 5 << 20,
            files: vec![held],
        }
    }

    fn screen(programs: &[Program]) -> String {
        let mut terminal = Terminal::new(TestBackend::new(110, 6)).expect("a screen");
        terminal.draw(|frame| draw(frame, programs, &mut TableState::default())).expect("drawn");
        terminal.backend().to_string()
    }

    #[test]
    fn a_program_is_drawn_with_its_files() {
        let screen = screen(&[program()]);
        for part in
            ["1 programs, 60.0 MiB deferred", "4711", "python3 edit.py (9.0 MiB own", "/data/table", "▒█··"]
        {
            assert!(screen.contains(part), "no {part} in:\n{screen}");
        }
    }

    #[test]
    fn without_programs_it_says_so() {
        assert!(screen(&[]).contains("No program that may be looked at"));
    }

    #[test]
    fn every_part_that_there_is_has_a_cell() {
        let held = |deferred, loaded, own| Held { path: String::new(), deferred, loaded, own };
        assert_eq!(picture(&held(1 << 40, 1, 1)), format!("▒█{}", "·".repeat(14)));
        assert_eq!(picture(&held(8, 8, 0)), format!("{}{}", "▒".repeat(8), "·".repeat(8)));
        assert_eq!(picture(&held(0, 0, 5)), "█".repeat(16));
    }
}
