//! Rules of the sources that neither rustfmt nor clippy checks: the width of comments, the length of files.

use std::fs;
use std::path::{Path, PathBuf};

/// Widest line, in characters: that of `rustfmt.toml`, which leaves comments as they are.
const WIDTH: usize = 110;
/// Longest source file, in lines.
const LINES: usize = 600;
/// Folders with sources.
const SOURCES: [&str; 4] = ["crates", "bench", "fuzz", "xtask"];

/// What breaks a rule, as `file:line: what is wrong`.
pub fn complaints(root: &Path) -> Vec<String> {
    let files = sources(root);
    files.iter().flat_map(|path| of_file(path.strip_prefix(root).unwrap_or(path), path)).collect()
}

/// All source files, sorted.
pub fn sources(root: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for folder in SOURCES {
        collect(&root.join(folder), &mut files);
    }
    files.sort();
    files
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "target") {
                collect(&path, files);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn of_file(name: &Path, path: &Path) -> Vec<String> {
    let name = name.display();
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) => return vec![format!("{name}: {e}")],
    };
    let wide = text.lines().enumerate().filter(|(_, line)| line.chars().count() > WIDTH);
    // A string or a link cannot be broken.
    let wide = wide.filter(|(_, line)| line.trim_start().starts_with("//") && !line.contains("://"));
    let mut found: Vec<String> = wide
        .map(|(at, line)| {
            format!("{name}:{}: {} characters; comments wrap at {WIDTH}", at + 1, line.chars().count())
        })
        .collect();
    let lines = text.lines().count();
    if lines > LINES {
        found.push(format!("{name}: {lines} lines; a file has at most {LINES}: split it by idea"));
    }
    found
}
