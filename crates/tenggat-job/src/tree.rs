//! YAML or JSON as a tree that knows where everything is written.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};

use serde_saphyr::{DuplicateKeyPolicy, NonFiniteFloatPolicy, Spanned};

use super::source::{Mark, Source};
use super::{Error, Result};

/// Most levels of lists and sections in one another; a job has 7.
const MOST_LEVELS: usize = 32;

/// A value and where it starts.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub at: Mark,
    pub value: Value,
}

/// What a value can be.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key of a map and its value.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub key: String,
    pub at: Mark,
    pub node: Node,
    /// Where the same key was written before; that value is lost.
    pub repeats: Option<Mark>,
}

impl Node {
    /// Parses one document.
    pub(super) fn parse(source: &Source, text: &str) -> Result<Node> {
        let options = serde_saphyr::options! {
            // ai-toolkit's parser keeps the last of two equal keys; so do we, and say so.
            duplicate_keys: DuplicateKeyPolicy::PassThrough,
            // `y` is a caption; the reader of truth values knows yes, no, on and off.
            strict_booleans: true,
            with_snippet: false,
            // Refused where they are read, with the name of their key.
            non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
            // Reading recurses, with 30 kB of stack for a level where nothing is optimised.
            budget: serde_saphyr::budget! { max_depth: MOST_LEVELS },
        };
        serde_saphyr::from_str_with_options::<Node>(text, options).map_err(|error| {
            let mark = error.location().map_or(Mark { line: 1, column: 1 }, |l| mark(&l));
            let message = error.without_snippet().to_string();
            // The place is told before the message.
            let message = message.split(" at line ").next().unwrap_or(&message);
            let message = in_own_words(message, source.line(mark));
            Error::Syntax { place: source.place(mark).into(), message }
        })
    }

    /// The value of a key, if this is a map that has it.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|e| e.key == key).map(|e| &e.node),
            _ => None,
        }
    }

    /// Calls `visit` for every entry of every map, depth first, in the order of the file.
    pub(super) fn entries(&self, visit: &mut impl FnMut(&Entry)) {
        match &self.value {
            Value::List(items) => items.iter().for_each(|n| n.entries(visit)),
            Value::Map(entries) => entries.iter().for_each(|e| {
                visit(e);
                e.node.entries(visit);
            }),
            _ => {}
        }
    }

    /// Replaces `from` by `to` in every text and key.
    pub(super) fn replace(&mut self, from: &str, to: &str) {
        match &mut self.value {
            Value::Text(text) if text.contains(from) => *text = text.replace(from, to),
            Value::List(items) => items.iter_mut().for_each(|n| n.replace(from, to)),
            Value::Map(entries) => entries.iter_mut().for_each(|e| {
                if e.key.contains(from) {
                    e.key = e.key.replace(from, to);
                }
                e.node.replace(from, to);
            }),
            _ => {}
        }
    }

    /// The same tree as JSON; numbers that JSON does not have become null.
    #[cfg(test)]
    pub(super) fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(b) => (*b).into(),
            Value::Int(i) => serde_json::Number::from_i128(*i).map_or(serde_json::Value::Null, Into::into),
            Value::Float(x) => (*x).into(),
            Value::Text(text) => text.as_str().into(),
            Value::List(items) => items.iter().map(Node::to_json).collect(),
            Value::Map(entries) => entries.iter().map(|e| (e.key.clone(), e.node.to_json())).collect(),
        }
    }
}

/// The value that a scalar of YAML stands for.
pub(super) fn literal(text: &str) -> Value {
    let source = Source::new(std::path::Path::new("key table"), text);
    Node::parse(&source, text).map_or(Value::Null, |node| node.value)
}

impl Value {
    /// What this is, for messages.
    pub(super) fn describe(&self) -> String {
        match self {
            Value::Null => "nothing".into(),
            Value::Bool(b) => format!("the boolean {b}"),
            Value::Int(i) => format!("the number {i}"),
            Value::Float(x) => format!("the number {x}"),
            Value::Text(text) => format!("the text {text:?}"),
            Value::List(_) => "a list".into(),
            Value::Map(_) => "a section of keys".into(),
        }
    }

    /// Whether both say the same; 1 and 1.0 do.
    pub(super) fn same(&self, other: &Value) -> bool {
        match (self, other) {
            (Value::Int(i), Value::Float(x)) | (Value::Float(x), Value::Int(i)) => *i as f64 == *x,
            (Value::Float(a), Value::Float(b)) => a == b || a.is_nan() && b.is_nan(),
            (Value::List(a), Value::List(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.value.same(&b.value))
            }
            (Value::Map(a), Value::Map(b)) => a.is_empty() && b.is_empty(),
            _ => self == other,
        }
    }
}

/// What the parser says, in words that fit a job.
fn in_own_words(message: &str, line: &str) -> String {
    if message.contains("multiple") && message.contains("document") {
        return "several YAML documents, with `---` between them; write one file for each job".into();
    }
    let quoted = line.contains('"') && line.contains('\\');
    if quoted && !message.contains("document") {
        let hint = "in double quotes a backslash begins an escape; write paths in single quotes, or with `/`";
        return format!("{message}; {hint}");
    }
    message.to_owned()
}

fn mark(location: &serde_saphyr::Location) -> Mark {
    Mark { line: location.line() as usize, column: location.column() as usize }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Node { at: mark(&spanned.referenced), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_none<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }
    fn visit_bool<E>(self, b: bool) -> std::result::Result<Value, E> {
        Ok(Value::Bool(b))
    }
    fn visit_i64<E>(self, i: i64) -> std::result::Result<Value, E> {
        Ok(Value::Int(i.into()))
    }
    fn visit_u64<E>(self, i: u64) -> std::result::Result<Value, E> {
        Ok(Value::Int(i.into()))
    }
    fn visit_i128<E>(self, i: i128) -> std::result::Result<Value, E> {
        Ok(Value::Int(i))
    }
    fn visit_f64<E>(self, x: f64) -> std::result::Result<Value, E> {
        Ok(Value::Float(x))
    }
    fn visit_str<E>(self, text: &str) -> std::result::Result<Value, E> {
        Ok(Value::Text(text.into()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Value, A::Error> {
        let mut entries: Vec<Entry> = Vec::new();
        while let Some(Spanned { value: key, referenced, .. }) = map.next_key::<Spanned<String>>()? {
            let (at, node) = (mark(&referenced), map.next_value()?);
            match entries.iter_mut().find(|e| e.key == key) {
                Some(earlier) => *earlier = Entry { key, at, node, repeats: Some(earlier.at) },
                None => entries.push(Entry { key, at, node, repeats: None }),
            }
        }
        Ok(Value::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn parse(text: &str) -> Result<Node> {
        Node::parse(&Source::new(Path::new("job.yaml"), text), text)
    }

    #[test]
    fn values_keep_their_types_and_places() {
        let tree = parse("a: 1e-4\nb:\n  - yes\n  - true\n  - ~\nc: {1: 18446744073709551615}\n").unwrap();
        let a = tree.get("a").unwrap();
        assert_eq!((a.at, &a.value), (Mark { line: 1, column: 4 }, &Value::Float(1e-4)));
        let Value::List(b) = &tree.get("b").unwrap().value else { panic!("no list") };
        assert_eq!((&b[0].value, &b[1].value), (&Value::Text("yes".into()), &Value::Bool(true)));
        assert_eq!((b[2].at, &b[2].value), (Mark { line: 5, column: 5 }, &Value::Null));
        assert_eq!(tree.get("c").unwrap().get("1").unwrap().value, Value::Int(u64::MAX.into()));
    }

    #[test]
    fn the_last_of_two_equal_keys_wins_and_is_marked() {
        let tree = parse("a: 1\nb: 2\na: 3\n").unwrap();
        let mut seen = Vec::new();
        tree.entries(&mut |e| seen.push((e.key.clone(), e.node.value.clone(), e.repeats)));
        assert_eq!(seen[0], ("a".into(), Value::Int(3), Some(Mark { line: 1, column: 1 })));
        assert_eq!(seen[1], ("b".into(), Value::Int(2), None));
    }

    #[test]
    fn json_merges_and_anchors_are_read() {
        let json = parse("{\n\t\"a\": [1, 2.5, true, null, \"x\\u00e9\"]\n}").unwrap();
        assert_eq!(json.to_json().to_string(), "{\"a\":[1,2.5,true,null,\"xé\"]}");
        let merged = parse("base: &b {x: 1, y: 2}\nc:\n  <<: *b\n  y: 3\n").unwrap();
        assert_eq!(merged.get("c").unwrap().to_json(), serde_json::json!({"x": 1, "y": 3}));
    }

    #[test]
    fn broken_text_is_an_error_with_its_place() {
        let error = parse("a: 1\n b: [1\nc: }\n").unwrap_err();
        let shown = error.to_string();
        assert!(matches!(error, Error::Syntax { .. }) && shown.starts_with("job.yaml:"), "{shown}");
        assert!(shown.contains('^'), "{shown}");
    }

    #[test]
    fn replacement_reaches_texts_and_keys() {
        let mut tree = parse("'k[name]': ['a [name] b', 1]").unwrap();
        tree.replace("[name]", "n");
        assert_eq!(tree.to_json(), serde_json::json!({"kn": ["a n b", 1]}));
    }
}
