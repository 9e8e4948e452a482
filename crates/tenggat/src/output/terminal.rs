//! What the terminal can show.

use std::io::IsTerminal;

use super::sink::Stream;

/// Whether progress bars are seen; otherwise lines say how far the work is.
#[expect(clippy::disallowed_methods, reason = "it writes nothing")]
pub fn shows_bars() -> bool {
    !super::quiet::is_quiet()
        && std::io::stderr().is_terminal()
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Whether a stream is a terminal, and colours are wanted.
#[expect(clippy::disallowed_methods, reason = "it writes nothing")]
pub(super) fn has_colours(stream: Stream) -> bool {
    let is_terminal = match stream {
        Stream::Out => std::io::stdout().is_terminal(),
        Stream::Err => std::io::stderr().is_terminal(),
    };
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    is_terminal && !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}
