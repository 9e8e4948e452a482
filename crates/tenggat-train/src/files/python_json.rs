//! JSON as Python's `json.dumps` writes it: hashes and metadata of ai-toolkit are made from that text.

use std::fmt::Write;

use serde_json::Value;

/// `json.dumps(value)`: ", " and ": " between parts, everything beyond ASCII escaped, keys in their own
/// order.
pub(crate) fn dumps(value: &Value) -> String {
    let mut out = String::new();
    put(value, &mut out);
    out
}

fn put(value: &Value, out: &mut String) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Number(n) => out.push_str(&number(n)),
        Value::String(text) => put_text(text, out),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i == 0 { "" } else { ", " });
                put(item, out);
            }
            out.push(']');
        }
        Value::Object(entries) => {
            out.push('{');
            for (i, (key, item)) in entries.iter().enumerate() {
                out.push_str(if i == 0 { "" } else { ", " });
                put_text(key, out);
                out.push_str(": ");
                put(item, out);
            }
            out.push('}');
        }
    }
}

/// Python's `repr` of a number: exponents from 1e16 up and below 1e-4, with a sign and two digits at least.
fn number(n: &serde_json::Number) -> String {
    let Some(x) = n.as_f64().filter(|_| n.is_f64()) else { return n.to_string() };
    let (mantissa, exponent) = match format!("{x:e}").split_once('e') {
        Some((m, e)) => (m.to_owned(), e.parse::<i32>().unwrap_or(0)),
        None => return x.to_string(),
    };
    if x == 0.0 || (-4..16).contains(&exponent) {
        return format!("{x:?}");
    }
    format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

fn put_text(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            ' '..='~' => out.push(c),
            _ => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    let _ = write!(out, "\\u{unit:04x}"); // writing to a String cannot fail
                }
            }
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Expected texts printed by Python 3.11.
    #[test]
    fn agrees_with_python() {
        let value = json!({"b": [1, -2.5, true, null], "a": {}, "é\u{7f}": "tab\t\"\\ 🦊/\u{1}"});
        let expected =
            r#"{"b": [1, -2.5, true, null], "a": {}, "\u00e9\u007f": "tab\t\"\\ \ud83e\udd8a/\u0001"}"#;
        assert_eq!(dumps(&value), expected);
        for (x, expected) in [
            (1.0, "1.0"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (1.25e-7, "1.25e-07"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.1, "0.1"),
            (-0.0, "-0.0"),
        ] {
            assert_eq!(dumps(&json!(x)), expected);
        }
        assert_eq!(dumps(&json!(18446744073709551615u64)), "18446744073709551615");
    }
}
