//! What all sections need to decide: the place of a key, and where errors and warnings go.

use crate::source::{Mark, Source};
use crate::tree::{Node, Value};
use crate::values::{self, Choice, Unchosen};
use crate::{Error, Warning};

/// Path of the process, the only one that a job has.
pub(super) const PROCESS: &str = "config.process[0]";

/// Decides; keeps the tree to say where a value is that makes no sense. An error does not end the work: it is
/// noted and a default stands in, so that one reading finds them all.
pub(crate) struct Resolver<'a> {
    pub source: &'a Source,
    pub tree: &'a Node,
    pub warnings: &'a mut Vec<Warning>,
    pub errors: &'a mut Vec<Error>,
    /// Paths, with `[]` for list items, that were found wrong before; nothing is said of them again.
    pub wrong: &'a [String],
}

impl Resolver<'_> {
    /// The place of a key such as `config.process[0].train.lr`, or of the nearest section around it.
    fn mark(&self, path: &str) -> Mark {
        let mut node = self.tree;
        for part in path.split('.') {
            let (key, index) = match part.split_once('[') {
                Some((key, index)) => (key, index.trim_end_matches(']').parse::<usize>().ok()),
                None => (part, None),
            };
            let Some(mut next) = node.get(key) else { break };
            if let (Some(i), Value::List(items)) = (index, &next.value)
                && let Some(item) = items.get(i)
            {
                next = item;
            }
            node = next;
        }
        node.at
    }

    /// Whether this key or a section around it was found wrong before.
    fn is_known(&self, path: &str) -> bool {
        let mut general = String::with_capacity(path.len());
        let mut inside = false;
        for c in path.chars() {
            inside &= c != ']';
            if !inside {
                general.push(c);
            }
            inside |= c == '[';
        }
        let around = |wrong: &String| match general.strip_prefix(wrong.as_str()) {
            Some(rest) => rest.is_empty() || rest.starts_with(['.', '[']),
            None => false,
        };
        self.wrong.iter().any(around)
    }

    /// A value that makes no sense.
    pub(super) fn wrong(&mut self, path: &str, message: impl Into<String>) {
        if !self.is_known(path) {
            let place = self.source.place(self.mark(path)).into();
            self.errors.push(Error::Value { place, key: path.into(), message: message.into() });
        }
    }

    /// A key or value of ai-toolkit that is not supported.
    pub(super) fn refused(&mut self, path: &str, why: &str, instead: &str) {
        if !self.is_known(path) {
            let place = self.source.place(self.mark(path)).into();
            let (why, instead) = (why.into(), instead.into());
            self.errors.push(Error::Refused { place, key: path.into(), why, instead });
        }
    }

    /// A key that no job can do without.
    pub(super) fn missing(&mut self, key: &'static str, hint: &'static str) {
        if !self.is_known(key) {
            let place = self.source.place(self.mark(key)).into();
            self.errors.push(Error::Missing { place, key, hint });
        }
    }

    /// Something that its author will want to know.
    pub(super) fn warn(&mut self, path: &str, message: impl Into<String>) {
        let place = self.source.place(self.mark(path));
        self.warnings.push(Warning { place, message: message.into() });
    }

    /// The value that a name stands for.
    pub(super) fn choose<T: Copy>(
        &mut self,
        path: &str,
        name: Option<&str>,
        choices: &'static [Choice<T>],
        default: T,
    ) -> T {
        let Some(name) = name else { return default };
        match values::choose(name, choices) {
            Ok(value) => return value,
            Err(Unchosen::Refused(instead)) => {
                self.refused(path, &format!("`{name}` is not supported"), instead);
            }
            Err(Unchosen::Unknown(message)) => self.wrong(path, message),
        }
        default
    }
}
