//! `cargo xtask tidy`: the rules of the house that a machine can see, over what git tracks. Nothing of the product is built.
//!
//! Each rule collects everything that breaks it. `CONTRIBUTING.md` says what the rules are for.

mod pages;
mod prose;
mod doors;
mod arrows;
mod source;

use std::process::ExitCode;

use anyhow::{Result, bail};

/// A rule in words, and what breaks it.
type Rule = (&'static str, fn() -> Vec<String>);

const RULES: &[Rule] = &[
    ("crates depend along the arrows", arrows::crates_depend_along_the_arrows),
    ("imports point down the list of modules, at every level", arrows::imports_point_down),
    ("no two files import each other, directly or around a corner", arrows::files_form_no_circle),
    ("no file has more than 500 lines without its tests", doors::files_are_short),
    ("memory is handled by hand on the named islands only", doors::unsafe_code_is_on_islands),
    ("foreign protocols stay at their doors", doors::foreign_protocols_stay_at_their_doors),
    ("an actor has a name", prose::actors_have_names),
    ("spelling is American", prose::spelling_is_american),
    ("the head of a module has short sentences", prose::heads_have_short_sentences),
    ("no tracked file names a path or a package host of one machine", pages::no_file_names_this_machine),
    ("every `cargo xtask ...` in the documentation exists", pages::documented_chores_exist),
    ("the table of reasons in docs/operating.md is complete", pages::documented_reasons_are_the_reasons),
    ("the map in ARCHITECTURE.md is that of the imports", pages::the_map_is_that_of_the_imports),
    ("every test that a page names exists", pages::tests_that_pages_name_exist),
];

/// Prints the map of the modules and their imports.
pub(crate) fn map() -> Result<ExitCode> {
    print!("{}", arrows::map());
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn run() -> Result<ExitCode> {
    check()?;
    println!("{} rules hold", RULES.len());
    Ok(ExitCode::SUCCESS)
}

/// # Errors
/// Every rule that is broken, with the places.
pub(crate) fn check() -> Result<()> {
    let mut report = String::new();
    for (rule, find) in RULES {
        let broken = find();
        if !broken.is_empty() {
            report.push_str(&format!("\nbroken: {rule}\n  {}\n", broken.join("\n  ")));
        }
    }
    if !report.is_empty() {
        bail!("{report}");
    }
    Ok(())
}
