//! The control channel that ai-toolkit offers its web page: one row of a SQLite table.
//!
//! The trainer writes what it does into the row and reads wishes from it after every step. It needs no web
//! page: any file with these columns will do. Source: ai-toolkit
//! `extensions_built_in/sd_trainer/DiffusionTrainer.py` and `ui/prisma/schema.prisma`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension};

use crate::error::{Error, Result};

/// The row's key; the trainer learns it from the environment.
pub const JOB_ID: &str = "tenggat";
/// Name of that variable.
pub const JOB_ID_VARIABLE: &str = "AITK_JOB_ID";

/// The columns that versions of the trainer touch, or may touch.
const TABLE: &str = "CREATE TABLE Job (
    id TEXT PRIMARY KEY, name TEXT DEFAULT '', gpu_ids TEXT DEFAULT '', job_config TEXT DEFAULT '',
    created_at DATETIME DEFAULT CURRENT_TIMESTAMP, updated_at DATETIME DEFAULT CURRENT_TIMESTAMP,
    status TEXT DEFAULT 'queued', stop BOOLEAN DEFAULT 0, return_to_queue BOOLEAN DEFAULT 0, step INTEGER DEFAULT 0,
    total_steps INTEGER DEFAULT 0, info TEXT DEFAULT '', speed_string TEXT DEFAULT '', queue_position INTEGER DEFAULT 0,
    pid INTEGER, job_type TEXT DEFAULT 'train', job_ref TEXT, save_now BOOLEAN DEFAULT 0, sample_now BOOLEAN DEFAULT 0)";

/// What the row says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Row {
    /// `running`, `stopped`, `error` or `completed`.
    pub status: String,
    /// What it is doing, in words.
    pub info: String,
    /// Updates done.
    pub step: u64,
    /// Whether a save was asked for that it has not begun.
    pub save_now: bool,
}

/// The drive's end of the channel.
#[derive(Debug)]
pub struct Channel {
    path: PathBuf,
    database: Connection,
}

impl Channel {
    /// A new database with one row, in place of any old one.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn create(path: &Path) -> Result<Channel> {
        for suffix in ["", "-journal", "-wal", "-shm"] {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            // Most often there is none.
            let _ = std::fs::remove_file(PathBuf::from(name));
        }
        let wrong = |source| Error::Channel { path: path.into(), source };
        let database = Connection::open(path).map_err(wrong)?;
        database.busy_timeout(Duration::from_millis(500)).map_err(wrong)?;
        // Nothing in it outlives the session: it need not reach the disk.
        database.pragma_update(None, "synchronous", "OFF").map_err(wrong)?;
        database.execute(TABLE, []).map_err(wrong)?;
        database.execute("INSERT INTO Job (id, name) VALUES (?1, ?1)", [JOB_ID]).map_err(wrong)?;
        Ok(Channel { path: path.into(), database })
    }

    /// What the row says now; `None` if it cannot be read at the moment.
    pub fn read(&self) -> Option<Row> {
        let sql = "SELECT status, info, step, save_now FROM Job WHERE id = ?1";
        let row = self.database.query_row(sql, [JOB_ID], |row| {
            Ok(Row {
                status: row.get::<_, Option<String>>(0)?.unwrap_or_default(),
                info: row.get::<_, Option<String>>(1)?.unwrap_or_default(),
                // The trainer writes numbers as text; the column's type turns them back.
                step: row.get::<_, Option<i64>>(2)?.unwrap_or(0).max(0) as u64,
                save_now: row.get::<_, Option<i64>>(3)?.unwrap_or(0) == 1,
            })
        });
        row.optional().ok().flatten()
    }

    /// Asks for a save after the present step.
    ///
    /// # Errors
    /// The row cannot be written.
    pub fn ask_save(&self) -> Result<()> {
        self.set("save_now")
    }

    /// Asks the trainer to end between two steps.
    ///
    /// # Errors
    /// The row cannot be written.
    pub fn ask_stop(&self) -> Result<()> {
        self.set("stop")
    }

    fn set(&self, column: &str) -> Result<()> {
        let sql = format!("UPDATE Job SET {column} = 1 WHERE id = ?1");
        let done = self.database.execute(&sql, [JOB_ID]);
        done.map(drop).map_err(|source| Error::Channel { path: self.path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_and_news_cross_the_channel() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.db");
        let channel = Channel::create(&path).unwrap();
        assert_eq!(channel.read().unwrap(), Row { status: "queued".into(), ..Row::default() });
        // The trainer's end, as it writes: numbers as text.
        let trainer = Connection::open(&path).unwrap();
        let news = "UPDATE Job SET status = 'running', info = 'Training', step = '31' WHERE id = 'tenggat'";
        trainer.execute(news, []).unwrap();
        channel.ask_save().unwrap();
        let row = Row { status: "running".into(), info: "Training".into(), step: 31, save_now: true };
        assert_eq!(channel.read().unwrap(), row);
        trainer.execute("UPDATE Job SET save_now = '0'", []).unwrap();
        assert!(!channel.read().unwrap().save_now);
        channel.ask_stop().unwrap();
        assert_eq!(trainer.query_row("SELECT stop FROM Job", [], |row| row.get::<_, i64>(0)).unwrap(), 1);
        // A new session begins with an empty row.
        assert_eq!(Channel::create(&path).unwrap().read().unwrap().step, 0);
    }
}
