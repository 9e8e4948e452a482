//! Tasks of this repository, each step with its time: `cargo xtask TASK`; see [`USAGE`].
#![allow(clippy::print_stderr, reason = "a tool for developers")]

mod layout;
mod pages;
mod promises;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

const USAGE: &str = "cargo xtask TASK [ARGUMENTS OF CARGO]

  check   format, layout of the sources, paths and tests that pages name, lints as errors
  quick   the tests that need no model: job files, plans, budgets (under a minute after the build)
  test    all tests, as in the README
  bench   the benchmarks of ops and of the mini model's step
  mutants small changes of the code that a test should notice (needs cargo-mutants; hours for all of them,
          so name files: `cargo xtask mutants -f 'crates/tenggat-plan/src/budget/*.rs'`)
  docs    the documentation of all crates, with warnings as errors, and its examples
  deny    licences, doubles, sources and advisories of the dependencies, by cargo-deny
";

/// One command of a task.
struct Step {
    name: &'static str,
    program: &'static str,
    arguments: Vec<&'static str>,
    environment: &'static [(&'static str, &'static str)],
}

impl Step {
    fn cargo(name: &'static str, arguments: &[&'static str]) -> Self {
        Step { name, program: "cargo", arguments: arguments.to_vec(), environment: &[] }
    }
}

/// The steps of a task; `None` for a task that does not exist.
fn steps(task: &str) -> Option<Vec<Step>> {
    Some(match task {
        "check" => vec![
            Step::cargo("format", &["fmt", "--all", "--check"]),
            Step::cargo(
                "lints",
                &["clippy", "--release", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"],
            ),
        ],
        "quick" => vec![Step::cargo(
            "quick tests",
            &["test", "--release", "--locked", "-p", "tenggat-job", "-p", "tenggat-plan"],
        )],
        "test" => vec![Step::cargo("all tests", &["test", "--release", "--workspace", "--locked"])],
        "bench" => vec![Step::cargo("benchmarks", &["bench", "--locked", "-p", "tenggat-bench"])],
        // What is mutated and how long the tests have is in `.cargo/mutants.toml`.
        "mutants" => vec![Step::cargo("mutants", &["mutants"])],
        "docs" => vec![
            Step {
                environment: &[("RUSTDOCFLAGS", "-D warnings")],
                ..Step::cargo("documentation", &["doc", "--release", "--workspace", "--no-deps", "--locked"])
            },
            Step::cargo("its examples", &["test", "--release", "--workspace", "--doc", "--locked"]),
        ],
        "deny" => vec![Step::cargo("dependencies", &["deny", "--workspace", "check"])],
        _ => return None,
    })
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some((task, steps)) = arguments.next().and_then(|task| Some((task.clone(), steps(&task)?))) else {
        eprint!("{USAGE}");
        return ExitCode::from(2);
    };
    let more: Vec<String> = arguments.collect();
    let root = root();
    let mut times = Vec::new();
    let mut passed = true;
    if task == "check" {
        let began = Instant::now();
        let complaints =
            [layout::complaints(&root), pages::complaints(&root), promises::complaints(&root)].concat();
        complaints.iter().for_each(|complaint| eprintln!("{complaint}"));
        passed &= complaints.is_empty();
        times.push(("layout", began.elapsed()));
    }
    for step in steps {
        let began = Instant::now();
        let mut command = Command::new(step.program);
        command.current_dir(&root).args(step.arguments).args(&more).envs(step.environment.iter().copied());
        let status = command.status();
        times.push((step.name, began.elapsed()));
        if !status.is_ok_and(|status| status.success()) {
            passed = false;
            break;
        }
    }
    for (name, time) in times {
        eprintln!("{name:<16}{:>7.1} s", time.as_secs_f64());
    }
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
