//! Answers, all with the headers that keep a browser from doing more than it should.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use serde::Serialize;

/// Nothing but what this server gives, and no script or style written into the page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// An answer of some type.
pub(crate) fn of(status: StatusCode, kind: &'static str, body: impl Into<Body>) -> Response<Body> {
    let mut answer = Response::new(body.into());
    *answer.status_mut() = status;
    let mut set = |name, value| answer.headers_mut().insert(name, HeaderValue::from_static(value));
    set(header::CONTENT_TYPE, kind);
    set(header::CONTENT_SECURITY_POLICY, POLICY);
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::REFERRER_POLICY, "no-referrer");
    set(header::CACHE_CONTROL, "no-store");
    answer
}

/// A value as JSON.
pub(crate) fn json(value: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(bytes) => of(StatusCode::OK, "application/json", bytes),
        Err(e) => error(StatusCode::INTERNAL_SERVER_ERROR, &e.to_string()),
    }
}

/// What is wrong, as JSON.
pub(crate) fn error(status: StatusCode, text: &str) -> Response<Body> {
    of(status, "application/json", serde_json::json!({ "error": text }).to_string())
}

/// There is no such thing.
pub(crate) fn missing(what: &str) -> Response<Body> {
    error(StatusCode::NOT_FOUND, &format!("there is no such {what}"))
}

/// Does work that reads files where it holds up nobody.
pub(crate) async fn aside(work: impl FnOnce() -> Response<Body> + Send + 'static) -> Response<Body> {
    let failed = || error(StatusCode::INTERNAL_SERVER_ERROR, "this cannot be answered");
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| failed())
}
