//! Finding out why a step is not possible. Each probe of the table in `causes.rs` is made in a process of its own.

use std::env;
use std::path::Path;

use anyhow::Result;
use elision_core::{probe, settings};

use super::causes::{CAUSES, CLONE, Cause, Failure, PROC, PROCESSES};
use super::child::{End, Outcome, Starter};
use super::report::{Finding, Report, killed_by, text_of};
use super::step::Step;

/// Why a step is not possible with this file. Empty: no known cause.
pub fn find(starter: &Starter, step: Step, path: &Path) -> Result<Vec<Finding>> {
    let findings = needed(starter, step, path)?;
    if !findings.is_empty() {
        return Ok(findings);
    }
    // A call that the step could do without, but that the library tries, may kill the process.
    for (number, cause) in CAUSES.iter().enumerate().filter(|(_, cause)| !cause.of.contains(&step)) {
        let failure = ask(starter, number, path)?.filter(|failure| failure.killed && is_call(cause));
        if let Some(failure) = failure {
            return Ok(vec![finding(cause.name, &failure.text, (cause.remedy)(&failure))]);
        }
    }
    // Or a filter refuses a call that is no row of the table.
    for (number, (name, _)) in probe::calls().iter().enumerate().filter(|_| probe::filtered()) {
        if let Some(failure) = failure(starter.plainly(Step::Call, path, number)?) {
            let name = name.trim_start_matches("SYS_");
            return Ok(vec![finding(name, &failure.describe(), "use a filter that lets it through".into())]);
        }
    }
    Ok(vec![])
}

/// The causes that this step depends on, and that fail.
fn needed(starter: &Starter, step: Step, path: &Path) -> Result<Vec<Finding>> {
    let mut found: Vec<(String, Finding)> = Vec::new();
    for (number, cause) in CAUSES.iter().enumerate().filter(|(_, cause)| cause.of.contains(&step)) {
        // A probe that is killed for a call that its row is not about says nothing about the row.
        let about_it = |failure: &Failure| !failure.killed || is_call(cause);
        let Some(failure) = ask(starter, number, path)?.filter(about_it) else { continue };
        let (why, remedy) = (failure.describe(), (cause.remedy)(&failure));
        // One line for all causes with the same reason and the same remedy.
        match found.iter_mut().find(|(other, finding)| *other == why && finding.remedy == remedy) {
            Some((_, finding)) => finding.what = format!("{}, {}", cause.name, finding.what),
            None => found.push((why.clone(), finding(cause.name, &why, remedy))),
        }
        // Without these the others fail as well.
        if [PROCESSES, CLONE, PROC].contains(&cause.name) {
            break;
        }
    }
    Ok(found.into_iter().map(|(_, finding)| finding).collect())
}

fn finding(name: &str, why: &str, remedy: String) -> Finding {
    Finding { what: format!("{name}: {why}"), remedy }
}

/// Is the row about a system call, and named after it?
fn is_call(cause: &Cause) -> bool {
    cause.name == CLONE
        || probe::calls().iter().any(|(name, _)| name.strip_prefix("SYS_") == Some(cause.name))
}

/// Has a child make the probe of this row.
fn ask(starter: &Starter, number: usize, path: &Path) -> Result<Option<Failure>> {
    Ok(failure(match CAUSES[number].name {
        // The helper and its supervisor.
        PROCESSES => starter.plainly(Step::Spawn, path, 2)?,
        _ => starter.plainly(Step::Probe, path, number)?,
    }))
}

/// How a probe failed, if it did.
fn failure(outcome: Outcome) -> Option<Failure> {
    let failed = |text: String, errno| Failure { text, errno, killed: false };
    Some(match outcome.end {
        End::Exited(0) => return None,
        End::Exited(_) if outcome.said.is_empty() => failed("the probe failed".into(), libc::EPERM),
        End::Exited(errno) => failed(outcome.said.trim().to_owned(), errno),
        End::Killed(signal) => Failure { killed: true, ..failed(killed_by(signal), 0) },
        End::Late => failed("the probe did not end in time".into(), 0),
        End::NotStarted(error) => failed(text_of(&error), error.raw_os_error().unwrap_or(0)),
    })
}

/// The finding for `ELISION=off` and its like.
fn switched_off() -> Option<Finding> {
    let value = env::var_os("ELISION").filter(|value| !value.is_empty())?;
    if settings::switch(value.as_encoded_bytes()) == Some(true) {
        return None;
    }
    Some(Finding { what: format!("ELISION is set to {}", value.display()), remedy: "unset ELISION".into() })
}

/// Reports a step that was not possible: how it ended, and why.
pub fn report_failure(
    report: &mut Report,
    starter: &Starter,
    name: &str,
    step: Step,
    outcome: &Outcome,
    path: &Path,
) -> Result<()> {
    let mut findings = find(starter, step, path)?;
    if outcome.totals.is_empty() {
        findings.splice(0..0, switched_off());
    }
    let declined = reasons(outcome);
    let how = match outcome.good() {
        false => ended(outcome),
        true if declined.is_empty() => "done traditionally".into(),
        true => format!("done traditionally ({declined})"),
    };
    report.no_because(name, &how, findings);
    Ok(())
}

/// How a child ended, for people.
pub fn ended(outcome: &Outcome) -> String {
    match &outcome.end {
        End::Exited(_) => outcome.said.trim().to_owned(),
        End::Killed(signal) => killed_by(*signal),
        End::Late => "the child did not end in time, and was killed".into(),
        End::NotStarted(error) => format!("no process can be started: {}", text_of(error)),
    }
}

/// Why transfers were done traditionally, in the words of the statistics.
pub fn reasons(outcome: &Outcome) -> String {
    let ended = outcome.totals.stopped.keys().map(|why| format!("deferral ended with {why}"));
    outcome.totals.declined.keys().cloned().chain(ended).collect::<Vec<_>>().join(", ")
}
