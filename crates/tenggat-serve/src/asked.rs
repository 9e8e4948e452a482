//! What is asked of runs by `POST`: small files in their folders, as `tenggat extend` leaves them.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Response, StatusCode};
use serde::Deserialize;
use tenggat_runs::{Request, State as RunState, ask as leave, ask_move};

use crate::answer::{self, aside};
use crate::site::Site;

#[derive(Deserialize)]
struct Ask {
    id: String,
    what: String,
}

#[derive(Deserialize)]
struct Extend {
    id: String,
    /// `+30m` or `-10m`.
    by: String,
}

/// Asks a run to save, to generate samples or to stop.
pub(crate) async fn ask(State(site): State<Arc<Site>>, body: Bytes) -> Response<Body> {
    aside(move || {
        let Ok(asked) = serde_json::from_slice::<Ask>(&body) else { return not_understood() };
        let known = Request::ALL.into_iter().find(|request| request.name() == asked.what);
        let Some(request) = known else { return not_understood() };
        of_running(&site, &asked.id, |folder| leave(folder, request))
    })
    .await
}

/// Asks a run to move its deadline.
pub(crate) async fn extend(State(site): State<Arc<Site>>, body: Bytes) -> Response<Body> {
    aside(move || {
        let Ok(asked) = serde_json::from_slice::<Extend>(&body) else { return not_understood() };
        let by = asked.by.trim();
        if !is_move(by) {
            return answer::error(StatusCode::BAD_REQUEST, "write +30m for later or -10m for earlier");
        }
        of_running(&site, &asked.id, |folder| ask_move(folder, by))
    })
    .await
}

/// A sign and a duration of one unit: what both loops read.
fn is_move(by: &str) -> bool {
    let Some(duration) = by.strip_prefix(['+', '-']) else { return false };
    let Some(number) = duration.strip_suffix(['s', 'm', 'h']) else { return false };
    number.parse::<u32>().is_ok_and(|n| n > 0) && number.bytes().all(|b| b.is_ascii_digit())
}

fn of_running(
    site: &Site,
    id: &str,
    leave: impl FnOnce(&std::path::Path) -> std::io::Result<()>,
) -> Response<Body> {
    let run = site.runs.with(id, |run| (run.folder().to_path_buf(), run.overview().state));
    match run {
        None => answer::missing("run"),
        Some((_, state)) if state != RunState::Running => {
            answer::error(StatusCode::CONFLICT, "the run is not running")
        }
        Some((folder, _)) => match leave(&folder) {
            Ok(()) => answer::json(&serde_json::json!({ "ok": true })),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                answer::error(StatusCode::CONFLICT, "an earlier request is still pending")
            }
            Err(e) => answer::error(StatusCode::INTERNAL_SERVER_ERROR, &format!("it cannot be asked: {e}")),
        },
    }
}

fn not_understood() -> Response<Body> {
    answer::error(StatusCode::BAD_REQUEST, "the request was not understood")
}

#[cfg(test)]
mod tests {
    use super::is_move;

    #[test]
    fn moves_are_signed_durations() {
        assert!(["+30m", "-10s", "+2h"].into_iter().all(is_move));
        let wrong = ["30m", "+", "+m", "+-3m", "+0m", "+1e3m", "+3m\n+4m", "2026-12-01T18:00:00Z", "++1m"];
        assert!(!wrong.into_iter().any(is_move));
    }
}
