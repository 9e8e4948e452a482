//! `docs/reliability.md` names a test for every promise; each of them has to exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The page.
const PAGE: &str = "docs/reliability.md";

/// Tests that are named and do not exist, and rows that name none.
pub fn complaints(root: &Path) -> Vec<String> {
    let text = match fs::read_to_string(root.join(PAGE)) {
        Ok(text) => text,
        Err(e) => return vec![format!("{PAGE}: {e}")],
    };
    let mut tests = BTreeSet::new();
    super::layout::sources(root).iter().for_each(|path| {
        collect(&fs::read_to_string(path).unwrap_or_default(), &mut tests);
    });
    broken(&text, &tests)
}

/// Names of the functions below `#[test]`.
fn collect(source: &str, tests: &mut BTreeSet<String>) {
    let mut is_test = false;
    for line in source.lines().map(str::trim) {
        is_test |= line.starts_with("#[test]");
        if let Some(rest) = line.strip_prefix("fn ").filter(|_| is_test) {
            tests.extend(rest.split_once('(').map(|(name, _)| name.to_owned()));
            is_test = false;
        }
    }
}

fn broken(page: &str, tests: &BTreeSet<String>) -> Vec<String> {
    let mut found = Vec::new();
    for (at, line) in page.lines().enumerate() {
        let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
        let &[what, _, named] = &cells[..] else { continue };
        if what.starts_with("---") || what.trim() == "what goes wrong" {
            continue;
        }
        // Between backticks: every other part.
        let names: Vec<&str> = named.split('`').skip(1).step_by(2).collect();
        if names.is_empty() {
            found.push(format!("{PAGE}:{}: the row names no test", at + 1));
        }
        let missing = names.into_iter().filter(|name| !tests.contains(*name));
        found.extend(missing.map(|name| format!("{PAGE}:{}: there is no test `{name}`", at + 1)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_that_do_not_exist_are_found() {
        let mut tests = BTreeSet::new();
        collect(
            "#[test]\n#[ignore]\nfn first() {}\nfn helper() {}\n    #[test]\n    fn second() {}\n",
            &mut tests,
        );
        let page = "| what goes wrong | x | test |\n|---|---|---|\n| a | b | `first`, `second` |\n| a | b | `helper` |\n| a | b | |\n";
        let complaints = broken(page, &tests);
        assert_eq!(complaints.len(), 2, "{complaints:?}");
        assert!(complaints[0].contains(":4:") && complaints[0].contains("`helper`"));
        assert!(complaints[1].contains(":5:"));
    }

    #[test]
    fn every_promise_has_its_test() {
        assert_eq!(complaints(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..")), Vec::<String>::new());
    }
}
