//! Steps, one after the other: each is announced, timed, and remembered with its outcome.

#![allow(clippy::print_stdout, clippy::print_stderr)] // chores talk to a person

use std::time::Instant;

use anyhow::Result;

/// What has been done so far.
#[derive(Debug, Default)]
pub struct Steps {
    done: Vec<(String, bool, f64)>,
}

impl Steps {
    /// Does a step that yields something; its failure ends the chore.
    ///
    /// # Errors
    /// What the step says.
    pub fn need<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("\n== {name}");
        let start = Instant::now();
        let result = work();
        let seconds = start.elapsed().as_secs_f64();
        println!("== {name}: {}{seconds:.1} s", if result.is_ok() { "" } else { "FAILED, " });
        self.done.push((name.to_owned(), result.is_ok(), seconds));
        result
    }

    /// Does a step whose failure is told and remembered, and lets the others go on.
    pub fn check(&mut self, name: &str, work: impl FnOnce() -> Result<()>) -> bool {
        match self.need(name, work) {
            Ok(()) => true,
            Err(error) => {
                eprintln!("{error:#}");
                false
            }
        }
    }

    /// The names of those that failed.
    pub fn failed(&self) -> Vec<&str> {
        self.done.iter().filter(|(_, good, _)| !good).map(|(name, ..)| name.as_str()).collect()
    }

    /// One line for each.
    pub fn table(&self) -> String {
        let rows = self.done.iter().map(|(name, good, seconds)| {
            let outcome = if *good { "ok" } else { "FAILED" };
            format!("{name:24} {seconds:7.1} s  {outcome}")
        });
        rows.collect::<Vec<_>>().join("\n")
    }
}
