//! Moving an entry among those that wait.

use std::str::FromStr;

use rusqlite::{Row, params};

use crate::entry::State;
use crate::error::{Error, Result};
use crate::queue::{Queue, select};

/// Where to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// One place earlier.
    Up,
    /// One place later.
    Down,
    /// This place among those that wait: 1 is next.
    To(usize),
    /// Behind all others.
    Last,
}

impl FromStr for Move {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "up" => Ok(Move::Up),
            "down" => Ok(Move::Down),
            "first" => Ok(Move::To(1)),
            "last" => Ok(Move::Last),
            _ => match text.parse() {
                Ok(place) if place >= 1 => Ok(Move::To(place)),
                _ => Err("expected up, down, first, last, or a place such as 2".into()),
            },
        }
    }
}

impl Queue {
    /// Moves a waiting entry among those of its lane; returns its place, 1 for the next.
    ///
    /// # Errors
    /// There is no such entry, it does not wait, or the database cannot be written.
    pub fn move_entry(&mut self, id: i64, to: Move) -> Result<usize> {
        self.change(|database| {
            let Some(entry) = select(database, "WHERE id = ?1", &[&id])?.pop() else {
                return Ok(Err(Error::Unknown(id)));
            };
            if entry.state != State::Waiting {
                return Ok(Err(Error::NotWaiting(id)));
            }
            let sql = "SELECT id, place FROM entry WHERE lane = ?1 AND state = 'waiting' ORDER BY place";
            let mut statement = database.prepare(sql)?;
            let row = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?));
            let rows = statement.query_map([&entry.lane], row)?.collect::<rusqlite::Result<Vec<_>>>()?;
            let (ids, places): (Vec<i64>, Vec<i64>) = rows.into_iter().unzip();
            let ordered = moved(&ids, id, to);
            // Those of other lanes keep their places.
            for (id, place) in ordered.iter().zip(places) {
                database.execute("UPDATE entry SET place = ?2 WHERE id = ?1", params![id, place])?;
            }
            Ok(Ok(1 + ordered.iter().position(|other| *other == id).unwrap_or(0)))
        })
    }
}

/// The numbers in their new order.
fn moved(ids: &[i64], id: i64, to: Move) -> Vec<i64> {
    let mut ordered: Vec<i64> = ids.iter().copied().filter(|other| *other != id).collect();
    let from = ids.iter().position(|other| *other == id).unwrap_or(0);
    let at = match to {
        Move::Up => from.saturating_sub(1),
        Move::Down => from + 1,
        Move::To(place) => place.saturating_sub(1),
        Move::Last => ordered.len(),
    };
    ordered.insert(at.min(ordered.len()), id);
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::NewEntry;

    #[test]
    fn moves_stay_within_the_list() {
        let order = |id, to: &str| moved(&[1, 2, 3, 4], id, to.parse().unwrap());
        assert_eq!(order(3, "up"), [1, 3, 2, 4]);
        assert_eq!(order(1, "up"), [1, 2, 3, 4]);
        assert_eq!(order(3, "down"), [1, 2, 4, 3]);
        assert_eq!(order(4, "down"), [1, 2, 3, 4]);
        assert_eq!(order(4, "first"), [4, 1, 2, 3]);
        assert_eq!(order(2, "3"), [1, 3, 2, 4]);
        assert_eq!(order(2, "99"), [1, 3, 4, 2]);
        assert_eq!(order(1, "last"), [2, 3, 4, 1]);
        assert!(["0", "-1", "", "middle"].iter().all(|text| text.parse::<Move>().is_err()));
    }

    #[test]
    fn a_moved_entry_is_claimed_in_its_turn_and_other_lanes_stay() {
        let folder = tempfile::tempdir().unwrap();
        let mut queue = Queue::open(folder.path()).unwrap();
        for lane in ["a", "b", "a", "b", "a"] {
            queue.add(&NewEntry { lane: lane.into(), ..NewEntry::default() }, 0.0).unwrap();
        }
        assert_eq!(queue.move_entry(5, Move::To(1)).unwrap(), 1);
        assert_eq!(queue.move_entry(1, Move::Last).unwrap(), 3);
        let waiting: Vec<i64> = queue.list().unwrap().iter().map(|entry| entry.id).collect();
        assert_eq!(waiting, [5, 2, 3, 4, 1]);
        assert_eq!(queue.claim("a", 0.0).unwrap().unwrap().id, 5);
        assert!(matches!(queue.move_entry(5, Move::Last), Err(Error::NotWaiting(5))));
        assert!(matches!(queue.move_entry(9, Move::Last), Err(Error::Unknown(9))));
        assert_eq!(queue.claim("b", 0.0).unwrap().unwrap().id, 2);
    }
}
