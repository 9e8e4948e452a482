//! The text of a run's `config.yaml`: the job as it was written, but so that Python's YAML reads what was
//! meant.

use std::path::Path;

use crate::source::Source;
use crate::tree::{Node, Value};

/// The job's text with its name in the place of `[name]`, and with numbers such as `3e-4`, which PyYAML takes
/// for text, written as ai-toolkit writes them. Comments and order stay. Whatever cannot be written so
/// without changing what is said stays as it is.
pub(super) fn text(job: &str, name: &str) -> String {
    let parse = |text: &str| Node::parse(&Source::new(Path::new("config.yaml"), text), text).ok();
    let Some(tree) = parse(job) else { return job.to_owned() };
    let numbers = with_numbers(job, &tree);
    let mut named = tree.clone();
    named.replace("[name]", name);
    let candidates =
        [(numbers.replace("[name]", name), &named), (job.replace("[name]", name), &named), (numbers, &tree)];
    let says_the_same = |(text, tree): &&(String, &Node)| parse(text).is_some_and(|read| same(&read, tree));
    candidates.iter().find(says_the_same).map_or_else(|| job.to_owned(), |(text, _)| text.clone())
}

/// Replaces every number that YAML 1.1 reads as text.
fn with_numbers(job: &str, tree: &Node) -> String {
    let mut floats = Vec::new();
    gather(tree, &mut floats);
    let mut lines: Vec<String> = job.split('\n').map(String::from).collect();
    // From the end, so that places before stay true.
    floats.sort_by_key(|(mark, _)| std::cmp::Reverse(*mark));
    for (mark, value) in floats {
        let Some(line) = mark.line.checked_sub(1).and_then(|i| lines.get_mut(i)) else { continue };
        let Some((start, _)) = line.char_indices().nth(mark.column.saturating_sub(1)) else { continue };
        let ends = |c: char| c.is_whitespace() || matches!(c, ',' | ']' | '}' | '#');
        let end = line[start..].find(ends).map_or(line.len(), |length| start + length);
        let written = &line[start..end];
        if written.parse() == Ok(value) && !is_float_of_python(written) {
            line.replace_range(start..end, &as_python(value));
        }
    }
    lines.join("\n")
}

fn gather(node: &Node, floats: &mut Vec<(crate::Mark, f64)>) {
    match &node.value {
        Value::Float(x) if x.is_finite() => floats.push((node.at, *x)),
        Value::List(items) => items.iter().for_each(|item| gather(item, floats)),
        Value::Map(entries) => entries.iter().for_each(|entry| gather(&entry.node, floats)),
        _ => {}
    }
}

/// Whether PyYAML reads this as a number: with a point, and a signed exponent if any.
/// Source: PyYAML `resolver.py`, `tag:yaml.org,2002:float`.
fn is_float_of_python(text: &str) -> bool {
    match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => mantissa.contains('.') && exponent.starts_with(['+', '-']),
        None => text.contains('.'),
    }
}

/// A number as Python's YAML writes it. Source: PyYAML `representer.py`, `represent_float`, over Python's
/// `repr`.
fn as_python(x: f64) -> String {
    if x == 0.0 || (1e-4..1e16).contains(&x.abs()) {
        return format!("{x:?}");
    }
    let text = format!("{x:e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
    let point = if mantissa.contains('.') { "" } else { ".0" };
    format!("{mantissa}{point}e{sign}{digits:0>2}")
}

/// Whether two trees say the same, wherever it stands.
fn same(a: &Node, b: &Node) -> bool {
    match (&a.value, &b.value) {
        (Value::List(a), Value::List(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Map(a), Value::Map(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.key == b.key && same(&a.node, &b.node))
        }
        (a, b) => a.same(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_python_reads_them() {
        let job = "lr: 3e-4 # 3e-4 is small\nbetas: [9e-1, 0.99]\neps: 1e-8\nsteps: 2e3\nd0: 2.5E+1\nname: '3e-4'\n";
        let config = "lr: 0.0003 # 3e-4 is small\nbetas: [0.9, 0.99]\neps: 1.0e-08\nsteps: 2000.0\nd0: 2.5E+1\nname: '3e-4'\n";
        assert_eq!(text(job, "fox"), config);
        assert_eq!([1e16, 1.5e-7, -1e-5].map(as_python), ["1.0e+16", "1.5e-07", "-1.0e-05"]);
    }

    #[test]
    fn the_name_is_filled_in_where_that_changes_nothing_else() {
        assert_eq!(text("meta: {name: '[name]'}\nlr: 1e-4", "fox"), "meta: {name: 'fox'}\nlr: 0.0001");
        // Here the same letters are a list, and there the name would end the text.
        assert_eq!(text("only: [name]\nlr: 1e-4", "fox"), "only: [name]\nlr: 0.0001");
        assert_eq!(text("a: '[name]'", "it's"), "a: '[name]'");
        assert_eq!(text("a: [", "fox"), "a: [");
    }
}
