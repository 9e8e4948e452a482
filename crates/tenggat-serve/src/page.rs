//! The files of the page, inside the program.

use axum::body::Body;
use axum::http::{Response, StatusCode};

use crate::answer;

#[derive(rust_embed::Embed)]
#[folder = "page"]
struct Page;

/// A file of the page.
pub(crate) fn file(name: &str) -> Response<Body> {
    let Some(file) = Page::get(name) else { return answer::missing("page") };
    let kind = match name.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "text/plain; charset=utf-8",
    };
    answer::of(StatusCode::OK, kind, file.data.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_small_and_has_no_script_or_style_in_it() {
        let bytes: usize = Page::iter().filter_map(|name| Page::get(&name)).map(|file| file.data.len()).sum();
        assert!(bytes < 300_000, "{bytes}");
        let html = Page::get("index.html").unwrap();
        let html = std::str::from_utf8(&html.data).unwrap();
        for forbidden in ["<script>", "<style", " style=", " onclick=", "http://", "https://"] {
            assert!(!html.contains(forbidden), "{forbidden}");
        }
        assert!(Page::get("vendor/uplot.LICENSE").is_some());
    }
}
