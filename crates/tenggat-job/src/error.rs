//! What can be wrong with a job file.

use std::fmt;
use std::path::PathBuf;

use super::Place;

/// Result of reading a job.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A job that cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the job {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// `${VAR}` of a variable that is not set.
    #[error("{place}: the environment variable `{name}` is not set; set it, or write the value in its place\n{}", place.excerpt())]
    Variable {
        /// Where it is used.
        place: Box<Place>,
        /// The variable.
        name: String,
    },
    /// The text is neither YAML nor JSON.
    #[error("{place}: {message}\n{}", place.excerpt())]
    Syntax {
        /// Where the parser stopped.
        place: Box<Place>,
        /// The parser's reason.
        message: String,
    },
    /// A value of the wrong type, or one that makes no sense.
    #[error("{place}: {}{message}\n{}", named(key), place.excerpt())]
    Value {
        /// Where the value is.
        place: Box<Place>,
        /// The key, from `config` on; empty for the whole file.
        key: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// A key, or a value of it, that ai-toolkit has and this version does not.
    #[error("{place}: `{key}` is not supported: {why}; {instead}\n{}", place.excerpt())]
    Refused {
        /// Where the key is.
        place: Box<Place>,
        /// The key, from `config` on.
        key: String,
        /// Why not.
        why: String,
        /// What to do.
        instead: String,
    },
    /// Several of them.
    #[error("{} things are wrong:\n{}", errors.len(), listed(errors))]
    Several {
        /// In the order of the file; at least two.
        errors: Vec<Error>,
    },
    /// A key that no job can do without.
    #[error("{place}: `{key}` is missing; {hint}\n{}", place.excerpt())]
    Missing {
        /// The section that lacks it.
        place: Box<Place>,
        /// The key, from the root on.
        key: &'static str,
        /// What to write.
        hint: &'static str,
    },
}

impl Error {
    /// All errors as one, in the order of the file; `None` if there are none.
    pub(crate) fn of(mut errors: Vec<Error>) -> Option<Error> {
        errors.sort_by_key(|error| error.place().map(|place| place.mark));
        match errors.len() {
            0 | 1 => errors.pop(),
            _ => Some(Error::Several { errors }),
        }
    }

    /// Where it is, if that is a place in the file.
    pub fn place(&self) -> Option<&Place> {
        match self {
            Error::Read { .. } => None,
            Error::Variable { place, .. }
            | Error::Syntax { place, .. }
            | Error::Value { place, .. }
            | Error::Refused { place, .. }
            | Error::Missing { place, .. } => Some(place),
            Error::Several { errors } => errors.first()?.place(),
        }
    }

    /// Replaces all texts that come from the file by what `hide` makes of them.
    pub(crate) fn hide(&mut self, hide: &dyn Fn(&str) -> String) {
        let mut texts: Vec<&mut String> = Vec::new();
        match self {
            Error::Read { .. } => {}
            Error::Several { errors } => errors.iter_mut().for_each(|error| error.hide(hide)),
            Error::Missing { place, .. } | Error::Variable { place, .. } => place.hide(hide),
            Error::Syntax { place, message } => {
                place.hide(hide);
                texts.push(message);
            }
            Error::Value { place, key, message } => {
                place.hide(hide);
                texts.extend([key, message]);
            }
            Error::Refused { place, key, why, .. } => {
                place.hide(hide);
                texts.extend([key, why]);
            }
        }
        for text in texts {
            *text = hide(text);
        }
    }
}

fn listed(errors: &[Error]) -> String {
    errors.iter().map(Error::to_string).collect::<Vec<_>>().join("\n")
}

fn named(key: &str) -> String {
    if key.is_empty() { String::new() } else { format!("`{key}`: ") }
}

/// Something in a job that does not stop it and that its author will want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Where.
    pub place: Place,
    /// What, and what to do.
    pub message: String,
}

impl Warning {
    /// As [`Error::hide`].
    pub(crate) fn hide(&mut self, hide: &dyn Fn(&str) -> String) {
        self.place.hide(hide);
        self.message = hide(&self.message);
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}
