//! The database: adding and reading.

use std::path::PathBuf;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};

use crate::entry::{Entry, NewEntry, Program, State};
use crate::error::{Error, Result};
use crate::folder::Folder;

/// Version of the tables.
const VERSION: i64 = 1;
/// How long a change waits for another process.
const PATIENCE: Duration = Duration::from_secs(10);

const TABLES: &str = "
CREATE TABLE entry (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    place INTEGER NOT NULL,
    state TEXT NOT NULL,
    job TEXT NOT NULL, program TEXT NOT NULL, name TEXT, working_folder TEXT NOT NULL, run TEXT NOT NULL,
    lane TEXT NOT NULL, device TEXT NOT NULL,
    budget_s REAL, by_unix_s REAL, expected_s REAL, deadline_unix_s REAL,
    process INTEGER, crashes INTEGER NOT NULL DEFAULT 0, is_cancelled INTEGER NOT NULL DEFAULT 0,
    added_unix_s REAL NOT NULL, began_unix_s REAL, ended_unix_s REAL, reason TEXT
);
CREATE INDEX entry_turn ON entry (state, lane, place);
PRAGMA user_version = 1;";

/// All columns of an entry, as [`entry`] reads them.
const COLUMNS: &str = "id, state, job, program, name, working_folder, run, lane, device, budget_s, by_unix_s,
    expected_s, deadline_unix_s, process, crashes, is_cancelled, added_unix_s, began_unix_s, ended_unix_s, reason";

/// Runs that wait for their turn.
#[derive(Debug)]
pub struct Queue {
    database: Connection,
    path: PathBuf,
}

impl Queue {
    /// The queue in a folder, which is created if there is none.
    ///
    /// # Errors
    /// The folder or the database cannot be read or written, or is of a newer version.
    pub fn open(folder: &std::path::Path) -> Result<Queue> {
        std::fs::create_dir_all(folder).map_err(|source| Error::Folder { path: folder.into(), source })?;
        let path = Folder::new(folder).database();
        let wrong = |source| Error::Database { path: path.clone(), source };
        let mut database = Connection::open(&path).map_err(wrong)?;
        database.busy_timeout(PATIENCE).map_err(wrong)?;
        // Each change reaches the disk before it is reported: a power cut loses nothing.
        database.pragma_update(None, "synchronous", "FULL").map_err(wrong)?;
        let version = |database: &Connection| {
            database.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0)).map_err(wrong)
        };
        if version(&database)? == 0 {
            let change = database.transaction_with_behavior(TransactionBehavior::Immediate).map_err(wrong)?;
            // Another process may have been first.
            if version(&change)? == 0 {
                change.execute_batch(TABLES).map_err(wrong)?;
            }
            change.commit().map_err(wrong)?;
        }
        if version(&database)? > VERSION {
            return Err(Error::Newer { path });
        }
        Ok(Queue { database, path })
    }

    /// The queue in a folder; `None` if there is none yet.
    ///
    /// # Errors
    /// As [`Queue::open`].
    pub fn open_existing(folder: &std::path::Path) -> Result<Option<Queue>> {
        if Folder::new(folder).database().is_file() { Queue::open(folder).map(Some) } else { Ok(None) }
    }

    /// Puts an entry at the end of its lane; returns its number.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn add(&mut self, new: &NewEntry, now_unix_s: f64) -> Result<i64> {
        self.change(|database| {
            database.execute(
                "INSERT INTO entry (place, state, job, program, name, working_folder, run, lane, device,
                     budget_s, by_unix_s, expected_s, added_unix_s)
                 VALUES ((SELECT coalesce(max(place), 0) + 1 FROM entry), 'waiting',
                     ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
                params![
                    new.job,
                    new.program.name(),
                    new.name,
                    new.working_folder,
                    new.run,
                    new.lane,
                    new.device,
                    new.budget_s,
                    new.by_unix_s,
                    new.expected_s,
                    now_unix_s
                ],
            )?;
            Ok(Ok(database.last_insert_rowid()))
        })
    }

    /// All entries: those that run, those that wait in their order, then those that have ended, newest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn list(&self) -> Result<Vec<Entry>> {
        self.select(
            "WHERE 1 ORDER BY CASE state WHEN 'running' THEN 0 WHEN 'waiting' THEN 1 ELSE 2 END,
             CASE WHEN state IN ('running', 'waiting') THEN place ELSE -coalesce(ended_unix_s, 0) END",
            &[],
        )
    }

    /// One entry.
    ///
    /// # Errors
    /// There is none of this number, or the database cannot be read.
    pub fn entry(&self, id: i64) -> Result<Entry> {
        let sql = format!("SELECT {COLUMNS} FROM entry WHERE id = ?1");
        let found = self.database.query_row(&sql, [id], entry).optional();
        found.map_err(|source| self.wrong(source))?.ok_or(Error::Unknown(id))
    }

    /// The lanes in which something waits or runs.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn lanes(&self) -> Result<Vec<String>> {
        let sql = "SELECT DISTINCT lane FROM entry WHERE state IN ('waiting', 'running') ORDER BY lane";
        let read = || -> rusqlite::Result<Vec<String>> {
            let mut statement = self.database.prepare(sql)?;
            statement.query_map([], |row| row.get(0))?.collect()
        };
        read().map_err(|source| self.wrong(source))
    }

    /// Does several things in one transaction, none of them if any fails.
    pub(crate) fn change<T>(
        &mut self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<Result<T>>,
    ) -> Result<T> {
        let path = self.path.clone();
        let wrong = |source| Error::Database { path: path.clone(), source };
        // Locked at once: two that read before they write would hold each other up.
        let change = self.database.transaction_with_behavior(TransactionBehavior::Immediate);
        let change = change.map_err(wrong)?;
        let done = work(&change).map_err(wrong)??;
        change.commit().map_err(wrong)?;
        Ok(done)
    }

    pub(crate) fn select(&self, rest: &str, parameters: &[&dyn rusqlite::ToSql]) -> Result<Vec<Entry>> {
        select(&self.database, rest, parameters).map_err(|source| self.wrong(source))
    }

    fn wrong(&self, source: rusqlite::Error) -> Error {
        Error::Database { path: self.path.clone(), source }
    }
}

/// Entries chosen by the rest of a query.
pub(crate) fn select(
    database: &Connection,
    rest: &str,
    parameters: &[&dyn rusqlite::ToSql],
) -> rusqlite::Result<Vec<Entry>> {
    let mut statement = database.prepare(&format!("SELECT {COLUMNS} FROM entry {rest}"))?;
    statement.query_map(parameters, entry)?.collect()
}

fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry {
        id: row.get("id")?,
        state: State::from_name(&row.get::<_, String>("state")?),
        job: row.get("job")?,
        program: Program::from_name(&row.get::<_, String>("program")?),
        name: row.get("name")?,
        working_folder: row.get("working_folder")?,
        run: row.get("run")?,
        lane: row.get("lane")?,
        device: row.get("device")?,
        budget_s: row.get("budget_s")?,
        by_unix_s: row.get("by_unix_s")?,
        expected_s: row.get("expected_s")?,
        deadline_unix_s: row.get("deadline_unix_s")?,
        process: row.get("process")?,
        crashes: row.get("crashes")?,
        is_cancelled: row.get("is_cancelled")?,
        added_unix_s: row.get("added_unix_s")?,
        began_unix_s: row.get("began_unix_s")?,
        ended_unix_s: row.get("ended_unix_s")?,
        reason: row.get("reason")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(job: &str) -> NewEntry {
        NewEntry { job: job.into(), lane: "cpu".into(), name: Some("fox".into()), ..NewEntry::default() }
    }

    #[test]
    fn entries_are_there_after_reopening() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("not/yet");
        assert!(Queue::open_existing(&deep).unwrap().is_none());
        let id = Queue::open(&deep).unwrap().add(&new("/a.yaml"), 5.0).unwrap();
        let queue = Queue::open_existing(&deep).unwrap().unwrap();
        let entry = queue.entry(id).unwrap();
        assert_eq!((entry.job.as_str(), entry.state, entry.added_unix_s), ("/a.yaml", State::Waiting, 5.0));
        assert_eq!((entry.name.as_deref(), queue.lanes().unwrap()), (Some("fox"), vec!["cpu".to_owned()]));
        assert!(matches!(queue.entry(id + 1), Err(Error::Unknown(_))));
    }

    #[test]
    fn a_queue_of_a_newer_version_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let queue = Queue::open(folder.path()).unwrap();
        queue.database.pragma_update(None, "user_version", VERSION + 1).unwrap();
        assert!(matches!(Queue::open(folder.path()), Err(Error::Newer { .. })));
    }

    #[test]
    fn what_is_no_database_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("queue.db"),
            "no database, but longer than the header of one".repeat(9),
        )
        .unwrap();
        let error = Queue::open(folder.path()).unwrap_err();
        assert!(error.to_string().contains("queue.db"), "{error}");
    }

    #[test]
    fn many_at_once_lose_nothing() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let path = folder.path();
                scope.spawn(move || {
                    let mut queue = Queue::open(path).unwrap();
                    for n in 0..5 {
                        queue.add(&new(&format!("/{thread}/{n}")), 0.0).unwrap();
                    }
                });
            }
        });
        let queue = Queue::open(folder.path()).unwrap();
        assert_eq!(queue.list().unwrap().len(), 20);
    }
}
