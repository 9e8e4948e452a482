//! The queue on the page: reading it, changing its order, and new jobs.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Response, StatusCode};
use serde::{Deserialize, Serialize};
use tenggat_queue::{Entry, Error, Folder, Queue};

use crate::answer::{self, aside};
use crate::desk::NewJob;
use crate::site::Site;

/// Entries that have ended and are shown.
const ENDED_SHOWN: usize = 10;

/// The queue as the page shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Listed {
    /// Those that run, those that wait in their order, and the newest of those that have ended.
    entries: Vec<Entry>,
    /// Whether jobs can be put into it from here.
    takes_jobs: bool,
    /// Whether a process runs it.
    is_run: bool,
    /// Why it cannot be read, if it cannot.
    error: Option<String>,
}

#[derive(Deserialize)]
struct Cancel {
    entry: i64,
}

#[derive(Deserialize)]
struct MoveTo {
    entry: i64,
    /// `up`, `down`, `first`, `last`, or a place.
    to: String,
}

#[derive(Deserialize)]
struct Check {
    job: String,
}

/// The queue as it is now.
pub(crate) fn listed(site: &Site) -> Listed {
    let read = || match &site.queue {
        Some(folder) => Queue::open_existing(folder)?.map_or_else(|| Ok(Vec::new()), |queue| queue.list()),
        None => Ok(Vec::new()),
    };
    let takes_jobs = site.desk.is_some();
    let is_run = site.queue.as_ref().is_some_and(|folder| Folder::new(folder).has_runner());
    match read() {
        Ok(mut entries) => {
            let mut ended = 0;
            entries.retain(|entry| {
                ended += usize::from(entry.state.has_ended());
                ended <= ENDED_SHOWN
            });
            Listed { entries, takes_jobs, is_run, error: None }
        }
        Err(e) => Listed { entries: Vec::new(), takes_jobs, is_run, error: Some(told(&e)) },
    }
}

pub(crate) async fn queue(State(site): State<Arc<Site>>) -> Response<Body> {
    aside(move || answer::json(&listed(&site))).await
}

pub(crate) async fn cancel(State(site): State<Arc<Site>>, body: Bytes) -> Response<Body> {
    aside(move || {
        let Ok(asked) = serde_json::from_slice::<Cancel>(&body) else { return not_understood() };
        let now_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        changed(&site, |queue| queue.cancel(asked.entry, now_unix_s).map(drop))
    })
    .await
}

pub(crate) async fn move_entry(State(site): State<Arc<Site>>, body: Bytes) -> Response<Body> {
    aside(move || {
        let Ok(asked) = serde_json::from_slice::<MoveTo>(&body) else { return not_understood() };
        let Ok(to) = asked.to.parse() else { return not_understood() };
        changed(&site, |queue| queue.move_entry(asked.entry, to).map(drop))
    })
    .await
}

/// What there is to say about a job while it is typed.
pub(crate) async fn check(State(site): State<Arc<Site>>, body: Bytes) -> Response<Body> {
    aside(move || {
        let Ok(asked) = serde_json::from_slice::<Check>(&body) else { return not_understood() };
        let Some(desk) = &site.desk else { return answer::missing("desk") };
        // One at a time: each takes a thread, and whoever types asks again.
        let Ok(_one) = site.checking.try_lock() else {
            return answer::error(StatusCode::TOO_MANY_REQUESTS, "another check is under way");
        };
        answer::json(&desk.check(&asked.job))
    })
    .await
}

pub(crate) async fn add(State(site): State<Arc<Site>>, body: Bytes) -> Response<Body> {
    aside(move || {
        let Ok(new) = serde_json::from_slice::<NewJob>(&body) else { return not_understood() };
        let Some(desk) = &site.desk else { return answer::missing("desk") };
        match desk.add(&new) {
            Ok(entry) => answer::json(&serde_json::json!({ "entry": entry })),
            Err(e) => answer::error(StatusCode::BAD_REQUEST, &e),
        }
    })
    .await
}

fn changed(site: &Site, change: impl FnOnce(&mut Queue) -> tenggat_queue::Result<()>) -> Response<Body> {
    let queue = site.queue.as_ref().map(|folder| Queue::open_existing(folder));
    let done = match queue {
        None | Some(Ok(None)) => return answer::missing("queue"),
        Some(Ok(Some(mut queue))) => change(&mut queue),
        Some(Err(e)) => Err(e),
    };
    match done {
        Ok(()) => answer::json(&serde_json::json!({ "ok": true })),
        Err(e @ Error::Unknown(_)) => answer::error(StatusCode::NOT_FOUND, &told(&e)),
        Err(e @ (Error::NotWaiting(_) | Error::Ended(_))) => answer::error(StatusCode::CONFLICT, &told(&e)),
        Err(e) => answer::error(StatusCode::INTERNAL_SERVER_ERROR, &told(&e)),
    }
}

/// An error and what caused it.
fn told(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

fn not_understood() -> Response<Body> {
    answer::error(StatusCode::BAD_REQUEST, "the request was not understood")
}
