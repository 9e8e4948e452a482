//! `${VAR}` in the raw text of a job.

use super::source::{Mark, Source};
use super::{Error, Result};

/// Replaces every `${NAME}` by the value that `variable` gives for NAME, comments included, before anything
/// is parsed. Source: ai-toolkit `toolkit/config.py`, `replace_env_vars_in_string`.
///
/// # Errors
/// A variable has no value.
pub(super) fn variables(
    source: &Source,
    text: &str,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let after = &rest[start + 2..];
        // An empty `${}` and one that is never closed are text.
        let Some(end) = after.find('}').filter(|&end| end > 0) else {
            out.push_str(&rest[..start + 2]);
            rest = after;
            continue;
        };
        let name = &after[..end];
        let value = variable(name).ok_or_else(|| {
            let before = &text[..text.len() - rest.len() + start];
            let line_start = before.rfind('\n').map_or(0, |i| i + 1);
            let mark = Mark {
                line: before.matches('\n').count() + 1,
                column: before[line_start..].chars().count() + 1,
            };
            Error::Variable { place: source.place(mark).into(), name: name.into() }
        })?;
        out.push_str(&rest[..start]);
        out.push_str(&value);
        rest = &after[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn run(text: &str) -> Result<String> {
        let variable = |name: &str| (name == "DATA").then(|| "/data".to_owned());
        variables(&Source::new(Path::new("job.yaml"), text), text, &variable)
    }

    #[test]
    fn known_variables_are_replaced_everywhere() {
        assert_eq!(
            run("a: ${DATA}/x # ${DATA}\nb: $DATA ${} ${").unwrap(),
            "a: /data/x # /data\nb: $DATA ${} ${"
        );
    }

    #[test]
    fn an_unset_variable_is_named_with_its_place() {
        let error = run("a: ${DATA}\n# é ${HOME_OF}\n").unwrap_err().to_string();
        assert!(error.starts_with("job.yaml:2:5: the environment variable `HOME_OF` is not set"), "{error}");
    }
}
