//! Whose turn it is: claiming, beginning, ending, cancelling.

use rusqlite::{Connection, params};

use crate::entry::{Entry, State};
use crate::error::{Error, Result};
use crate::queue::{Queue, select};
use crate::share::{Claim, share};

/// Reason of an entry whose time was over before its turn.
const TOO_LATE: &str = "its deadline passed before its turn came";

impl Queue {
    /// Makes the first waiting entry of a lane a running one and returns it, with the deadline that leaves
    /// the entries behind it time for theirs. Entries whose own deadline has passed fail.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn claim(&mut self, lane: &str, now_unix_s: f64) -> Result<Option<Entry>> {
        self.change(|database| {
            let waiting = "WHERE lane = ?1 AND state = 'waiting' ORDER BY place";
            for entry in select(database, waiting, &[&lane])? {
                if entry.by_unix_s.is_some_and(|by| by <= now_unix_s) {
                    end(database, entry.id, State::Failed, Some(TOO_LATE), now_unix_s)?;
                    continue;
                }
                let deadline = deadline(database, &entry, now_unix_s)?;
                database.execute(
                    "UPDATE entry SET state = 'running', began_unix_s = ?2, deadline_unix_s = ?3,
                         process = NULL, reason = NULL WHERE id = ?1",
                    params![entry.id, now_unix_s, deadline],
                )?;
                return Ok(Ok(select(database, "WHERE id = ?1", &[&entry.id])?.pop()));
            }
            Ok(Ok(None))
        })
    }

    /// The running entries of a lane: after a kill, those that nobody looks after.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn running(&self, lane: &str) -> Result<Vec<Entry>> {
        self.select("WHERE lane = ?1 AND state = 'running' ORDER BY place", &[&lane])
    }

    /// Gives a running entry another deadline where its own has passed while nobody ran the queue.
    ///
    /// # Errors
    /// There is no such entry, or the database cannot be written.
    pub fn renew(&mut self, id: i64, now_unix_s: f64) -> Result<Entry> {
        self.change(|database| {
            let Some(entry) = select(database, "WHERE id = ?1", &[&id])?.pop() else {
                return Ok(Err(Error::Unknown(id)));
            };
            if entry.deadline_unix_s.is_some_and(|deadline| deadline <= now_unix_s) {
                let deadline = deadline(database, &entry, now_unix_s)?;
                let sql = "UPDATE entry SET deadline_unix_s = ?2 WHERE id = ?1";
                database.execute(sql, params![id, deadline])?;
                return Ok(Ok(Entry { deadline_unix_s: deadline, ..entry }));
            }
            Ok(Ok(entry))
        })
    }

    /// Notes the process of a running entry.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn started(&mut self, id: i64, process: u32) -> Result<()> {
        self.update("UPDATE entry SET process = ?2 WHERE id = ?1", id, process)
    }

    /// Counts that the process of a running entry was killed; returns how often by now.
    ///
    /// # Errors
    /// There is no such entry, or the database cannot be written.
    pub fn crashed(&mut self, id: i64) -> Result<u32> {
        self.update("UPDATE entry SET crashes = crashes + ?2, process = NULL WHERE id = ?1", id, 1)?;
        self.entry(id).map(|entry| entry.crashes)
    }

    /// Puts a running entry back to where it waited.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn put_back(&mut self, id: i64) -> Result<()> {
        let sql = "UPDATE entry SET state = ?2, process = NULL WHERE id = ?1 AND state = 'running'";
        self.update(sql, id, "waiting")
    }

    /// Ends an entry.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn end(&mut self, id: i64, state: State, reason: Option<&str>, now_unix_s: f64) -> Result<()> {
        self.change(|database| end(database, id, state, reason, now_unix_s).map(Ok))
    }

    /// Takes an entry out of the queue. One that runs is marked: whoever runs it has it save and end.
    ///
    /// # Errors
    /// There is no such entry, it has ended, or the database cannot be written.
    pub fn cancel(&mut self, id: i64, now_unix_s: f64) -> Result<State> {
        self.change(|database| {
            let entry = select(database, "WHERE id = ?1", &[&id])?.pop();
            Ok(match entry.map(|entry| entry.state) {
                None => Err(Error::Unknown(id)),
                Some(State::Running) => {
                    database.execute("UPDATE entry SET is_cancelled = 1 WHERE id = ?1", [id])?;
                    Ok(State::Running)
                }
                Some(State::Waiting) => {
                    end(database, id, State::Cancelled, None, now_unix_s)?;
                    Ok(State::Cancelled)
                }
                Some(_) => Err(Error::Ended(id)),
            })
        })
    }

    fn update(&mut self, sql: &str, id: i64, value: impl rusqlite::ToSql) -> Result<()> {
        self.change(|database| database.execute(sql, params![id, value]).map(|_| Ok(())))
    }
}

fn end(
    database: &Connection,
    id: i64,
    state: State,
    reason: Option<&str>,
    now_unix_s: f64,
) -> rusqlite::Result<()> {
    let sql = "UPDATE entry SET state = ?2, reason = ?3, ended_unix_s = ?4, process = NULL WHERE id = ?1";
    database.execute(sql, params![id, state.name(), reason, now_unix_s]).map(drop)
}

/// When an entry that begins now must have ended, for its own sake and that of the waiting ones behind it;
/// `None` where its budget alone limits it, or nothing does.
fn deadline(database: &Connection, entry: &Entry, now_unix_s: f64) -> rusqlite::Result<Option<f64>> {
    let behind = select(
        database,
        "WHERE lane = ?1 AND state = 'waiting' AND id != ?2 ORDER BY place",
        &[&entry.lane, &entry.id],
    )?;
    let claims: Vec<Claim> = std::iter::once(entry).chain(&behind).map(|e| claim(e, now_unix_s)).collect();
    let share_s = share(&claims).filter(|share| entry.budget_s.is_none_or(|budget| *share < budget));
    Ok(share_s.map(|share| now_unix_s + share))
}

fn claim(entry: &Entry, now_unix_s: f64) -> Claim {
    Claim {
        most_s: entry.budget_s,
        expected_s: entry.expected_s,
        left_s: entry.by_unix_s.map(|by| by - now_unix_s).filter(|left| *left > 0.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::NewEntry;

    fn queue(by: &[Option<f64>]) -> (tempfile::TempDir, Queue) {
        let folder = tempfile::tempdir().unwrap();
        let mut queue = Queue::open(folder.path()).unwrap();
        for &by_unix_s in by {
            let new = NewEntry { lane: "cpu".into(), by_unix_s, ..NewEntry::default() };
            queue.add(&new, 0.0).unwrap();
        }
        (folder, queue)
    }

    #[test]
    fn entries_take_turns_and_a_kill_leaves_them_running() {
        let (folder, mut queue) = queue(&[None, None]);
        let first = queue.claim("cpu", 1.0).unwrap().unwrap();
        assert_eq!((first.id, first.state, first.deadline_unix_s), (1, State::Running, None));
        queue.started(1, 77).unwrap();
        drop(queue);
        let mut queue = Queue::open(folder.path()).unwrap();
        let running = queue.running("cpu").unwrap();
        assert_eq!((running[0].id, running[0].process, running[0].began_unix_s), (1, Some(77), Some(1.0)));
        assert_eq!(queue.crashed(1).unwrap(), 1);
        queue.put_back(1).unwrap();
        assert_eq!(queue.claim("cpu", 2.0).unwrap().unwrap().id, 1);
        queue.end(1, State::Failed, Some("no"), 3.0).unwrap();
        assert_eq!(queue.claim("cpu", 4.0).unwrap().unwrap().id, 2);
        queue.end(2, State::Done, None, 5.0).unwrap();
        assert_eq!(queue.claim("cpu", 6.0).unwrap(), None);
        assert!(queue.claim("cuda:0", 6.0).unwrap().is_none() && queue.lanes().unwrap().is_empty());
        assert_eq!(queue.list().unwrap().iter().map(|entry| entry.id).collect::<Vec<_>>(), [2, 1]);
        // What has ended is not put back.
        queue.put_back(2).unwrap();
        assert_eq!(queue.entry(2).unwrap().state, State::Done);
    }

    #[test]
    fn one_deadline_is_shared_by_those_that_are_left() {
        let (_folder, mut queue) = queue(&[Some(300.0), Some(300.0), Some(300.0)]);
        assert_eq!(queue.claim("cpu", 0.0).unwrap().unwrap().deadline_unix_s, Some(100.0));
        queue.end(1, State::Done, None, 40.0).unwrap();
        assert_eq!(queue.claim("cpu", 40.0).unwrap().unwrap().deadline_unix_s, Some(170.0));
        // The machine was off until its share was over: what is left is shared anew.
        assert_eq!(queue.renew(2, 100.0).unwrap().deadline_unix_s, Some(170.0));
        assert_eq!(queue.renew(2, 200.0).unwrap().deadline_unix_s, Some(250.0));
        queue.end(2, State::Done, None, 300.0).unwrap();
        assert_eq!(queue.claim("cpu", 300.0).unwrap(), None);
        let late = queue.entry(3).unwrap();
        assert_eq!((late.state, late.reason.as_deref()), (State::Failed, Some(TOO_LATE)));
    }

    #[test]
    fn a_budget_that_fits_needs_no_deadline() {
        let (_folder, mut queue) = queue(&[]);
        let new = |budget_s, by| NewEntry {
            lane: "cpu".into(),
            budget_s: Some(budget_s),
            by_unix_s: Some(by),
            ..NewEntry::default()
        };
        for budget_s in [100.0, 300.0] {
            queue.add(&new(budget_s, 300.0), 0.0).unwrap();
        }
        assert_eq!(queue.claim("cpu", 0.0).unwrap().unwrap().deadline_unix_s, Some(75.0));
        queue.end(1, State::Done, None, 10.0).unwrap();
        queue.end(2, State::Done, None, 10.0).unwrap();
        queue.add(&new(50.0, 300.0), 10.0).unwrap();
        assert_eq!(queue.claim("cpu", 10.0).unwrap().unwrap().deadline_unix_s, None);
    }

    #[test]
    fn waiting_entries_are_cancelled_at_once_and_running_ones_are_marked() {
        let (_folder, mut queue) = queue(&[None, None]);
        queue.claim("cpu", 0.0).unwrap();
        assert_eq!(queue.cancel(1, 1.0).unwrap(), State::Running);
        assert!(queue.entry(1).unwrap().is_cancelled);
        assert_eq!(queue.cancel(2, 1.0).unwrap(), State::Cancelled);
        assert!(matches!(queue.cancel(2, 1.0), Err(Error::Ended(2))));
        assert!(matches!(queue.cancel(3, 1.0), Err(Error::Unknown(3))));
    }
}
