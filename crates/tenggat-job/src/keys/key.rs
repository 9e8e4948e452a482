//! A row of the tables, and how rows are written.

use super::range::Range;
use crate::tree::{Value, literal};

/// What becomes of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Done.
    Supported,
    /// Refused for the reason given; the second text says what to do.
    Refused(&'static str, &'static str),
    /// Without effect, for the reason given.
    NoEffect(&'static str),
}

/// One key of a section.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key {
    pub name: &'static str,
    pub rule: Rule,
    /// What its numbers may be, if it has any.
    pub range: Option<Range>,
    /// Values, as YAML, that change nothing and therefore pass silently; null always does.
    pub harmless: &'static [&'static str],
    /// A value, as YAML, for which the rule holds; the tests try it.
    #[cfg_attr(not(test), expect(dead_code, reason = "the tests try it"))]
    pub example: &'static str,
}

/// A section and its keys. The path starts at the root, with `[]` for list items.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Section {
    pub path: &'static str,
    pub keys: &'static [Key],
}

impl Key {
    /// Whether this value changes nothing.
    pub(crate) fn is_harmless(&self, value: &Value) -> bool {
        *value == Value::Null || self.harmless.iter().any(|text| literal(text).same(value))
    }
}

/// A key without numbers.
pub(super) const fn supported(name: &'static str, example: &'static str) -> Key {
    Key { name, rule: Rule::Supported, range: None, harmless: &[], example }
}

/// A key with a whole number, or a list of them.
pub(super) const fn whole(name: &'static str, example: &'static str, least: i64, most: u64) -> Key {
    real(name, example, Range::new(least as f64, most as f64))
}

/// A key with a number, or a list of them.
pub(super) const fn real(name: &'static str, example: &'static str, range: Range) -> Key {
    Key { name, rule: Rule::Supported, range: Some(range), harmless: &[], example }
}

/// A key without effect.
pub(super) const fn no_effect(
    name: &'static str,
    harmless: &'static [&'static str],
    example: &'static str,
    why: &'static str,
) -> Key {
    Key { name, rule: Rule::NoEffect(why), range: None, harmless, example }
}

/// A key that is refused.
pub(super) const fn refused(
    name: &'static str,
    harmless: &'static [&'static str],
    example: &'static str,
    why: &'static str,
    instead: &'static str,
) -> Key {
    Key { name, rule: Rule::Refused(why, instead), range: None, harmless, example }
}

/// Advice where there is no other way.
pub(super) const LEAVE_OUT: &str = "leave the key out";
/// Values that stand for "off".
pub(super) const OFF: &[&str] = &["false"];
/// Values that stand for "none".
pub(super) const NONE: &[&str] = &["false", "''", "[]", "{}"];

/// No limit but an absurd one, for steps and the like.
pub(super) const COUNT: u64 = 1_000_000_000;
/// A share, or the chance of something that may be certain.
pub(super) const SHARE: Range = Range::new(0.0, 1.0);
/// A chance that is never certain, or the decay of an average.
pub(super) const BELOW_ONE: Range = Range::new(0.0, 1.0).below();
/// Learning rates: what 32 bits hold. The best are far below 1, Prodigy's is about 1; others are warned
/// about.
pub(super) const RATE: Range = Range::new(0.0, 1e38);
/// Factors on a loss.
pub(super) const FACTOR: Range = Range::new(-1e3, 1e3);
/// Strengths of a LoRA.
pub(super) const STRENGTH: Range = Range::new(-100.0, 100.0);
/// Numbers above zero.
pub(super) const POSITIVE: Range = Range::new(0.0, 1e9).above();
