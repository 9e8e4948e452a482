//! Whether a job file still describes the same training as when a run began.

use std::fmt;
use std::path::Path;

use super::keys::{self, Rule};
use super::source::Source;
use super::substitute;
use super::tree::{Node, Value};

/// A key that says something else than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its path, `train.lr`.
    pub key: String,
    /// What it said.
    pub was: String,
    /// What it says.
    pub is: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` was {} and is {}", self.key, self.was, self.is)
    }
}

/// Keys and sections that leave the training as it is: names and places, what is kept and shown, how long it
/// goes on.
const NEUTRAL: &[&str] = &[
    "meta",
    "config.name",
    "config.process[].type",
    "config.process[].training_folder",
    "config.process[].log_dir",
    "config.process[].tenggat.keep_best",
    "config.process[].tenggat.held_out",
    "config.process[].tenggat.deliver",
    "config.process[].tenggat.held_out_weights",
    "config.process[].performance_log_every",
    "config.process[].save",
    "config.process[].logging",
    "config.process[].sample",
    "config.process[].first_sample",
    "config.process[].datasets[].cache_latents",
    "config.process[].datasets[].cache_latents_to_disk",
    "config.process[].datasets[].cache_text_embeddings",
    "config.process[].train.cache_text_embeddings",
    "config.process[].train.unload_text_encoder",
    "config.process[].train.steps",
    "config.process[].train.skip_first_sample",
    "config.process[].train.force_first_sample",
    "config.process[].train.disable_sampling",
    "config.process[].train.gradient_checkpointing",
    "config.process[].model.low_vram",
    "config.process[].model.layer_offloading_transformer_percent",
    "config.process[].train.validation_config",
    "config.process[].tenggat.budget",
    "config.process[].tenggat.deadline",
    "config.process[].tenggat.fill",
    "config.process[].tenggat.margin",
    "config.process[].tenggat.memory_limit",
    "config.process[].tenggat.resume",
    "config.process[].tenggat.threads",
];

/// What differs between two job files, as far as it changes the training. Files that cannot be parsed differ
/// as a whole.
pub fn changes(was: &str, is: &str) -> Vec<Change> {
    // Secrets are stored as `${NAME}`, which is not YAML everywhere.
    let parse = |text: &str| {
        let text = substitute::bare(text);
        Node::parse(&Source::new(Path::new("config.yaml"), &text), &text)
    };
    let (Ok(was), Ok(is)) = (parse(was), parse(is)) else {
        let unreadable = || "another file".to_owned();
        return vec![Change { key: "config.yaml".into(), was: unreadable(), is: unreadable() }];
    };
    let mut found = Vec::new();
    compare("", "", Some(&was), Some(&is), &mut found);
    found
}

/// `pattern` has `[]` where `path` has an index.
fn compare(pattern: &str, path: &str, was: Option<&Node>, is: Option<&Node>, found: &mut Vec<Change>) {
    if NEUTRAL.contains(&pattern) || is_without_effect(pattern) {
        return;
    }
    let value = |node: Option<&'_ Node>| node.map_or(Value::Null, |node| node.value.clone());
    match (value(was), value(is)) {
        (Value::List(a), Value::List(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(&b).enumerate() {
                compare(&format!("{pattern}[]"), &format!("{path}[{i}]"), Some(a), Some(b), found);
            }
        }
        (a @ (Value::Map(_) | Value::Null), b @ (Value::Map(_) | Value::Null)) => {
            let names = |value: &Value| match value {
                Value::Map(entries) => entries.iter().map(|e| e.key.clone()).collect(),
                _ => Vec::new(),
            };
            let (mut all, more) = (names(&a), names(&b));
            all.extend(more);
            let mut seen = Vec::new();
            for name in all {
                if seen.contains(&name) {
                    continue;
                }
                let under = |of: &str| if of.is_empty() { name.clone() } else { format!("{of}.{name}") };
                let (was, is) = (was.and_then(|n| n.get(&name)), is.and_then(|n| n.get(&name)));
                compare(&under(pattern), &under(path), was, is, found);
                seen.push(name);
            }
        }
        (a, b) if a.same(&b) => {}
        (a, b) => {
            let key = path.strip_prefix("config.process[0].").unwrap_or(path).to_owned();
            found.push(Change { key, was: shown(&a), is: shown(&b) });
        }
    }
}

fn is_without_effect(pattern: &str) -> bool {
    let (section, name) = pattern.rsplit_once('.').unwrap_or(("", pattern));
    keys::find(section, name).is_some_and(|key| matches!(key.rule, Rule::NoEffect(_)))
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "not set".into(),
        Value::Bool(b) => b.to_string(),
        Value::Int(i) => i.to_string(),
        Value::Float(x) => x.to_string(),
        Value::Text(text) => format!("{text:?}"),
        Value::List(_) | Value::Map(_) => value.describe(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: &str = "job: extension
config:
  name: fox
  process:
    - type: sd_trainer
      network: {type: lora, linear: 4}
      datasets: [{folder_path: a, num_workers: 2}]
      train: {lr: 1e-4, steps: 100}
";

    fn after(from: &str, to: &str) -> Vec<String> {
        assert!(JOB.contains(from));
        changes(JOB, &JOB.replace(from, to)).iter().map(Change::to_string).collect()
    }

    #[test]
    fn what_changes_the_training_is_named() {
        assert_eq!(after("lr: 1e-4", "lr: 2e-4"), ["`train.lr` was 0.0001 and is 0.0002"]);
        assert_eq!(after("linear: 4", "rank: 4").len(), 2);
        assert_eq!(
            after("lr: 1e-4, ", "lr: 1e-4, optimizer: lion, "),
            ["`train.optimizer` was not set and is \"lion\""]
        );
        assert_eq!(
            after("folder_path: a", "folder_path: b"),
            ["`datasets[0].folder_path` was \"a\" and is \"b\""]
        );
        assert_eq!(
            after("[{folder_path: a, num_workers: 2}]", "[]"),
            ["`datasets` was a list and is a list"]
        );
        assert_eq!(changes(JOB, "{").len(), 1);
    }

    #[test]
    fn what_does_not_is_not() {
        for (from, to) in [
            ("steps: 100", "steps: 200"),
            ("lr: 1e-4", "lr: 0.0001"),
            ("linear: 4", "linear: 4.0"),
            ("num_workers: 2", "num_workers: 4"),
            ("      train:", "      save: {save_every: 7}\n      tenggat: {budget: 1h}\n      train:"),
            ("      train:", "      sample: {prompts: [a, b]}\n      train:"),
        ] {
            assert_eq!(after(from, to), [""; 0], "{to}");
        }
    }
}
