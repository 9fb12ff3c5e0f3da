//! The doctor's report: one line for each finding, with advice below.

use std::io;

/// What is wrong, and what to do.
pub struct Finding {
    pub what: String,
    pub remedy: String,
}

/// Prints each line at once, and remembers whether anything needed is missing.
#[derive(Default)]
pub struct Report {
    pub missing: bool,
}

impl Report {
    pub fn title(&self, title: &str) {
        println!("\n{title}");
    }

    pub fn ok(&self, name: &str, finding: impl AsRef<str>) {
        line("ok", name, finding);
    }

    /// Something needed is missing.
    pub fn no(&mut self, name: &str, finding: impl AsRef<str>, advice: impl AsRef<str>) {
        self.missing = true;
        line("no", name, finding);
        advise(advice);
    }

    /// Something needed is missing, for these reasons.
    pub fn no_because(&mut self, name: &str, how: &str, findings: Vec<Finding>) {
        if findings.is_empty() {
            let advice = "no cause was found; elision run --stats --verbose -- PROGRAM says more";
            return self.no(name, how, advice);
        }
        for (number, Finding { what, remedy }) in findings.into_iter().enumerate() {
            match number {
                0 => self.no(name, format!("{how}; {what}"), remedy),
                _ => self.no("", format!("and {what}"), remedy),
            }
        }
    }

    /// Good to know; with advice if it could be better.
    pub fn note(&self, name: &str, finding: impl AsRef<str>, advice: Option<&str>) {
        line("--", name, finding);
        advice.into_iter().for_each(advise);
    }
}

fn line(mark: &str, name: &str, finding: impl AsRef<str>) {
    println!("{mark}  {name:<20} {}", finding.as_ref());
}

fn advise(advice: impl AsRef<str>) {
    advice.as_ref().lines().for_each(|line| println!("    > {line}"));
}

/// The text of an error, without its number.
pub fn text_of(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

/// How a child ended that was killed.
pub fn killed_by(signal: i32) -> String {
    match signal {
        libc::SIGSYS => "killed by SIGSYS, by a seccomp filter".into(),
        signal => format!("killed by signal {signal}"),
    }
}
