//! Names of repositories on the Hugging Face hub.

/// Whether a text has the form `account/name` or `account/name@revision`. The hub's client reads names by the
/// same rule; a test in `tenggat-train`, which knows both, holds them together.
pub fn is_repository(text: &str) -> bool {
    let (id, revision) = text.split_once('@').unwrap_or((text, "main"));
    let part = |s: &str| {
        s.starts_with(|c: char| c.is_ascii_alphanumeric())
            && s.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && !s.contains("..")
    };
    id.split_once('/').is_some_and(|(account, name)| part(account) && part(name))
        && revision.split('/').all(part)
}
