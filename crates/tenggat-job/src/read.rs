//! From a file, or its text, to a [`Job`]: text → variables replaced → tree with places → raw structs → keys
//! checked against the tables → resolved job.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::keys::{self, Rule};
use crate::resolve::Resolver;
use crate::source::{Mark, Source};
use crate::tree::{Entry, Node, Value};
use crate::{Error, Job, Result, Warning, de, raw, substitute, suggest};

/// Most bytes of a job file.
const LARGEST: u64 = 16 << 20;

/// The text of a regular file of a bounded size: a pipe or a device would keep the program waiting for ever.
fn text_of(path: &Path) -> io::Result<String> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    let mut text = String::new();
    File::open(path)?.take(LARGEST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LARGEST {
        let reason = format!("it has more than {} MB, too much for a job", LARGEST >> 20);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
    }
    Ok(text)
}

impl Job {
    /// Reads a job file, YAML or JSON. `name` replaces `config.name`; `variable` gives the values of
    /// `${VAR}`, as `|name| std::env::var(name).ok()` does.
    ///
    /// # Errors
    /// The file cannot be read or parsed, a variable is not set, a value has the wrong type or makes no sense, or
    /// the job asks for what this version does not do. The message names file, line, column and key.
    pub fn from_file(
        path: &Path,
        name: Option<&str>,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<(Job, Vec<Warning>)> {
        let text = text_of(path).map_err(|source| Error::Read { path: path.into(), source })?;
        Job::from_str(&text, path, name, variable)
    }

    /// [`Job::from_file`] of a text; messages call it `path`.
    ///
    /// # Errors
    /// As there.
    pub fn from_str(
        text: &str,
        path: &Path,
        name: Option<&str>,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<(Job, Vec<Warning>)> {
        let text = substitute::variables(&Source::new(path, text), text, variable)?;
        let source = Source::new(path, &text);
        let mut tree = Node::parse(&source, &text)?;
        let written = tree.get("config").and_then(|c| c.get("name")).map(|n| n.value.clone());
        let name = name.map(String::from);
        if let Some(name) = name.clone().or(match written {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }) {
            tree.replace("[name]", &name);
        }
        let mut warnings = Vec::new();
        tree.entries(&mut |entry| warnings.extend(repeated(&source, entry)));
        let (file, findings) = de::read::<raw::File>(&tree).map_err(|misfit| Error::Value {
            place: source.place(misfit.at.unwrap_or(Mark { line: 1, column: 1 })).into(),
            key: misfit.path,
            message: misfit.message,
        })?;
        Resolver { source: &source, tree: &tree, warnings: &mut warnings }.architecture(&file)?;
        check_rules(&source, &tree, "", &mut warnings)?;
        for stray in findings.strays.iter().filter(|s| rule(&s.path).is_none()) {
            warnings.push(unknown(&source, stray));
        }
        let job = Resolver { source: &source, tree: &tree, warnings: &mut warnings }.job(
            file,
            text.clone(),
            name,
        )?;
        warnings.sort_by_key(|w| w.place.mark);
        Ok((job, warnings))
    }
}

fn repeated(source: &Source, entry: &Entry) -> Option<Warning> {
    let earlier = entry.repeats?;
    let message = format!(
        "`{}` is written twice; this one counts, and the one in line {} does not",
        entry.key, earlier.line
    );
    Some(Warning { place: source.place(entry.at), message })
}

/// The table row of a path such as `config.process[].train.lr`.
fn rule(path: &str) -> Option<&'static keys::Key> {
    let (section, name) = path.rsplit_once('.').unwrap_or(("", path));
    keys::find(section, name)
}

/// Goes through every key of every section: refuses, or warns of keys without effect.
fn check_rules(source: &Source, node: &Node, path: &str, warnings: &mut Vec<Warning>) -> Result<()> {
    match &node.value {
        Value::List(items) => {
            let path = format!("{path}[]");
            items.iter().try_for_each(|item| check_rules(source, item, &path, warnings))
        }
        Value::Map(entries) => entries.iter().try_for_each(|entry| {
            let Some(key) = keys::find(path, &entry.key) else { return Ok(()) };
            let path = if path.is_empty() { entry.key.clone() } else { format!("{path}.{}", entry.key) };
            match key.rule {
                Rule::Supported => check_rules(source, &entry.node, &path, warnings),
                _ if key.is_harmless(&entry.node.value) => Ok(()),
                Rule::NoEffect(why) => {
                    let message = format!("`{}` has no effect: {why}", entry.key);
                    warnings.push(Warning { place: source.place(entry.at), message });
                    Ok(())
                }
                Rule::Refused(why, instead) => Err(Error::Refused {
                    place: source.place(entry.at).into(),
                    key: path,
                    why: why.into(),
                    instead: instead.into(),
                }),
            }
        }),
        _ => Ok(()),
    }
}

fn unknown(source: &Source, stray: &de::Stray) -> Warning {
    let section = stray.path.rsplit_once('.').map_or("", |(section, _)| section);
    let others = keys::sections().filter(|s| s.path == section).flat_map(|s| s.keys).map(|k| k.name);
    let advice = match suggest::nearest(&stray.entry.key, stray.known.iter().copied().chain(others)) {
        Some(near) => format!("; did you mean `{near}`?"),
        None => String::new(),
    };
    let message = format!("`{}` is not a known key and has no effect{advice}", stray.entry.key);
    Warning { place: source.place(stray.entry.at), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_a_bounded_size_are_jobs() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |path: &Path| Job::from_file(path, None, &|_| None).unwrap_err().to_string();
        let error = refused(folder.path());
        assert!(error.contains("cannot read the job") && error.contains("it is no regular file"), "{error}");
        let large = folder.path().join("large.yaml");
        std::fs::write(&large, " ".repeat(LARGEST as usize + 1)).unwrap();
        assert!(refused(&large).contains("it has more than 16 MB"));
        #[cfg(unix)]
        assert!(refused(Path::new("/dev/zero")).contains("it is no regular file"));
    }
}
