//! Words: an actor has a name, spelling is American, and the head of a module is made of short sentences.

use super::source::{self, Source};

/// Words for an actor that has no name. Name the supervisor, worker, reader, client, kernel or registry instead.
const PRONOUNS: &[&str] = &[
    concat!("w", "ho"),
    concat!("w", "hom"),
    concat!("w", "hoever"),
    concat!("some", "body"),
    concat!("some", "one"),
    concat!("no", "body"),
    concat!("every", "body"),
    concat!("every", "one"),
    concat!("any", "body"),
    concat!("any", "one"),
];
/// British spellings, as parts of words, and what stands for them here.
const SPELLINGS: &[(&str, &str)] = &[
    (concat!("behav", "iour"), "behavior"),
    (concat!("col", "our"), "color"),
    (concat!("neigh", "bour"), "neighbor"),
    (concat!("recogn", "ise"), "recognize"),
    (concat!("optim", "ise"), "optimize"),
    (concat!("serial", "ise"), "serialize"),
    (concat!("initial", "ise"), "initialize"),
    (concat!("normal", "ise"), "normalize"),
    (concat!("author", "ise"), "authorize"),
    (concat!("cancel", "led"), "canceled"),
    (concat!("label", "led"), "labeled"),
    (concat!("lic", "ence"), "license"),
];
/// Words in a sentence of a module's head.
const SENTENCE_MAX: usize = 30;
/// Crates whose heads are not all rewritten yet, with the number of such sentences. It only falls.
const LONG_SENTENCES_LEFT: &[(&str, usize)] = &[("integration/", 9)];

pub(super) fn actors_have_names() -> Vec<String> {
    source::rust_sources().iter().flat_map(pronouns).collect()
}

fn pronouns(file: &Source) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in file.text().lines().enumerate() {
        let text = words_of(line);
        let wrong = text.split(|c: char| !c.is_alphanumeric() && c != '_').find(|word| {
            PRONOUNS.iter().any(|pronoun| word.eq_ignore_ascii_case(pronoun))
                && !word.chars().all(char::is_uppercase)
        });
        found.extend(wrong.map(|word| format!("{}:{}: `{word}`: name the actor", file.path, number + 1)));
        let names = line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| word.contains('_'));
        let wrong = names.filter(|name| name.split('_').any(|part| PRONOUNS.contains(&part)));
        found.extend(wrong.map(|name| format!("{}:{}: `{name}`: name the actor", file.path, number + 1)));
    }
    found
}

/// The words for people in a line of code: its comment, and what stands between quotes.
fn words_of(line: &str) -> String {
    if line.trim_start().starts_with("//") {
        return line.to_owned();
    }
    let (code, comment) = line.split_once("// ").unwrap_or((line, ""));
    let quoted: Vec<&str> = code.split('"').skip(1).step_by(2).collect();
    let continued = if code.contains('"') || code.contains([';', '(', '=', '{']) { "" } else { code };
    format!("{} {continued} {comment}", quoted.join(" "))
}

pub(super) fn spelling_is_american() -> Vec<String> {
    let mut broken = Vec::new();
    for path in source::tracked().iter().filter(|path| path.ends_with(".rs") || path.ends_with(".md")) {
        let Ok(text) = std::fs::read_to_string(xtask::machine::root().join(path)) else { continue };
        for (number, line) in text.lines().enumerate() {
            let lower = line.to_lowercase();
            let wrong = SPELLINGS.iter().filter(|(british, _)| lower.contains(british));
            broken.extend(
                wrong.map(|(british, american)| format!("{path}:{}: {british}: {american}", number + 1)),
            );
        }
    }
    broken
}

pub(super) fn heads_have_short_sentences() -> Vec<String> {
    let mut broken = Vec::new();
    for name in source::crates() {
        let folder = format!("{name}/");
        let files = source::rust_sources().iter();
        let files = files.filter(|file| file.is_source() && file.path.starts_with(&folder));
        let found: Vec<String> = files
            .flat_map(|file| {
                let long = long_sentences(file.text()).into_iter();
                long.map(|sentence| format!("{}: more than {SENTENCE_MAX} words: {sentence}", file.path))
            })
            .collect();
        let left =
            LONG_SENTENCES_LEFT.iter().find(|(known, _)| *known == folder).map_or(0, |(_, count)| *count);
        if found.len() > left {
            broken.extend(found);
        }
    }
    broken
}

/// Sentences of the head that are too long; what is set as code or as a table is left out.
fn long_sentences(text: &str) -> Vec<String> {
    let lines = text.lines().take_while(|line| line.starts_with("//!"));
    let (mut prose, mut is_code) = (String::new(), false);
    for line in lines.map(|line| line.trim_start_matches("//!").trim()) {
        is_code ^= line.starts_with("```");
        let breaks = line.is_empty() || is_code || line.starts_with(['|', '#', '-', '*', '`']);
        prose.push_str(if breaks { ". " } else { " " });
        if !is_code && !line.starts_with('|') {
            prose.push_str(line);
        }
    }
    let prose = prose.replace("? ", ". ");
    let sentences = prose.split(". ");
    sentences
        .filter(|one| one.split_whitespace().count() > SENTENCE_MAX)
        .map(|one| one.trim().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actors_without_names_are_found_in_words_and_not_in_code() {
        let pronoun = PRONOUNS[0];
        for (line, expected) in [
            (format!("/// Says {pronoun} asks."), 1),
            (format!("let {pronoun} = 1;"), 0),
            (format!("error(\"{pronoun} asks\");"), 1),
            (format!("fn {pronoun}_asks() {{"), 1),
            (format!("let x = 1; // for {pronoun} asks"), 1),
            ("const NOBODY: u32 = 1;".to_owned(), 0),
        ] {
            assert_eq!(pronouns(&Source::new("a/src/b.rs", &line)).len(), expected, "{line}");
        }
    }

    #[test]
    fn long_sentences_of_a_head_are_found() {
        let long = "word ".repeat(SENTENCE_MAX + 1);
        assert_eq!(long_sentences(&format!("//! {long}\n//! end. Short.\n")).len(), 1);
        assert_eq!(long_sentences(&format!("//! Short.\n//!\n//! Short, too.\n/// {long}\n")).len(), 0);
        assert_eq!(long_sentences(&format!("//! ```text\n//! {long}\n//! ```\n")).len(), 0);
    }
}
