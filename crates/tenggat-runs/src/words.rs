//! An event as a line for people.

use serde_json::Value;

/// What an event says, and whether it is a warning; `None` for those of which there are too many.
pub(crate) fn of(name: &str, value: &Value) -> Option<(bool, String)> {
    let text = |key: &str| value[key].as_str().unwrap_or_default();
    let number = |key: &str| value[key].as_f64();
    let count = |key: &str| value[key].as_u64();
    let said = match name {
        "started" => format!("`tenggat {}` started", text("program")),
        "phase_finished" => {
            format!("{} took {}", text("phase").replace('_', " "), seconds(number("seconds")?))
        }
        "warning" => return Some((true, harmless(text("text")))),
        "note" => text("text").to_owned(),
        "resumed" => format!("resumed after {}", plural(count("steps")?, "step")),
        "done" => format!("this job is finished, {}; {}", plural(count("steps")?, "step"), text("advice")),
        "forecast" => {
            let speed = number("step_s").map_or(String::new(), |s| format!(" of {}", seconds(s)));
            format!("forecast: {}{speed}", plural(count("steps_total")?, "step"))
        }
        "deadline_moved" => match number("by_s") {
            Some(by_s) if by_s < 0.0 => format!("deadline moved {} earlier", seconds(-by_s)),
            Some(by_s) => format!("deadline moved {} later", seconds(by_s)),
            None => "there is a deadline now".into(),
        },
        "saved" => format!("saved {} at step {}", file_name(text("path")), count("steps")?),
        "wrote" => format!("wrote {}: {}", text("what"), text("path")),
        "data" => format!(
            "{} in {}",
            plural_of(count("entries")?, "entry", "entries"),
            plural(count("buckets")?, "size")
        ),
        "contender" => {
            let best = if value["is_best"] == true { ", the best so far" } else { "" };
            format!("held-out error measured after {}{best}", plural(count("steps")?, "step"))
        }
        "scored" => format!(
            "scored {}: image error {:.5}",
            if value["trained"] == true { "with the LoRA" } else { "the bare model" },
            total(&value["picture"])?
        ),
        "ended" => match value["error"].as_str() {
            Some(error) => return Some((true, harmless(&format!("failed: {error}")))),
            None => {
                let how = if text("outcome") == "stopped" { "stopped" } else { "done" };
                format!("{how} after {}", plural(count("steps").unwrap_or(0), "step"))
            }
        },
        _ => return None,
    };
    Some((false, harmless(&said)))
}

/// A held-out error in one figure. Logs of before it was written count as the weights were by default: a
/// quarter for the captions, the rest for the empty prompt.
pub(crate) fn total(error: &Value) -> Option<f64> {
    let parts = || Some(0.25 * error["captioned"].as_f64()? + 0.75 * error["empty"].as_f64()?);
    error["total"].as_f64().or_else(parts)
}

/// Without characters that a terminal would obey or that reorder text.
pub(crate) fn harmless(text: &str) -> String {
    let is_unsafe = |c: char| {
        c.is_control()
            || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
    };
    text.chars().map(|c| if is_unsafe(c) { '\u{fffd}' } else { c }).collect()
}

pub(crate) fn plural(count: u64, one: &str) -> String {
    plural_of(count, one, &format!("{one}s"))
}

fn plural_of(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// Seconds as people say them.
fn seconds(s: f64) -> String {
    if s < 1.0 {
        format!("{:.0} ms", s * 1e3)
    } else if s < 120.0 {
        format!("{s:.1} s")
    } else {
        format!("{:.0} min", s / 60.0)
    }
}

fn file_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn news_is_said_plainly() {
        let said = |name: &str, value: Value| of(name, &value).map(|(_, text)| text);
        let one = json!({"path": "/a/b/last.safetensors", "steps": 1});
        assert_eq!(said("saved", one).unwrap(), "saved last.safetensors at step 1");
        let moved = json!({"deadline_s": 9, "by_s": -600.0});
        assert_eq!(said("deadline_moved", moved).unwrap(), "deadline moved 10 min earlier");
        let data = json!({"entries": 1, "buckets": 2});
        assert_eq!(said("data", data).unwrap(), "1 entry in 2 sizes");
        assert_eq!(said("step", json!({})), None);
        let scored = json!({"trained": false, "picture": {"captioned": 0.25, "empty": 0.5, "total": 0.375}});
        assert!(said("scored", scored).unwrap().ends_with("error 0.37500"));
        let older = json!({"trained": false, "picture": {"captioned": 0.25, "empty": 0.5}});
        assert!(said("scored", older).unwrap().ends_with("error 0.43750"));
        assert_eq!(said("ended", json!({"outcome": "done", "steps": 7})).unwrap(), "done after 7 steps");
    }
}
