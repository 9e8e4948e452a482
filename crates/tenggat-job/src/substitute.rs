//! `${VAR}` in the raw text of a job.

use super::source::{Mark, Source};
use super::{Error, Result};

/// Parts of the names of variables that hold a secret.
const SECRET: [&str; 7] = ["TOKEN", "KEY", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL"];
/// Fewest bytes of a value that is looked for and hidden; a shorter one stands in every second text.
const SECRET_BYTES: usize = 4;

/// A text with its variables replaced.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Expanded {
    /// All of them: what the job means.
    pub text: String,
    /// All but secret ones: what may be stored.
    pub stored: String,
    /// The secret ones.
    pub secrets: Secrets,
}

/// Variables that hold a secret, and their values.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Secrets(Vec<(String, String)>);

impl Secrets {
    /// The text with `${NAME}` in place of each secret.
    pub(super) fn hide(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (name, value) in self.0.iter().filter(|(_, value)| value.len() >= SECRET_BYTES) {
            text = text.replace(value.as_str(), &format!("${{{name}}}"));
        }
        text
    }

    /// [`Secrets::hide`] in every text of a JSON value, keys included.
    pub(super) fn hide_json(&self, value: &mut serde_json::Value) {
        match value {
            serde_json::Value::String(text) => *text = self.hide(text),
            serde_json::Value::Array(items) => items.iter_mut().for_each(|item| self.hide_json(item)),
            serde_json::Value::Object(entries) => self.hide_entries(entries),
            _ => {}
        }
    }

    /// [`Secrets::hide_json`] of the entries of a map.
    pub(super) fn hide_entries(&self, entries: &mut serde_json::Map<String, serde_json::Value>) {
        *entries = std::mem::take(entries)
            .into_iter()
            .map(|(key, mut value)| {
                self.hide_json(&mut value);
                (self.hide(&key), value)
            })
            .collect();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn is_secret(name: &str) -> bool {
    let name = name.to_uppercase();
    SECRET.iter().any(|part| name.contains(part))
}

/// What stands between two places of a text.
enum Piece<'a> {
    Text(&'a str),
    /// A variable, and where it begins.
    Variable(&'a str, usize),
}

fn pieces(text: &str) -> Vec<Piece<'_>> {
    let (mut pieces, mut from, mut at) = (Vec::new(), 0, 0);
    while let Some(start) = text[at..].find("${").map(|start| at + start) {
        // An empty `${}` and one that is never closed are text.
        match text[start + 2..].find('}') {
            Some(length) if length > 0 => {
                pieces.push(Piece::Text(&text[from..start]));
                pieces.push(Piece::Variable(&text[start + 2..start + 2 + length], start));
                at = start + length + 3;
                from = at;
            }
            _ => at = start + 2,
        }
    }
    pieces.push(Piece::Text(&text[from..]));
    pieces
}

/// Replaces every `${NAME}` by the value that `variable` gives for NAME, comments included, before anything
/// is parsed. Source: ai-toolkit `toolkit/config.py`, `replace_env_vars_in_string`.
///
/// # Errors
/// Variables have no value; all of them are named.
pub(super) fn variables(
    source: &Source,
    text: &str,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Expanded> {
    let (mut out, mut errors) = (Expanded::default(), Vec::new());
    for piece in pieces(text) {
        let (name, start) = match piece {
            Piece::Text(text) => {
                out.text.push_str(text);
                out.stored.push_str(text);
                continue;
            }
            Piece::Variable(name, start) => (name, start),
        };
        let Some(value) = variable(name) else {
            let line_start = text[..start].rfind('\n').map_or(0, |i| i + 1);
            let mark = Mark {
                line: text[..start].matches('\n').count() + 1,
                column: text[line_start..start].chars().count() + 1,
            };
            errors.push(Error::Variable { place: source.place(mark).into(), name: name.into() });
            continue;
        };
        out.text.push_str(&value);
        if is_secret(name) {
            out.stored += &format!("${{{name}}}");
            if !out.secrets.0.iter().any(|(known, _)| known == name) {
                out.secrets.0.push((name.into(), value));
            }
        } else {
            out.stored.push_str(&value);
        }
    }
    Error::of(errors).map_or(Ok(out), Err)
}

/// The text with the bare name of every variable that is left in it, so that it can be parsed.
pub(super) fn bare(text: &str) -> String {
    let bare = |piece| match piece {
        Piece::Text(text) => text,
        Piece::Variable(name, _) => name,
    };
    pieces(text).into_iter().map(bare).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn run(text: &str) -> Result<Expanded> {
        let variable = |name: &str| match name {
            "DATA" => Some("/data".to_owned()),
            "HF_TOKEN" => Some("hf_abcdef".to_owned()),
            _ => None,
        };
        variables(&Source::new(Path::new("job.yaml"), text), text, &variable)
    }

    #[test]
    fn known_variables_are_replaced_everywhere() {
        assert_eq!(
            run("a: ${DATA}/x # ${DATA}\nb: $DATA ${} ${").unwrap().text,
            "a: /data/x # /data\nb: $DATA ${} ${"
        );
    }

    #[test]
    fn an_unset_variable_is_named_with_its_place() {
        let error = run("a: ${DATA}\n# é ${HOME_OF}\n").unwrap_err().to_string();
        assert!(error.starts_with("job.yaml:2:5: the environment variable `HOME_OF` is not set"), "{error}");
        let error = run("a: ${ONE}\nb: ${TWO}\n").unwrap_err().to_string();
        assert!(error.contains("`ONE`") && error.contains("`TWO`"), "{error}");
    }

    #[test]
    fn secrets_are_known_by_the_variables_name() {
        for secret in ["HF_TOKEN", "WANDB_API_KEY", "my_secret", "DB_PASSWORD", "AwsCredentials"] {
            assert!(is_secret(secret), "{secret}");
        }
        for open in ["DATA", "HOME", "SEED", "OUT"] {
            assert!(!is_secret(open), "{open}");
        }
        let expanded = run("a: ${HF_TOKEN}/${DATA}").unwrap();
        assert_eq!(
            (expanded.text.as_str(), expanded.stored.as_str()),
            ("a: hf_abcdef//data", "a: ${HF_TOKEN}//data")
        );
        assert_eq!(expanded.secrets.hide("no such hf_abcdef here"), "no such ${HF_TOKEN} here");
        assert_eq!(bare(&expanded.stored), "a: HF_TOKEN//data");
        let mut json = serde_json::json!({"hf_abcdef": ["hf_abcdef", 1]});
        expanded.secrets.hide_json(&mut json);
        assert_eq!(json, serde_json::json!({"${HF_TOKEN}": ["${HF_TOKEN}", 1]}));
    }
}
