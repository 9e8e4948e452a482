//! The README's commands, run in their order in one folder, as a reader would.
#![cfg(unix)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{demo_pictures, tenggat, text};

/// What the test makes shorter, so that it does not take as long as a reader has.
const SHORTER: [(&str, &str); 5] = [
    ("tenggat demo", "tenggat demo --budget 15s"),
    ("--budget 90s", "--budget 12s"),
    ("--hours-to-complete 0.01 ", "--hours-to-complete 0.006 "),
    ("output/pictures", "output/pictures --steps 2"),
    ("--noises 1 --seeds 1", "--noises 1 --seeds 1 --steps 2 --long-side 64"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A command, and whether its comment says that it needs what a test has not.
struct Line {
    command: String,
    needs: bool,
}

/// The commands of the blocks of shell.
fn lines(readme: &str) -> Vec<Line> {
    let blocks = readme.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let joined: String = blocks.map(|block| block.replace("\\\n", " ")).collect();
    let lines = joined.lines().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| {
            let (command, comment) = line.split_once("  #").unwrap_or((line, ""));
            Line { command: command.trim().to_owned(), needs: comment.contains("needs ") }
        })
        .collect()
}

/// Runs a command of the shell in `folder`, where `tenggat` is this build's.
fn shell(command: &str, folder: &Path) -> Output {
    let program = Path::new(env!("CARGO_BIN_EXE_tenggat")).parent().unwrap().to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(program).chain(std::env::split_paths(&path))).unwrap();
    Command::new("sh")
        .args(["-ec", command])
        .current_dir(folder)
        .env("PATH", path)
        .env("HF_HUB_OFFLINE", "1")
        .env("HF_HOME", folder.join("hub"))
        .output()
        .unwrap()
}

/// Checks a command that cannot be run here: that the program takes its options, or that its files exist.
fn is_understood(command: &str, folder: &Path) {
    let help = |command: &str| {
        let (own, trainer) = command.split_once(" -- ").unwrap_or((command, ""));
        let output = shell(&format!("{own} --help"), folder);
        assert!(output.status.success(), "{own}: {}", text(&output));
        assert!(command.contains(" -- ") != trainer.is_empty(), "{command}");
    };
    match command.split_whitespace().next().unwrap() {
        "tenggat" => help(command),
        "docker" if command.starts_with("docker run ") => {
            let (_, arguments) = command.split_once(" tenggat ").unwrap();
            help(&format!("tenggat task {arguments}"));
        }
        "docker" => assert!(root().join("Dockerfile").is_file(), "{command}"),
        "cargo" => {
            let path = command.split("--path ").nth(1).unwrap().split_whitespace().next().unwrap();
            assert!(root().join(path).join("Cargo.toml").is_file(), "{command}");
        }
        "pip" | "uvx" => assert!(root().join("pyproject.toml").is_file(), "{command}"),
        _ => panic!("nothing is known of `{command}`; add a check of it here"),
    }
}

#[test]
fn the_commands_of_the_readme_work_in_their_order() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    fs::create_dir(here.join("pictures")).unwrap();
    for name in ["automobile", "bell", "drum", "fox", "house"] {
        for extension in ["png", "txt"] {
            let file = format!("{name}.{extension}");
            fs::copy(demo_pictures("train").join(&file), here.join("pictures").join(&file)).unwrap();
        }
    }
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let (mut ran, mut understood) = (0, 0);
    for Line { command, needs } in lines(&readme) {
        if needs {
            is_understood(&command, here);
            understood += 1;
            continue;
        }
        let shorter = SHORTER.iter().fold(command.clone(), |text, (from, to)| text.replace(from, to));
        let output = shell(&shorter, here);
        assert!(output.status.success(), "{shorter}: {}", text(&output));
        ran += 1;
    }
    assert!(ran >= 11 && understood >= 8, "{ran} commands ran, {understood} were understood");
    for file in [
        "tenggat-demo/tenggat-demo.safetensors",
        "tenggat-demo/loss.png",
        "output/pictures/pictures.safetensors",
        "sample-1.png",
        "checkpoints/t1/my-lora/last.safetensors",
    ] {
        assert!(here.join(file).is_file(), "{file}");
    }
}

/// The page says at the place of each command what it leaves, and every file that it links to is there.
#[test]
fn the_readme_leads_somewhere() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let targets = readme.split("](").skip(1).map(|rest| rest.split([')', '#']).next().unwrap());
    for target in targets.filter(|target| !target.is_empty() && !target.starts_with("http")) {
        assert!(root().join(target).exists(), "{target}");
    }
    assert!(tenggat().arg("--version").output().unwrap().status.success());
}
