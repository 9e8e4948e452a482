//! From a tree to the raw structs: a serde deserializer whose errors know their place, and which reports the
//! keys that no struct has.

use std::cell::RefCell;
use std::fmt;

use serde::de::{self, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor};

use super::source::Mark;
use super::tree::{Entry, Node, Value};

/// A key that is in the file and in no struct.
#[derive(Debug, Clone)]
pub(super) struct Stray {
    /// Sections from the root on, with `[]` for list items: `config.process[].train.lr`.
    pub path: String,
    pub entry: Entry,
    /// The keys that the section has.
    pub known: &'static [&'static str],
}

/// What was found besides the values.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub strays: Vec<Stray>,
    /// Every section met, and its keys.
    pub sections: Vec<(String, &'static [&'static str])>,
}

/// A value that does not fit its struct.
#[derive(Debug)]
pub(super) struct Misfit {
    pub message: String,
    pub at: Option<Mark>,
    pub path: String,
}

/// Name of the newtype that takes one value or a list of them.
pub(super) const ONE_OR_MANY: &str = "OneOrMany";

/// Reads a `T` from a tree.
pub(super) fn read<'de, T: de::Deserialize<'de>>(node: &'de Node) -> Result<(T, Findings), Misfit> {
    let findings = RefCell::new(Findings::default());
    let value = T::deserialize(Reader { node, path: "", findings: &findings })?;
    Ok((value, findings.into_inner()))
}

struct Reader<'de, 'p> {
    node: &'de Node,
    path: &'p str,
    findings: &'p RefCell<Findings>,
}

impl Reader<'_, '_> {
    fn expected(&self, what: &str) -> Misfit {
        Misfit::new(format!("expected {what}, got {}", self.node.value.describe()))
            .located(self.node.at, self.path)
    }

    fn place<T>(&self, result: Result<T, Misfit>) -> Result<T, Misfit> {
        result.map_err(|e| e.located(self.node.at, self.path))
    }
}

impl Misfit {
    fn new(message: String) -> Self {
        Misfit { message, at: None, path: String::new() }
    }

    /// Keeps the innermost place.
    fn located(self, at: Mark, path: &str) -> Self {
        if self.at.is_some() { self } else { Misfit { at: Some(at), path: path.into(), ..self } }
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Misfit {}

impl de::Error for Misfit {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Misfit::new(message.to_string())
    }
}

macro_rules! integers {
    ($($method:ident $visit:ident $type:ty),*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
            let whole = match self.node.value {
                Value::Int(i) => Some(i),
                // 1e3 is a float to YAML and a number of steps to its author.
                Value::Float(x) if x.fract() == 0.0 && x.abs() < 1e15 => Some(x as i128),
                _ => return Err(self.expected("a whole number")),
            };
            match whole.and_then(|i| <$type>::try_from(i).ok()) {
                Some(i) => self.place(visitor.$visit(i)),
                None => Err(self.expected(if <$type>::MIN == 0 { "a number from 0 on" } else { "a smaller number" })),
            }
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Reader<'de, '_> {
    type Error = Misfit;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match &self.node.value {
            Value::Null => self.place(visitor.visit_unit()),
            Value::Bool(b) => self.place(visitor.visit_bool(*b)),
            Value::Int(i) => match (i64::try_from(*i), u64::try_from(*i)) {
                (Ok(i), _) => self.place(visitor.visit_i64(i)),
                (_, Ok(i)) => self.place(visitor.visit_u64(i)),
                _ => Err(self.expected("a smaller number")),
            },
            Value::Float(x) => self.place(visitor.visit_f64(*x)),
            Value::Text(text) => self.place(visitor.visit_borrowed_str(text)),
            Value::List(_) => self.deserialize_seq(visitor),
            Value::Map(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        let value = match &self.node.value {
            Value::Bool(b) => Some(*b),
            // The truth values of YAML 1.1, which ai-toolkit's parser reads.
            Value::Text(text) => match text.to_lowercase().as_str() {
                "yes" | "on" => Some(true),
                "no" | "off" => Some(false),
                _ => None,
            },
            _ => None,
        };
        match value {
            Some(b) => self.place(visitor.visit_bool(b)),
            None => Err(self.expected("true or false")),
        }
    }

    integers!(deserialize_u64 visit_u64 u64, deserialize_u32 visit_u32 u32, deserialize_i64 visit_i64 i64);

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self.node.value {
            Value::Int(i) => self.place(visitor.visit_f64(i as f64)),
            Value::Float(x) if x.is_finite() => self.place(visitor.visit_f64(x)),
            _ => Err(self.expected("a number")),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match &self.node.value {
            Value::Text(text) => self.place(visitor.visit_borrowed_str(text)),
            Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
                Err(self.expected("text (put the value in quotes if it is meant as text)"))
            }
            _ => Err(self.expected("text")),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        if name == ONE_OR_MANY && !matches!(self.node.value, Value::List(_)) {
            return visitor.visit_newtype_struct(de::value::SeqDeserializer::new(std::iter::once(self)));
        }
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        let Value::List(items) = &self.node.value else { return Err(self.expected("a list")) };
        let path = format!("{}[]", self.path);
        visitor.visit_seq(Items { items: items.iter(), path: &path, findings: self.findings })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        let Value::Map(entries) = &self.node.value else { return Err(self.expected("a section of keys")) };
        visitor.visit_map(Entries { entries: entries.iter(), current: None, reader: &self })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        let Value::Map(entries) = &self.node.value else { return Err(self.expected("a section of keys")) };
        let mut findings = self.findings.borrow_mut();
        findings.sections.push((self.path.into(), fields));
        for entry in entries.iter().filter(|e| !fields.contains(&e.key.as_str())) {
            findings.strays.push(Stray { path: self.join(&entry.key), entry: entry.clone(), known: fields });
        }
        drop(findings);
        self.deserialize_map(visitor)
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i128 u8 u16 u128 f32 char bytes byte_buf unit unit_struct tuple tuple_struct enum identifier ignored_any
    }
}

impl Reader<'_, '_> {
    fn join(&self, key: &str) -> String {
        if self.path.is_empty() { key.into() } else { format!("{}.{key}", self.path) }
    }
}

impl<'de> IntoDeserializer<'de, Misfit> for Reader<'de, '_> {
    type Deserializer = Self;
    fn into_deserializer(self) -> Self {
        self
    }
}

struct Items<'de, 'p> {
    items: std::slice::Iter<'de, Node>,
    path: &'p str,
    findings: &'p RefCell<Findings>,
}

impl<'de> SeqAccess<'de> for Items<'de, '_> {
    type Error = Misfit;
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Misfit> {
        self.items
            .next()
            .map(|node| seed.deserialize(Reader { node, path: self.path, findings: self.findings }))
            .transpose()
    }
}

struct Entries<'de, 'p> {
    entries: std::slice::Iter<'de, Entry>,
    current: Option<&'de Entry>,
    reader: &'p Reader<'de, 'p>,
}

impl<'de> MapAccess<'de> for Entries<'de, '_> {
    type Error = Misfit;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Misfit> {
        self.current = self.entries.next();
        let Some(entry) = self.current else { return Ok(None) };
        seed.deserialize(de::value::BorrowedStrDeserializer::new(&entry.key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Misfit> {
        let entry = self.current.ok_or_else(|| Misfit::new("a value without a key".into()))?;
        let path = self.reader.join(&entry.key);
        seed.deserialize(Reader { node: &entry.node, path: &path, findings: self.reader.findings })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde::Deserialize;

    use super::super::source::Source;
    use super::*;

    #[derive(Debug, Deserialize, PartialEq, Default)]
    #[serde(default)]
    struct Outer {
        steps: Option<u64>,
        lr: Option<f64>,
        name: Option<String>,
        sizes: Option<OneOrMany>,
        inner: Vec<Inner>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    struct OneOrMany(Vec<u64>);

    #[derive(Debug, Deserialize, PartialEq, Default)]
    #[serde(default)]
    struct Inner {
        on: Option<bool>,
    }

    fn parse(text: &str) -> Node {
        Node::parse(&Source::new(Path::new("job.yaml"), text), text).unwrap()
    }

    #[test]
    fn numbers_are_read_as_their_author_means_them() {
        let tree = parse("{steps: 2e3, lr: 1, name: null, sizes: 512, inner: [{on: yes}]}");
        let (outer, findings) = read::<Outer>(&tree).unwrap();
        assert_eq!((outer.steps, outer.lr, outer.name), (Some(2000), Some(1.0), None));
        assert_eq!(outer.sizes, Some(OneOrMany(vec![512])));
        assert_eq!(outer.inner, [Inner { on: Some(true) }]);
        assert!(findings.strays.is_empty());
        assert_eq!(findings.sections[1].0, "inner[]");
        let (many, _) = read::<Outer>(&parse("sizes: [1, 2]")).map(|(o, f)| (o.sizes, f)).unwrap();
        assert_eq!(many, Some(OneOrMany(vec![1, 2])));
    }

    #[test]
    fn misfits_name_key_place_and_value() {
        let cases = [
            ("steps: -1", "steps", 8, "expected a number from 0 on, got the number -1"),
            ("steps: 1.5", "steps", 8, "expected a whole number, got the number 1.5"),
            ("lr: fast", "lr", 5, "expected a number, got the text \"fast\""),
            ("inner: [{on: 1}]", "inner[].on", 14, "expected true or false, got the number 1"),
            ("inner: {on: true}", "inner", 8, "expected a list, got a section of keys"),
            ("sizes: [1, x]", "sizes[]", 12, "expected a whole number, got the text \"x\""),
            ("sizes: x", "sizes", 8, "expected a whole number, got the text \"x\""),
            ("- 1", "", 1, "expected a section of keys, got a list"),
        ];
        for (text, path, column, message) in cases {
            let tree = parse(text);
            let error = read::<Outer>(&tree).unwrap_err();
            assert_eq!(
                (error.path.as_str(), error.at, error.message.as_str()),
                (path, Some(Mark { line: 1, column }), message)
            );
        }
        let error = read::<Outer>(&parse("name: 12")).unwrap_err().message;
        assert!(error.contains("quotes"), "{error}");
    }

    #[test]
    fn keys_without_a_field_are_reported() {
        let tree = parse("step: 3\ninner:\n  - {onn: 1}\n");
        let (_, findings) = read::<Outer>(&tree).unwrap();
        let strays: Vec<_> = findings.strays.iter().map(|s| (s.path.as_str(), s.entry.at.line)).collect();
        assert_eq!(strays, [("step", 1), ("inner[].onn", 3)]);
        assert_eq!(findings.strays[1].known, ["on"]);
    }
}
