//! The queue as a table.

use std::path::Path;

use tenggat_queue::{Entry, State};

use crate::when;

/// Entries that have ended and are shown unless all are asked for.
pub const ENDED_SHOWN: usize = 10;

/// What is shown: everything that runs or waits, and the newest of what ended.
pub fn shown(mut entries: Vec<Entry>, all: bool) -> Vec<Entry> {
    let mut ended = 0;
    entries.retain(|entry| {
        ended += usize::from(entry.state.has_ended());
        all || !entry.state.has_ended() || ended <= ENDED_SHOWN
    });
    entries
}

/// A line for each entry, in so many columns.
pub fn table(entries: &[Entry], width: usize) -> String {
    let mut rows = vec![["entry", "state", "run", "device", "limit", ""].map(String::from)];
    rows.extend(entries.iter().map(row));
    let mut widths = [0; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(console::measure_text_width(cell));
        }
    }
    let fixed: usize = [0, 1, 3, 4].iter().map(|&i| widths[i] + 2).sum();
    widths[2] = widths[2].min(width.saturating_sub(fixed).max(12));
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| {
            let cell = console::truncate_str(cell, width, "…");
            console::pad_str(&cell, width, console::Alignment::Left, None).into_owned()
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        text += &console::truncate_str(line.trim_end(), width, "…");
        text.push('\n');
    }
    text
}

fn row(entry: &Entry) -> [String; 6] {
    let state =
        if entry.state == State::Running && entry.is_cancelled { "ending" } else { entry.state.name() };
    let moment = |unix_s: f64| when::moment(when::unix(unix_s));
    let note = match (entry.state, &entry.reason) {
        (_, Some(reason)) => reason.clone(),
        (State::Running, _) => entry.began_unix_s.map_or(String::new(), |at| format!("since {}", moment(at))),
        (State::Waiting, _) => String::new(),
        _ => entry.ended_unix_s.map_or(String::new(), moment),
    };
    [entry.id.to_string(), state.into(), name(entry), entry.lane.clone(), limit(entry), note]
}

/// The name of the run: that of its folder.
pub fn name(entry: &Entry) -> String {
    let folder = Path::new(&entry.run).file_name().unwrap_or_default();
    folder.to_string_lossy().into_owned()
}

/// How long it may take: `2:00 h by Wed 07:00`.
fn limit(entry: &Entry) -> String {
    let moment = |unix_s: f64| when::moment(when::unix(unix_s));
    let budget = entry.budget_s.map(when::span);
    let by = entry.by_unix_s.map(|by| format!("by {}", moment(by)));
    // While it runs, what counts is its share.
    let share = entry.deadline_unix_s.filter(|_| entry.state == State::Running);
    if let Some(share) = share {
        return format!("until {}", moment(share));
    }
    let limits: Vec<String> = budget.into_iter().chain(by).collect();
    if limits.is_empty() { "–".into() } else { limits.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tenggat_queue::Program;

    fn entry(id: i64, state: State) -> Entry {
        Entry {
            id,
            state,
            job: "/jobs/fox.yaml".into(),
            program: Program::Train,
            name: None,
            working_folder: "/jobs".into(),
            run: "/output/a name that is much longer than any table has room for".into(),
            lane: "cpu".into(),
            device: "auto".into(),
            budget_s: Some(5400.0),
            by_unix_s: None,
            expected_s: None,
            deadline_unix_s: None,
            process: None,
            crashes: 0,
            is_cancelled: false,
            added_unix_s: 1.8e9,
            began_unix_s: Some(1.8e9),
            ended_unix_s: Some(1.8e9),
            reason: None,
        }
    }

    #[test]
    fn the_table_fits_80_columns_and_old_ends_are_left_out() {
        let failed = Entry { reason: Some("no such model: ".repeat(9)), ..entry(3, State::Failed) };
        let mut entries = vec![entry(1, State::Running), entry(2, State::Waiting), failed];
        let text = table(&entries, 80);
        assert!(text.lines().all(|line| console::measure_text_width(line) <= 80), "{text}");
        assert!(text.contains("1:30 h") && text.contains("waiting") && text.contains('…'), "{text}");
        entries.extend((4..30).map(|id| entry(id, State::Done)));
        assert_eq!(shown(entries.clone(), false).len(), 2 + ENDED_SHOWN);
        assert_eq!(shown(entries, true).len(), 29);
    }

    #[test]
    fn an_entry_that_runs_shows_its_share() {
        let running = Entry { deadline_unix_s: Some(4e9), is_cancelled: true, ..entry(1, State::Running) };
        assert!(row(&running)[4].starts_with("until 2096-"));
        assert_eq!(row(&running)[1], "ending");
    }
}
