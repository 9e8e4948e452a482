//! What is asked by `GET`, and the way of every request.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::middleware::{self, Next};
use axum::routing::{get, post};
use serde::Serialize;
use tenggat_job::{Given, given};
use tenggat_runs::{Checkpoint, Curve, History, Sample, checkpoints, config, file_in, samples, thin};

use crate::answer::aside;
use crate::asked;
use crate::guard;
use crate::runs::Listed;
use crate::site::Site;
use crate::{answer, numbers, page, queue, stream};

/// Most points of a curve that a browser may ask for.
const MOST_POINTS: usize = 20_000;
/// Largest body of a request, bytes.
const MOST_BODY: usize = 1 << 20;

type Shared = State<Arc<Site>>;
type Asked = Query<HashMap<String, String>>;

/// All that is known of a run but its job.
#[derive(Serialize)]
struct Detail {
    #[serde(flatten)]
    listed: Listed,
    history: History,
    samples: Vec<Sample>,
    checkpoints: Vec<Checkpoint>,
}

/// The job of a run, which does not change.
#[derive(Serialize)]
struct Written {
    config: Option<String>,
    given: Vec<Given>,
}

pub(crate) fn router(site: Arc<Site>) -> Router {
    Router::new()
        .route("/", get(|| async { page::file("index.html") }))
        .route("/page/{*name}", get(|Path(name): Path<String>| async move { page::file(&name) }))
        .route("/api/runs", get(runs))
        .route("/api/run", get(run))
        .route("/api/job", get(job))
        .route("/api/curve", get(curve))
        .route("/api/events", get(events))
        .route("/api/log", get(log))
        .route("/file", get(file))
        .route("/metrics", get(prometheus))
        .route("/api/queue", get(queue::queue))
        .route("/api/ask", post(asked::ask))
        .route("/api/extend", post(asked::extend))
        .route("/api/queue/cancel", post(queue::cancel))
        .route("/api/queue/move", post(queue::move_entry))
        .route("/api/queue/add", post(queue::add))
        .route("/api/check", post(queue::check))
        .fallback(|| async { answer::missing("page") })
        .layer(axum::extract::DefaultBodyLimit::max(MOST_BODY))
        .layer(middleware::from_fn_with_state(Arc::clone(&site), guarded))
        .with_state(site)
}

/// Lets no request in that is not meant for us, and none that changes something without the token.
async fn guarded(State(site): Shared, request: Request, next: Next) -> Response<Body> {
    if !guard::is_for_us(request.headers(), site.address) {
        return answer::error(StatusCode::FORBIDDEN, "unknown Host name");
    }
    if request.method() != axum::http::Method::GET
        && let Some(why) = guard::refusal(request.headers(), &site.token)
    {
        return answer::error(StatusCode::FORBIDDEN, why);
    }
    next.run(request).await
}

fn text<'a>(asked: &'a HashMap<String, String>, name: &str) -> &'a str {
    asked.get(name).map_or("", String::as_str)
}

async fn runs(State(site): Shared) -> Response<Body> {
    aside(move || answer::json(&site.runs.list())).await
}

async fn run(State(site): Shared, Query(asked): Asked) -> Response<Body> {
    aside(move || {
        let id = text(&asked, "id");
        // What takes long is done while nobody waits for the runs.
        let known =
            site.runs.with(id, |run| (run.folder().to_path_buf(), run.overview(), run.history().clone()));
        let Some((folder, overview, history)) = known else { return answer::missing("run") };
        let listed = Listed { id: id.to_owned(), overview };
        let (samples, checkpoints) = (samples(&folder), checkpoints(&folder));
        answer::json(&Detail { listed, history, samples, checkpoints })
    })
    .await
}

async fn job(State(site): Shared, Query(asked): Asked) -> Response<Body> {
    aside(move || {
        let Some(folder) = site.runs.folder_of(text(&asked, "id")) else { return answer::missing("run") };
        let config = config(&folder);
        answer::json(&Written { given: config.as_deref().map(given).unwrap_or_default(), config })
    })
    .await
}

async fn curve(State(site): Shared, Query(asked): Asked) -> Response<Body> {
    aside(move || {
        let number = |name: &str| text(&asked, name).parse::<f64>().ok().filter(|x| x.is_finite());
        let step = |name: &str| number(name).map(|x| x.clamp(0.0, f64::from(u32::MAX)) as u32);
        let points = number("points").map_or(1500, |x| x.clamp(3.0, MOST_POINTS as f64) as usize);
        let (from, to) = (step("from").unwrap_or(0), step("to").unwrap_or(u32::MAX));
        let smoothing = number("smoothing");
        let curve: Option<Curve> =
            site.runs.with_series(text(&asked, "id"), |series| thin(series, from, to, points, smoothing));
        curve.map_or_else(|| answer::missing("run"), |curve| answer::json(&curve))
    })
    .await
}

async fn events(State(site): Shared) -> Response<Body> {
    answer::of(StatusCode::OK, "text/event-stream", stream::events(site))
}

/// The events of a run as it wrote them.
async fn log(State(site): Shared, Query(asked): Asked) -> Response<Body> {
    aside(move || {
        let folder = site.runs.folder_of(text(&asked, "id"));
        let path = folder.map(|folder| folder.join(tenggat_runs::EVENTS)).filter(|path| path.is_file());
        match path.and_then(|path| std::fs::File::open(path).ok()) {
            Some(file) => answer::of(StatusCode::OK, "application/jsonl", stream::file(file)),
            None => answer::missing("log"),
        }
    })
    .await
}

/// An image or a LoRA of a run.
async fn file(State(site): Shared, Query(asked): Asked) -> Response<Body> {
    aside(move || {
        let name = text(&asked, "name");
        let path = site.runs.folder_of(text(&asked, "id")).and_then(|folder| file_in(&folder, name));
        let Some((path, file)) = path.and_then(|path| Some((path.clone(), std::fs::File::open(path).ok()?)))
        else {
            return answer::missing("file");
        };
        let kind = match path.extension().and_then(|extension| extension.to_str()) {
            Some("png") => "image/png",
            Some("webp") => "image/webp",
            Some("safetensors") => "application/octet-stream",
            _ => "image/jpeg",
        };
        let length = file.metadata().map(|metadata| metadata.len()).ok();
        let mut given = answer::of(StatusCode::OK, kind, stream::file(file));
        let headers = given.headers_mut();
        if let Some(length) = length {
            headers.insert(header::CONTENT_LENGTH, length.into());
        }
        if kind == "application/octet-stream" {
            headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
        } else if name.starts_with("samples/") {
            // A sample never changes.
            let kept = HeaderValue::from_static("private, max-age=86400, immutable");
            headers.insert(header::CACHE_CONTROL, kept);
        }
        given
    })
    .await
}

async fn prometheus(State(site): Shared) -> Response<Body> {
    aside(move || {
        let text = numbers::text(&site.runs.list());
        answer::of(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text)
    })
    .await
}
