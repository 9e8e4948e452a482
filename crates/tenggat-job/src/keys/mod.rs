//! What becomes of every key of ai-toolkit: done, refused with a reason, or without effect. The tables are
//! data, so that a test can try each of their rows.

mod datasets;
mod model;
mod process;
mod train;

use super::tree::Value;

/// What becomes of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// Done.
    Supported,
    /// Refused for the reason given; the second text says what to do.
    Refused(&'static str, &'static str),
    /// Without effect, for the reason given.
    NoEffect(&'static str),
}

/// One key of a section.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key {
    pub name: &'static str,
    pub rule: Rule,
    /// Values, as YAML, that change nothing and therefore pass silently; null always does.
    pub harmless: &'static [&'static str],
    /// A value, as YAML, for which the rule holds; the tests try it.
    #[cfg_attr(not(test), expect(dead_code, reason = "the tests try it"))]
    pub example: &'static str,
}

/// A section and its keys. The path starts at the root, with `[]` for list items.
#[derive(Debug, Clone, Copy)]
pub(super) struct Section {
    pub path: &'static str,
    pub keys: &'static [Key],
}

/// Every section.
pub(super) fn sections() -> impl Iterator<Item = &'static Section> {
    process::SECTIONS.iter().chain(datasets::SECTIONS).chain(train::SECTIONS).chain(model::SECTIONS)
}

/// The row of a key.
pub(super) fn find(section: &str, name: &str) -> Option<&'static Key> {
    sections().filter(|s| s.path == section).flat_map(|s| s.keys).find(|k| k.name == name)
}

impl Key {
    /// Whether this value changes nothing.
    pub(super) fn is_harmless(&self, value: &Value) -> bool {
        *value == Value::Null || self.harmless.iter().any(|text| super::raw::literal(text).same(value))
    }
}

const fn supported(name: &'static str, example: &'static str) -> Key {
    Key { name, rule: Rule::Supported, harmless: &[], example }
}

const fn no_effect(
    name: &'static str,
    harmless: &'static [&'static str],
    example: &'static str,
    why: &'static str,
) -> Key {
    Key { name, rule: Rule::NoEffect(why), harmless, example }
}

const fn refused(
    name: &'static str,
    harmless: &'static [&'static str],
    example: &'static str,
    why: &'static str,
    instead: &'static str,
) -> Key {
    Key { name, rule: Rule::Refused(why, instead), harmless, example }
}

/// Advice where there is no other way.
const LEAVE_OUT: &str = "leave the key out";
/// Values that stand for "off".
const OFF: &[&str] = &["false"];
/// Values that stand for "none".
const NONE: &[&str] = &["false", "''", "[]", "{}"];
