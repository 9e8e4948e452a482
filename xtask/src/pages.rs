//! Paths and links in the Markdown pages: each has to lead to a file or folder of the repository.

use std::fs;
use std::path::{Path, PathBuf};

/// Folders that a path may begin with.
const ROOTS: [&str; 11] = [
    ".cargo",
    ".ci",
    ".github",
    "assets",
    "bench",
    "crates",
    "docs",
    "dockerfiles",
    "fuzz",
    "scripts",
    "xtask",
];
/// Extensions of sources; a page may name such a file by the end of its path.
const SOURCES: [&str; 3] = [".rs", ".cu", ".cpp"];

/// Paths and links that lead nowhere, as `page:line: what is wrong`.
pub fn complaints(root: &Path) -> Vec<String> {
    let mut files = Vec::new();
    walk(root, root, &mut files);
    let is_page = |path: &&String| path.ends_with(".md") && !path.starts_with("bench/");
    let pages = files.iter().filter(is_page).filter(|path| *path != "CHANGELOG.md");
    pages
        .flat_map(|page| match fs::read_to_string(root.join(page)) {
            Ok(text) => broken(page, &text, &files),
            Err(e) => vec![format!("{page}: {e}")],
        })
        .collect()
}

/// Files and folders below `folder`, relative to `root`, with `/` between the parts.
fn walk(root: &Path, folder: &Path, found: &mut Vec<String>) {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap_or_default();
        if name == "target" || name == ".git" {
            continue;
        }
        found.extend(path.strip_prefix(root).ok().map(|path| path.to_string_lossy().replace('\\', "/")));
        if path.is_dir() && !path.is_symlink() {
            walk(root, &path, found);
        }
    }
}

fn broken(page: &str, text: &str, files: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    let mut is_code = false;
    for (at, line) in text.lines().enumerate() {
        is_code ^= line.trim_start().starts_with("```");
        if is_code {
            continue;
        }
        // Between backticks: every other part.
        for path in line.split('`').skip(1).step_by(2).filter(|code| is_path(code)).flat_map(expanded) {
            if !exists(&path, files) {
                found.push(format!("{page}:{}: there is no `{path}`", at + 1));
            }
        }
        for target in line.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            if !target.is_empty() && !target.contains(':') && !files.contains(&resolved(page, target)) {
                found.push(format!("{page}:{}: the link {target} leads nowhere", at + 1));
            }
        }
    }
    found
}

/// Whether code between backticks names a file or folder of the repository.
fn is_path(code: &str) -> bool {
    let is_plain = code.chars().all(|c| c.is_ascii_alphanumeric() || "_-./{},".contains(c));
    let begins = code.split_once('/').is_some_and(|(first, _)| ROOTS.contains(&first));
    is_plain && (begins || SOURCES.iter().any(|extension| code.ends_with(extension)))
}

/// `a/{b,c}.rs` as `a/b.rs` and `a/c.rs`.
fn expanded(code: &str) -> Vec<String> {
    let braces = code.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?)));
    match braces {
        Some((before, (list, after))) => {
            list.split(',').map(|item| format!("{before}{item}{after}")).collect()
        }
        None => vec![code.to_owned()],
    }
}

/// Whether a path is one of the files, or a source is named by the end of its path.
fn exists(path: &str, files: &[String]) -> bool {
    let path = path.trim_end_matches('/');
    files
        .iter()
        .any(|file| file.strip_suffix(path).is_some_and(|rest| rest.is_empty() || rest.ends_with('/')))
}

/// The path of a link's target, from the root of the repository.
fn resolved(page: &str, target: &str) -> String {
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    for part in target.split('/').filter(|part| !part.is_empty()) {
        match part {
            "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_links_that_lead_nowhere_are_found() {
        let files =
            ["docs", "docs/a.md", "crates", "crates/x/src", "crates/x/src/run/lock.rs"].map(String::from);
        let page = "`run/lock.rs` `crates/x/src/` `run/{lock,gone}.rs` [a](a.md#part) [b](../crates) [c](c.md)\n\
                    `block.rs` `cargo test` `out/my_run` `crates/<name>/` [web](https://example.org)\n\
                    ```sh\nls `crates/none`\n```\n`crates/none`\n";
        let expected = [
            "docs/b.md:1: there is no `run/gone.rs`",
            "docs/b.md:1: the link c.md leads nowhere",
            "docs/b.md:2: there is no `block.rs`",
            "docs/b.md:6: there is no `crates/none`",
        ];
        assert_eq!(broken("docs/b.md", page, &files), expected);
        // Only whole parts of a path count.
        assert!(!exists("ock.rs", &files) && exists("lock.rs", &files));
    }

    #[test]
    fn every_path_and_link_of_the_pages_leads_somewhere() {
        assert_eq!(complaints(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..")), Vec::<String>::new());
    }
}
