//! The keys of a job, and which of them say something else than the default.

use std::path::Path;

use serde::Serialize;

use crate::Job;
use crate::source::Source;
use crate::substitute;
use crate::tree::{Node, Value};

/// A key of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Given {
    /// Its path, `train.lr`.
    pub key: String,
    /// What it says.
    pub value: String,
    /// Whether the job would be the same without it; `None` where nobody knows, as for the job of another
    /// program.
    pub is_default: Option<bool>,
}

/// Most keys that are looked at; a job has some dozens.
const MOST: usize = 400;

/// The keys of a job file in its order. A key is a default if the job without it is the same job. A text that
/// is no job has none.
pub fn given(text: &str) -> Vec<Given> {
    let text = substitute::bare(text);
    let source = Source::new(Path::new("config.yaml"), &text);
    let Ok(tree) = Node::parse(&source, &text) else { return Vec::new() };
    let mut places = Vec::new();
    leaves(&tree, &mut Vec::new(), &mut places);
    places.truncate(MOST);
    let whole = resolved(&tree);
    let one = |(place, value): (Vec<usize>, String)| Given {
        key: name(&tree, &place),
        value,
        is_default: whole.as_ref().map(|whole| resolved(&without(&tree, &place)).as_ref() == Some(whole)),
    };
    places.into_iter().map(one).collect()
}

/// The job, but for its text.
fn resolved(tree: &Node) -> Option<Job> {
    let any = |_: &str| Some(String::new());
    let (mut job, _) = Job::from_str(&json(tree).to_string(), Path::new("config.yaml"), None, &any).ok()?;
    (job.text, job.config) = (String::new(), String::new());
    Some(job)
}

/// Places of the values that are no sections, by the numbers of the entries on the way.
fn leaves(node: &Node, place: &mut Vec<usize>, found: &mut Vec<(Vec<usize>, String)>) {
    let inner: Vec<&Node> = match &node.value {
        Value::Map(entries) => entries.iter().map(|entry| &entry.node).collect(),
        // A list of plain values is one value.
        Value::List(items) if items.iter().any(|item| matches!(item.value, Value::Map(_))) => {
            items.iter().collect()
        }
        _ => {
            found.push((place.clone(), shown(&json(node))));
            return;
        }
    };
    for (n, inner) in inner.into_iter().enumerate() {
        place.push(n);
        leaves(inner, place, found);
        place.pop();
    }
}

fn shown(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn name(tree: &Node, place: &[usize]) -> String {
    let (mut name, mut node) = (String::new(), tree);
    for &n in place {
        match &node.value {
            Value::Map(entries) => {
                if !name.is_empty() {
                    name.push('.');
                }
                name += &entries[n].key;
                node = &entries[n].node;
            }
            Value::List(items) => {
                name += &format!("[{n}]");
                node = &items[n];
            }
            _ => break,
        }
    }
    name.strip_prefix("config.process[0].").map_or(name.clone(), str::to_owned)
}

fn without(node: &Node, place: &[usize]) -> Node {
    let mut node = node.clone();
    let [first, rest @ ..] = place else { return node };
    match &mut node.value {
        Value::Map(entries) if rest.is_empty() => {
            entries.remove(*first);
        }
        Value::Map(entries) => entries[*first].node = without(&entries[*first].node, rest),
        Value::List(items) => items[*first] = without(&items[*first], rest),
        _ => {}
    }
    node
}

/// The tree as JSON, which is YAML too.
fn json(node: &Node) -> serde_json::Value {
    match &node.value {
        Value::Null => serde_json::Value::Null,
        Value::Bool(b) => (*b).into(),
        Value::Int(i) => serde_json::Number::from_i128(*i).map_or(serde_json::Value::Null, Into::into),
        Value::Float(x) => (*x).into(),
        Value::Text(text) => text.as_str().into(),
        Value::List(items) => items.iter().map(json).collect(),
        Value::Map(entries) => entries.iter().map(|e| (e.key.clone(), json(&e.node))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_from_the_default_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "job: extension\nconfig:\n  name: fox\n  process:\n    - type: sd_trainer\n      training_folder: out\n      \
             network: {{type: lora, linear: 4, linear_alpha: 4}}\n      datasets: [{{folder_path: '{}', \
             num_repeats: 1, resolution: [64, 96]}}]\n      train: {{lr: 3e-4, steps: 100, batch_size: 1}}\n      \
             model: {{name_or_path: mini, arch: qwen_image}}\n",
            folder.path().display()
        );
        let given = given(&text);
        let of =
            |key: &str| given.iter().find(|g| g.key == key).unwrap_or_else(|| panic!("{key}: {given:?}"));
        assert_eq!((of("train.lr").value.as_str(), of("train.lr").is_default), ("0.0003", Some(false)));
        assert_eq!(of("train.batch_size").is_default, Some(true));
        assert_eq!(of("datasets[0].num_repeats").is_default, Some(true));
        assert_eq!(of("datasets[0].resolution").value, "[64,96]");
        // The job cannot do without it.
        assert_eq!(of("model.name_or_path").is_default, Some(false));
    }

    #[test]
    fn other_texts_are_no_jobs() {
        assert!(given("{").is_empty());
        let other = given("a: 1\nb: {c: [1, 2]}\n");
        assert_eq!((other.len(), other[1].key.as_str(), other[1].is_default), (2, "b.c", None));
    }
}
