//! A job file of any architecture as plain data, for programs that hand it on instead of running it.

use std::path::Path;

use serde_json::Value as Json;

use crate::source::{Mark, Source};
use crate::tree::{Node, Value};
use crate::{Error, Result, file, substitute};

/// A job file with its variables replaced and nothing decided.
#[derive(Debug, Clone)]
pub struct Document {
    source: Source,
    tree: Node,
    name: String,
}

impl Document {
    /// Reads a job file, YAML or JSON. `name` replaces `config.name`, and `[name]` everywhere; `variable`
    /// gives the values of `${VAR}`.
    ///
    /// # Errors
    /// The file cannot be read or parsed, a variable is not set, or the job has no name.
    pub fn read(
        path: &Path,
        name: Option<&str>,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Document> {
        let text = file::text(path).map_err(|source| Error::Read { path: path.into(), source })?;
        // Secrets stay variables, which ai-toolkit replaces by itself: they are written to no file.
        let text = substitute::variables(&Source::new(path, &text), &text, variable)?.stored;
        let source = Source::new(path, &text);
        let mut tree = Node::parse(&source, &text)?;
        let written = tree.get("config").and_then(|c| c.get("name")).map(|n| n.value.clone());
        let name = match (name, written) {
            (Some(name), _) => name.to_owned(),
            (None, Some(Value::Text(name))) => name,
            (None, Some(Value::Int(name))) => name.to_string(),
            _ => {
                let place = source.place(Mark { line: 1, column: 1 }).into();
                return Err(Error::Missing { place, key: "config.name", hint: "give the run a name" });
            }
        };
        tree.replace("[name]", &name);
        Ok(Document { source, tree, name })
    }

    /// The name of the run.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file as JSON, as ai-toolkit's own reader would understand it: a bare `yes`, `no`, `on` or `off` is
    /// a truth value there (YAML 1.1). Numbers that JSON does not have become null.
    pub fn to_json(&self) -> Json {
        self.json(&self.tree)
    }

    /// An error about the value at a path of keys and indices, such as `["config", "process", "0", "train"]`;
    /// of as much of the path as is there.
    pub fn error(&self, path: &[&str], message: impl Into<String>) -> Error {
        let mut node = &self.tree;
        for step in path {
            let inner = match &node.value {
                Value::List(items) => step.parse().ok().and_then(|i: usize| items.get(i)),
                _ => node.get(step),
            };
            let Some(inner) = inner else { break };
            node = inner;
        }
        Error::Value {
            place: self.source.place(node.at).into(),
            key: path.join("."),
            message: message.into(),
        }
    }

    fn json(&self, node: &Node) -> Json {
        match &node.value {
            Value::Null => Json::Null,
            Value::Bool(b) => (*b).into(),
            Value::Int(i) => serde_json::Number::from_i128(*i).map_or(Json::Null, Into::into),
            Value::Float(x) => (*x).into(),
            Value::Text(text) => match old_truth(text).filter(|_| self.source.is_bare(node.at)) {
                Some(truth) => truth.into(),
                None => text.as_str().into(),
            },
            Value::List(items) => items.iter().map(|n| self.json(n)).collect(),
            Value::Map(entries) => entries.iter().map(|e| (e.key.clone(), self.json(&e.node))).collect(),
        }
    }
}

/// What YAML 1.1 takes for a truth value and YAML 1.2 for text.
fn old_truth(text: &str) -> Option<bool> {
    match text {
        "yes" | "Yes" | "YES" | "on" | "On" | "ON" => Some(true),
        "no" | "No" | "NO" | "off" | "Off" | "OFF" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Document> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("job.yaml");
        std::fs::write(&path, text).unwrap();
        Document::read(&path, None, &|name| (name == "DATA").then(|| "/d".into()))
    }

    #[test]
    fn any_architecture_is_data() {
        let text =
            "config:\n  name: fox\n  process:\n  - arch: krea2\n    lr: 1e-4\n    at: ${DATA}/[name]\n";
        let document = read(text).unwrap();
        let process = serde_json::json!([{"arch": "krea2", "lr": 1e-4, "at": "/d/fox"}]);
        assert_eq!((document.name(), &document.to_json()["config"]["process"]), ("fox", &process));
    }

    #[test]
    fn bare_words_are_truth_values_as_in_yaml_1_1_and_quoted_ones_are_text() {
        let json =
            read("config: {name: a}\na: yes\nb: 'no'\nc: Off\nd: \"on\"\ne: [no, nope]\n").unwrap().to_json();
        assert_eq!(json["a"], true);
        assert_eq!((&json["b"], &json["c"], &json["d"]), (&"no".into(), &false.into(), &"on".into()));
        assert_eq!(json["e"], serde_json::json!([false, "nope"]));
    }

    #[test]
    fn errors_point() {
        let document = read("config:\n  name: fox\n  process:\n  - type: caption\n").unwrap();
        let error = document.error(&["config", "process", "0", "type"], "no trainer").to_string();
        assert!(error.contains("job.yaml:4:11") && error.contains("no trainer"), "{error}");
        assert!(read("config: {}\n").unwrap_err().to_string().contains("config.name"));
    }
}
