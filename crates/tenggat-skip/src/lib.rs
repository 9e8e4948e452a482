//! How tests say that they cannot run here.
//!
//! The test harness hides what a passing test prints, so a skipped test would look like one that passed.
//! These functions write straight to standard error, which the harness leaves alone.

use std::fmt::Display;
use std::io::Write as _;

/// Set where there is a C++ compiler: tests that need one fail then, instead of being skipped.
const CXX: &str = "TENGGAT_REQUIRE_CXX";

/// Says that the present test is skipped, and why.
#[expect(clippy::disallowed_methods, reason = "what the harness does not hide")]
pub fn skipped(reason: impl Display) {
    let thread = std::thread::current();
    let line = format!("skipped: {}; {reason}\n", thread.name().unwrap_or("a test"));
    // Nobody reads it where there is no standard error.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// The same, unless an environment variable says that it must not happen.
///
/// # Panics
/// The variable is set.
pub fn skipped_unless_required(variable: &str, reason: impl Display) {
    assert!(std::env::var_os(variable).is_none(), "{reason}, and {variable} is set");
    skipped(reason);
}

/// The same of a test that needs a C++ compiler.
///
/// # Panics
/// `TENGGAT_REQUIRE_CXX` is set.
pub fn skipped_without_cxx(reason: impl Display) {
    skipped_unless_required(CXX, reason);
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn says_so() {
        skipped("an example, nothing was left out");
    }

    /// A passing test is heard, by name.
    #[test]
    fn the_harness_lets_it_through() {
        let mut tests = Command::new(std::env::current_exe().unwrap());
        let output = tests.args(["--exact", "tests::says_so"]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success());
        assert_eq!(said, "skipped: tests::says_so; an example, nothing was left out\n");
    }

    #[test]
    #[should_panic(expected = "no compiler, and PATH is set")]
    fn what_is_required_is_not_skipped() {
        skipped_unless_required("PATH", "no compiler");
    }
}
