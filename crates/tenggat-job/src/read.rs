//! From a file, or its text, to a [`Job`]: text → variables replaced → tree with places → raw structs → keys
//! checked against the tables → resolved job.

use std::path::Path;

use crate::keys::{self, PATHS, Rule};
use crate::resolve::Resolver;
use crate::source::{Mark, Source};
use crate::substitute::{self, Expanded};
use crate::tree::{Entry, Node, Value};
use crate::{Error, Job, Range, Result, Warning, config, de, file, raw, suggest};

/// What the numbers of a key may be, for flags that say the same as a key. The path starts in the process:
/// `network.linear`, `train.lr`.
pub fn range(key: &str) -> Option<Range> {
    keys::number(&format!("config.process[].{key}"))
}

impl Job {
    /// Reads a job file, YAML or JSON. `name` replaces `config.name`; `variable` gives the values of
    /// `${VAR}`, as `|name| std::env::var(name).ok()` does.
    ///
    /// # Errors
    /// The file cannot be read or parsed, a variable is not set, a value has the wrong type or makes no
    /// sense, or the job needs something that this version does not support. The message names file, line,
    /// column and key of everything that is wrong.
    pub fn from_file(
        path: &Path,
        name: Option<&str>,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<(Job, Vec<Warning>)> {
        let text = file::text(path).map_err(|source| Error::Read { path: path.into(), source })?;
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
        let expanded = substitute::variables(&Source::new(path, text), text, variable)?;
        let read = parsed(&expanded, path, name);
        if expanded.secrets.is_empty() {
            return read;
        }
        let hide = |text: &str| expanded.secrets.hide(text);
        match read {
            Ok((mut job, mut warnings)) => {
                expanded.secrets.hide_entries(&mut job.meta);
                warnings.iter_mut().for_each(|warning| warning.hide(&hide));
                Ok((job, warnings))
            }
            Err(mut error) => {
                error.hide(&hide);
                Err(error)
            }
        }
    }
}

fn parsed(expanded: &Expanded, path: &Path, name: Option<&str>) -> Result<(Job, Vec<Warning>)> {
    let source = Source::new(path, &expanded.text);
    let mut tree = Node::parse(&source, &expanded.text)?;
    let written = tree.get("config").and_then(|c| c.get("name")).map(|n| n.value.clone());
    let name = name.map(String::from);
    if let Some(name) = name.clone().or(match written {
        Some(Value::Text(text)) => Some(text),
        _ => None,
    }) {
        tree.replace("[name]", &name);
    }
    let misfit = |misfit: de::Misfit| Error::Value {
        place: source.place(misfit.at.unwrap_or(Mark { line: 1, column: 1 })).into(),
        key: misfit.path,
        message: misfit.message,
    };
    let (file, findings) = de::read::<raw::File>(&tree, keys::number).map_err(misfit)?;
    let (mut warnings, mut errors) = (Vec::new(), Vec::new());
    tree.entries(&mut |entry| warnings.extend(repeated(&source, entry)));
    let mut of_another = Vec::new();
    let (ignored, none) = (&mut Vec::new(), &[]);
    let mut resolver =
        Resolver { source: &source, tree: &tree, warnings: ignored, errors: &mut of_another, wrong: none };
    if !resolver.is_ours(&file)
        && let Some(error) = Error::of(of_another)
    {
        return Err(error);
    }
    let mut wrong: Vec<String> = findings.misfits.iter().map(|misfit| misfit.path.clone()).collect();
    errors.extend(findings.misfits.into_iter().map(misfit));
    Checker { source: &source, warnings: &mut warnings, errors: &mut errors }.keys(&tree, "");
    for stray in findings.strays.iter().filter(|s| rule(&s.path).is_none()) {
        match keys::meant(&stray.path).filter(|key| !stray.beside.iter().any(|beside| beside == key)) {
            Some(key) => {
                errors.push(of_other_trainer(&source, stray, key));
                let section = stray.path.rsplit_once('.').map_or("", |(section, _)| section);
                wrong.push(format!("{section}.{key}"));
            }
            None => warnings.push(unknown(&source, stray)),
        }
    }
    let mut resolver = Resolver {
        source: &source,
        tree: &tree,
        warnings: &mut warnings,
        errors: &mut errors,
        wrong: &wrong,
    };
    let mut job = resolver.job(file, expanded.stored.clone(), name);
    if let Some(error) = Error::of(errors) {
        return Err(error);
    }
    job.config = config::text(&expanded.stored, &job.name);
    warnings.sort_by_key(|w| w.place.mark);
    Ok((job, warnings))
}

fn repeated(source: &Source, entry: &Entry) -> Option<Warning> {
    let earlier = entry.repeats?;
    let message =
        format!("`{}` is written twice; this one counts, not the one on line {}", entry.key, earlier.line);
    Some(Warning { place: source.place(entry.at), message })
}

/// The table row of a path such as `config.process[].train.lr`.
fn rule(path: &str) -> Option<&'static keys::Key> {
    let (section, name) = path.rsplit_once('.').unwrap_or(("", path));
    keys::find(section, name)
}

/// Goes through every key of every section.
struct Checker<'a> {
    source: &'a Source,
    warnings: &'a mut Vec<Warning>,
    errors: &'a mut Vec<Error>,
}

impl Checker<'_> {
    /// Refuses keys, and warns of those without effect.
    fn keys(&mut self, node: &Node, path: &str) {
        match &node.value {
            Value::List(items) => {
                let path = format!("{path}[]");
                items.iter().for_each(|item| self.keys(item, &path));
            }
            Value::Map(entries) => entries.iter().for_each(|entry| self.key(entry, path)),
            _ => {}
        }
    }

    fn key(&mut self, entry: &Entry, section: &str) {
        let Some(key) = keys::find(section, &entry.key) else { return };
        let path = if section.is_empty() { entry.key.clone() } else { format!("{section}.{}", entry.key) };
        let place = || self.source.place(entry.at);
        match key.rule {
            Rule::Supported => {
                if let Value::Text(text) = &entry.node.value {
                    self.text(entry, &path, text);
                }
                self.keys(&entry.node, &path);
            }
            _ if key.is_harmless(&entry.node.value) => {}
            Rule::NoEffect(why) => {
                let message = format!("`{}` has no effect: {why}", entry.key);
                self.warnings.push(Warning { place: place(), message });
            }
            Rule::Refused(why, instead) => self.errors.push(Error::Refused {
                place: place().into(),
                key: path,
                why: why.into(),
                instead: instead.into(),
            }),
        }
    }

    /// A text that says something else than its author means.
    fn text(&mut self, entry: &Entry, path: &str, text: &str) {
        let place = self.source.place(entry.node.at);
        if PATHS.contains(&entry.key.as_str()) && has_escapes(text) {
            let message = format!(
                "{text:?} holds control characters; in double quotes a backslash begins an escape, so write \
                 paths in single quotes, or with `/`"
            );
            self.errors.push(Error::Value { place: place.into(), key: path.into(), message });
        } else if text == "None" || text == "none" {
            let message =
                format!("`{}: {text}` is read as text; to leave the key empty, write `null`", entry.key);
            self.warnings.push(Warning { place, message });
        }
    }
}

/// Whether a path was most likely written with backslashes that YAML took for escapes: `"C:\example"`,
/// `"a\new"`.
fn has_escapes(path: &str) -> bool {
    let has_drive = path.starts_with(|c: char| c.is_ascii_alphabetic()) && path[1..].starts_with(':');
    path.contains(['\n', '\r', '\t', '\0']) || has_drive && path.contains(char::is_control)
}

fn of_other_trainer(source: &Source, stray: &de::Stray, key: &str) -> Error {
    Error::Refused {
        place: source.place(stray.entry.at).into(),
        key: stray.path.clone(),
        why: "ai-toolkit has no such key and ignores it".into(),
        instead: format!("write `{key}`"),
    }
}

fn unknown(source: &Source, stray: &de::Stray) -> Warning {
    let section = stray.path.rsplit_once('.').map_or("", |(section, _)| section);
    let others = keys::sections().filter(|s| s.path == section).flat_map(|s| s.keys).map(|k| k.name);
    let near = suggest::nearest(&stray.entry.key, stray.known.iter().copied().chain(others));
    let advice = match near.or_else(|| keys::meant(&stray.path)) {
        Some(near) => format!("; did you mean `{near}`?"),
        None => String::new(),
    };
    let message = format!("`{}` is not a known key and has no effect{advice}", stray.entry.key);
    Warning { place: source.place(stray.entry.at), message }
}
