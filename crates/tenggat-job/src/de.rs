//! From a tree to the raw structs: a serde deserializer whose errors know their place, and which reports the
//! keys that no struct has.

use std::cell::RefCell;
use std::fmt;

use serde::de::{self, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor};

use super::keys::Range;
use super::source::Mark;
use super::tree::{Entry, Node, Value};

/// A key that is in the file and in no struct.
#[derive(Debug, Clone)]
pub(super) struct Stray {
    /// Sections from the root on, with `[]` for list items: `config.process[].train.lr`.
    pub path: String,
    pub entry: Entry,
    /// The keys that the section can have.
    pub known: &'static [&'static str],
    /// The keys that it has in the file.
    pub beside: Vec<String>,
}

/// What was found besides the values.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub strays: Vec<Stray>,
    /// Every value that does not fit. Optional fields of [`lenient`] structs are then empty, so that one
    /// reading finds them all.
    pub misfits: Vec<Misfit>,
    /// Every section met, and its keys.
    pub sections: Vec<(String, &'static [&'static str])>,
}

/// A value that does not fit its struct.
#[derive(Debug, Clone)]
pub(super) struct Misfit {
    pub message: String,
    pub at: Option<Mark>,
    pub path: String,
}

/// Name of the newtype that takes one value or a list of them.
pub(super) const ONE_OR_MANY: &str = "OneOrMany";

/// What the numbers of a key may be, by its path; `None` for a key that has none.
pub(super) type Ranges = fn(&str) -> Option<Range>;

/// Reads a `T` from a tree. A number without a range is a misfit, so that no numeric key can lack one.
pub(super) fn read<'de, T: de::Deserialize<'de>>(
    node: &'de Node,
    ranges: Ranges,
) -> Result<(T, Findings), Misfit> {
    let findings = RefCell::new(Findings::default());
    let value = T::deserialize(Reader { node, path: "", findings: &findings, ranges })?;
    Ok((value, findings.into_inner()))
}

/// An optional field that is empty if its value does not fit; the misfit is among the [`Findings`].
pub(super) fn lenient<'de, D: de::Deserializer<'de>, T: de::Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    Ok(<Option<T> as de::Deserialize>::deserialize(deserializer).unwrap_or(None))
}

/// The truth value that a text stands for in YAML 1.1, which ai-toolkit's parser reads.
pub(super) fn truth(text: &str) -> Option<bool> {
    match text.to_lowercase().as_str() {
        "yes" | "on" => Some(true),
        "no" | "off" => Some(false),
        _ => None,
    }
}

#[derive(Clone, Copy)]
struct Reader<'de, 'p> {
    node: &'de Node,
    path: &'p str,
    findings: &'p RefCell<Findings>,
    ranges: Ranges,
}

impl Reader<'_, '_> {
    fn expected(&self, what: &str) -> Misfit {
        self.misfit(format!("expected {what}, got {}", self.node.value.describe()))
    }

    fn misfit(&self, message: String) -> Misfit {
        self.located(Misfit::new(message))
    }

    fn place<T>(&self, result: Result<T, Misfit>) -> Result<T, Misfit> {
        result.map_err(|misfit| self.located(misfit))
    }

    /// Keeps the innermost place, and notes the misfit when it gets one.
    fn located(&self, misfit: Misfit) -> Misfit {
        if misfit.at.is_some() {
            return misfit;
        }
        let misfit = Misfit { at: Some(self.node.at), path: self.path.into(), ..misfit };
        self.findings.borrow_mut().misfits.push(misfit.clone());
        misfit
    }

    /// A number that the key may have.
    fn in_range(&self, value: f64) -> Result<f64, Misfit> {
        let Some(range) = (self.ranges)(self.path) else {
            return Err(self.misfit("this number has no range in the key tables".into()));
        };
        let checked = match self.node.value {
            Value::Int(written) => range.check_shown(value, &written),
            _ => range.check(value),
        };
        checked.map_err(|message| self.misfit(message))
    }
}

impl Misfit {
    fn new(message: String) -> Self {
        Misfit { message, at: None, path: String::new() }
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
                Value::Int(i) => i,
                // 1e3 is a float to YAML and a number of steps to its author.
                Value::Float(x) if x.fract() == 0.0 && x.abs() < 1e15 => x as i128,
                _ => return Err(self.expected("a whole number")),
            };
            self.in_range(whole as f64)?;
            match <$type>::try_from(whole) {
                Ok(i) => self.place(visitor.$visit(i)),
                Err(_) if <$type>::MIN == 0 => Err(self.expected("a number from 0 on")),
                Err(_) => Err(self.expected("a smaller number")),
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
            Value::Text(text) => truth(text),
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
            Value::Int(i) => self.place(visitor.visit_f64(self.in_range(i as f64)?)),
            Value::Float(x) if x.is_finite() => self.place(visitor.visit_f64(self.in_range(x)?)),
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
            _ => self.place(visitor.visit_some(self)),
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
        visitor.visit_seq(Items { items: items.iter(), path: &path, reader: self })
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
            let beside = entries.iter().map(|e| e.key.clone()).collect();
            let path = self.join(&entry.key);
            findings.strays.push(Stray { path, entry: entry.clone(), known: fields, beside });
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
    reader: Reader<'de, 'p>,
}

impl<'de> SeqAccess<'de> for Items<'de, '_> {
    type Error = Misfit;
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Misfit> {
        self.items
            .next()
            .map(|node| seed.deserialize(Reader { node, path: self.path, ..self.reader }))
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
        seed.deserialize(Reader { node: &entry.node, path: &path, ..*self.reader })
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

    fn read<'de, T: Deserialize<'de>>(tree: &'de Node) -> Result<(T, Findings), Misfit> {
        super::read(tree, |_| Some(Range::new(f64::MIN, f64::MAX)))
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
    #[test]
    fn a_number_needs_a_range_and_keeps_to_it() {
        let (tree, one) = (parse("{steps: 7, lr: 2}"), |_: &str| Some(Range::new(0.0, 5.0)));
        let error = super::read::<Outer>(&tree, |path| (path == "lr").then(|| Range::new(0.0, 5.0)));
        assert_eq!(error.unwrap_err().message, "this number has no range in the key tables");
        let error = super::read::<Outer>(&tree, one).unwrap_err();
        assert_eq!(
            (error.path.as_str(), error.message.as_str()),
            ("steps", "7 is out of range; expected 0 to 5")
        );
    }

    #[test]
    fn lenient_fields_let_one_reading_find_every_misfit() {
        #[derive(Debug, Deserialize, PartialEq, Default)]
        #[serde(default)]
        struct Lenient {
            #[serde(deserialize_with = "lenient")]
            steps: Option<u64>,
            #[serde(deserialize_with = "lenient")]
            lr: Option<f64>,
            #[serde(deserialize_with = "lenient")]
            name: Option<String>,
        }
        let (read, findings) = read::<Lenient>(&parse("{steps: -1, lr: 0.5, name: [1]}")).unwrap();
        assert_eq!(read, Lenient { steps: None, lr: Some(0.5), name: None });
        let paths: Vec<_> = findings.misfits.iter().map(|m| m.path.as_str()).collect();
        assert_eq!(paths, ["steps", "name"]);
    }
}
