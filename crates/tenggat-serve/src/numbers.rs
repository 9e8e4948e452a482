//! `/metrics`: numbers in Prometheus' text format.

use std::fmt::Write;

use tenggat_runs::State;

use crate::runs::Listed;

/// The runs as samples of gauges. Source of the format: Prometheus, "Exposition formats", version 0.0.4.
pub(crate) fn text(runs: &[Listed]) -> String {
    type Value = fn(&Listed) -> Option<f64>;
    let gauges: [(&str, &str, Value); 7] = [
        ("tenggat_running", "Whether a process works on the run.", |run| {
            Some(f64::from(u8::from(run.overview.state == State::Running)))
        }),
        ("tenggat_steps", "Steps done.", |run| Some(run.overview.step as f64)),
        ("tenggat_steps_expected", "Steps expected in all.", |run| run.overview.total.map(|n| n as f64)),
        ("tenggat_loss", "Loss averaged over the last steps.", |run| run.overview.loss),
        ("tenggat_step_seconds", "Recent seconds per step.", |run| run.overview.step_s),
        ("tenggat_budget_spent_seconds", "Seconds of the budget that are spent.", |run| run.overview.spent_s),
        ("tenggat_deadline_timestamp_seconds", "Deadline of the run.", |run| run.overview.deadline_unix_s),
    ];
    let mut text = String::new();
    for (name, help, value) in gauges {
        // Writing to a text does not fail.
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n");
        for (run, value) in runs.iter().filter_map(|run| Some((run, value(run)?))) {
            let _ = writeln!(text, "{name}{{run=\"{}\"}} {value}", label(&run.id));
        }
    }
    text
}

fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runs::Runs;

    #[test]
    fn names_are_escaped_and_what_is_unknown_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("a\"b\\c");
        std::fs::create_dir(&run).unwrap();
        std::fs::write(run.join("metrics.jsonl"), "{\"step\":3,\"loss\":0.5}\n").unwrap();
        let text = text(&Runs::new(folder.path().to_path_buf()).list());
        assert!(text.contains("tenggat_steps{run=\"a\\\"b\\\\c\"} 3\n"), "{text}");
        assert!(text.contains("tenggat_loss{run=\"a\\\"b\\\\c\"} 0.5\n"), "{text}");
        assert!(!text.contains("tenggat_steps_expected{"), "{text}");
    }
}
