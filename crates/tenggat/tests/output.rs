//! Output is never worth a run: streams that are closed, full, gone or not read, and what files try to say to
//! the terminal.
#![cfg(unix)]

mod common;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{demo_pictures, ends, job, logged_steps, tenggat, text};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

/// Long enough for the slowest machine; the runs take seconds.
const WITHIN: Duration = Duration::from_secs(180);

/// A stream that cannot be written to.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Broken {
    /// A pipe whose reader has gone: EPIPE.
    Closed,
    /// A disk without room: ENOSPC.
    Full,
    /// A terminal that has hung up: EIO.
    Vanished,
}

impl Broken {
    const ALL: [Self; 3] = [Self::Closed, Self::Full, Self::Vanished];

    fn stream(self) -> Stdio {
        match self {
            Broken::Closed => io::pipe().unwrap().1.into(),
            Broken::Full => File::options().write(true).open("/dev/full").unwrap().into(),
            Broken::Vanished => terminal().1.into(),
        }
    }
}

/// Both ends of a terminal: what a person sees, and what the program is given.
fn terminal() -> (File, File) {
    let seen = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&seen).unwrap();
    unlockpt(&seen).unwrap();
    let name = ptsname(&seen, Vec::new()).unwrap();
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let given = rustix::fs::open(&*name, flags, rustix::fs::Mode::empty()).unwrap();
    (seen.into(), given.into())
}

/// A pipe that is full and that nobody reads.
fn stuck() -> (io::PipeReader, OwnedFd) {
    let (reader, mut writer) = io::pipe().unwrap();
    let flags = fcntl_getfl(&writer).unwrap();
    fcntl_setfl(&writer, flags | OFlags::NONBLOCK).unwrap();
    while writer.write(&[b'.'; 4096]).is_ok() {}
    while writer.write(b".").is_ok() {}
    fcntl_setfl(&writer, flags).unwrap();
    (reader, writer.into())
}

fn is_whole(lora: &Path) -> bool {
    fs::read(lora).is_ok_and(|bytes| safetensors::SafeTensors::deserialize(&bytes).is_ok())
}

#[test]
fn a_run_outlives_its_streams() {
    for broken in Broken::ALL {
        let folder = tempfile::tempdir().unwrap();
        let job = job(folder.path(), "steps: 6");
        // An unknown key is warned of on standard error, and every level of the log has something to say.
        let text = fs::read_to_string(&job).unwrap();
        fs::write(&job, text.replace("training_seed: 5", "training_seed: 5\n      no_such_key: 1")).unwrap();
        let mut train = tenggat();
        train.arg("train").arg(&job).arg("-vv").stdout(broken.stream()).stderr(broken.stream());
        let status = ends(&mut train.spawn().unwrap(), WITHIN);
        let run = folder.path().join("fox");
        assert!(status.success(), "{broken:?}: {status}");
        assert_eq!(logged_steps(&run), 6, "{broken:?}");
        assert!(is_whole(&run.join("fox.safetensors")), "{broken:?}");
    }
}

#[test]
fn a_reader_that_leaves_in_the_middle_ends_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path(), "steps: 60");
    let (reader, writer) = io::pipe().unwrap();
    let mut train = tenggat();
    train.arg("train").arg(&job).stdout(writer.try_clone().unwrap()).stderr(writer);
    let mut child = train.spawn().unwrap();
    drop(train);
    let mut lines = BufReader::new(reader);
    lines.read_line(&mut String::new()).unwrap();
    drop(lines);
    assert!(ends(&mut child, WITHIN).success());
    assert_eq!(logged_steps(&folder.path().join("fox")), 60);
    assert!(is_whole(&folder.path().join("fox/fox.safetensors")));
}

#[test]
fn a_terminal_that_hangs_up_ends_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path(), "steps: 60");
    let (mut seen, given) = terminal();
    let mut train = tenggat();
    train.arg("train").arg(&job).stdin(given.try_clone().unwrap());
    train.stdout(given.try_clone().unwrap()).stderr(given);
    let mut child = train.spawn().unwrap();
    drop(train);
    // The bar is on the screen.
    let mut screen = String::new();
    while !screen.contains("ms/step") {
        let mut bytes = [0; 4096];
        let n = seen.read(&mut bytes).unwrap();
        screen += &String::from_utf8_lossy(&bytes[..n]);
    }
    drop(seen);
    assert!(ends(&mut child, WITHIN).success());
    assert_eq!(logged_steps(&folder.path().join("fox")), 60);
}

/// The limit of `ulimit -f`, which ends other programs with SIGXFSZ.
#[test]
fn a_log_at_the_limit_of_file_sizes_ends_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path(), "steps: 6");
    // Unpacks the model, whose files are larger than the limit.
    assert!(tenggat().arg("check").arg(&job).output().unwrap().status.success());
    let log = folder.path().join("log");
    File::create(&log).unwrap().set_len(30 << 20).unwrap();
    let append = || File::options().append(true).open(&log).unwrap();
    let mut train = Command::new("sh");
    // 10 MB, in blocks of 512 bytes.
    train.args(["-c", "ulimit -f 20000; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_tenggat"), "train"]);
    train.arg(&job).stdout(append()).stderr(append());
    assert!(ends(&mut train.spawn().unwrap(), WITHIN).success());
    assert!(is_whole(&folder.path().join("fox/fox.safetensors")));
}

/// A paused pager, or a terminal held with Ctrl-S.
#[test]
fn a_reader_that_stops_reading_does_not_hold_up_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path(), "batch_size: 1");
    let (reader, writer) = stuck();
    let mut train = tenggat();
    train.arg("train").arg(&job).args(["--budget", "10s", "-vv"]);
    train.stdout(writer.try_clone().unwrap()).stderr(writer);
    let began = std::time::Instant::now();
    let status = ends(&mut train.spawn().unwrap(), WITHIN);
    assert!(status.success(), "{status}");
    let took = began.elapsed();
    assert!(took < Duration::from_secs(12), "a budget of 10 s took {took:?}");
    assert!(is_whole(&folder.path().join("fox/fox.safetensors")));
    drop(reader);
}

#[test]
fn a_task_keeps_its_exit_code_without_a_display() {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("t.zip");
    let mut zip = zip::ZipWriter::new(File::create(&archive).unwrap());
    for name in ["fox.png", "fox.txt", "bell.png", "bell.txt"] {
        zip.start_file(format!("train_data/{name}"), zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(&fs::read(demo_pictures("train").join(name)).unwrap()).unwrap();
    }
    zip.finish().unwrap();
    for broken in Broken::ALL {
        let run = |hours: &str| {
            let mut task = tenggat();
            task.args(["task", "--task-id", "t", "--model", "mini", "--model-type", "qwen-image"]);
            task.args(["--expected-repo-name", "r", "--hours-to-complete", hours, "--dataset-zip"]);
            task.arg(&archive).arg("--checkpoints-root").arg(folder.path().join(format!("{broken:?}")));
            task.arg("--work-root").arg(folder.path());
            task.stdout(broken.stream()).stderr(broken.stream());
            ends(&mut task.spawn().unwrap(), WITHIN).code()
        };
        assert_eq!(run("soon"), Some(2), "{broken:?}");
        assert_eq!(run("0.002"), Some(0), "{broken:?}");
        assert!(is_whole(&folder.path().join(format!("{broken:?}/t/r/last.safetensors"))));
    }
}

/// Everything that answers at once, whether it succeeds or fails.
fn short_commands(job: &Path) -> Vec<Vec<String>> {
    let job = job.to_str().unwrap();
    let all: [&[&str]; 17] = [
        &["--help"],
        &["--version"],
        &["train", "--help"],
        &["help", "plan"],
        &["doctor"],
        &["completions", "bash"],
        &["check", job],
        &["check", "nowhere.yaml"],
        &["plan", job],
        &["plan", job, "--json"],
        &["plan", job, "--trainer", "ai-toolkit"],
        &["plan", "explain", "--duration", "2h", "--steps", "1500", "--s-per-step", "4..6"],
        &["plan", "steps", "--budget", "3h", "--s-per-step", "5..7", "--json"],
        &["init", "nowhere"],
        &["extend", "nowhere", "+5m"],
        &["train", "--no-such-flag"],
        &["quantise", "mini", "--qtype", "uint9"],
    ];
    all.iter().map(|args| args.iter().map(ToString::to_string).collect()).collect()
}

#[test]
fn short_commands_end_quietly() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path(), "steps: 6");
    for args in short_commands(&job) {
        let command = || {
            let mut command = tenggat();
            command.args(&args).env("RUST_BACKTRACE", "1").current_dir(folder.path());
            command
        };
        let usual = command().output().unwrap();
        assert!(!text(&usual).contains("panicked"), "{args:?}: {}", text(&usual));
        let usual = usual.status.code();
        for broken in Broken::ALL {
            let output = command().stdout(broken.stream()).stderr(Stdio::piped()).output().unwrap();
            let said = text(&output);
            assert!(
                !said.contains("panicked") && !said.contains("backtrace"),
                "{args:?}, {broken:?}: {said}"
            );
            // Whoever keeps a result in a file must learn that it is not whole.
            let is_product = args.contains(&"--json".into()) || args[0] == "completions";
            if is_product && broken == Broken::Full {
                assert_eq!(output.status.code(), Some(1), "{args:?}");
                assert!(said.contains("No space left on device"), "{args:?}: {said}");
            } else {
                assert_eq!(output.status.code(), usual, "{args:?}, {broken:?}: {said}");
            }
            let output = command().stderr(broken.stream()).output().unwrap();
            assert_eq!(output.status.code(), usual, "{args:?}, {broken:?} standard error");
        }
    }
}

/// Characters that a terminal, or a reader of a log, would obey.
const EVIL: &str = "\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\u{7f}\u{8}\u{202e}\u{2066}";

fn is_clean(said: &str) -> bool {
    !said.chars().any(|c| {
        c.is_control() && c != '\n' && c != '\t'
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    })
}

#[test]
fn what_files_and_arguments_say_is_shown_and_not_obeyed() {
    let folder = tempfile::tempdir().unwrap();
    let set = folder.path().join("set");
    fs::create_dir(&set).unwrap();
    for name in ["fox.png", "fox.txt"] {
        fs::copy(demo_pictures("train").join(name), set.join(name)).unwrap();
    }
    fs::write(set.join(format!("broken{EVIL}.png")), "no picture").unwrap();
    fs::write(set.join("broken\nok, 0 warnings.png"), "no picture").unwrap();
    let path = job(folder.path(), "steps: 1");
    let data = demo_pictures("train").display().to_string();
    let whole = fs::read_to_string(&path).unwrap().replace(&data, &set.display().to_string());
    fs::write(&path, &whole).unwrap();
    let evil = |name: &str, text: String| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let steps = evil("steps.yaml", whole.replace("steps: 1", &format!("steps: 'x{EVIL}'")));
    let name = evil("name.yaml", whole.replace("name: fox", "name: \"f\\e]0;x\\a\\x9Box\""));
    let key = evil(
        "key.yaml",
        whole.replace("training_seed", &format!("\"k{}\": 1\n      training_seed", "\\e[2J\\u202e")),
    );
    let file = evil(&format!("job{EVIL}.yaml"), whole.replace("steps: 1", "steps: x"));
    let lora = folder.path().join("evil.safetensors");
    let module = format!("diffusion_model.transformer_blocks.0.{EVIL}.lora_A.weight");
    let tensor = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1, 1], &[0; 4]).unwrap();
    fs::write(&lora, safetensors::serialize([(module, tensor)], None).unwrap()).unwrap();
    let data =
        evil("data.yaml", whole.replace("folder_path: '", "folder_path: \"no\\e[2J\\x9b\", mask_path: '"));
    let job = path.display().to_string();
    let lora = lora.display().to_string();
    let argument = format!("x{EVIL}");
    let cases: [&[&str]; 11] = [
        &["check", &job],
        &["train", &job, "-vv"],
        &["check", &steps],
        &["check", &name],
        &["train", &name],
        &["check", &key],
        &["plan", &data, "--json"],
        &["check", &file],
        &["sample", "--model", "mini", "--prompt", "x", "--steps", "1", "--size", "32x32", "--lora", &lora],
        &["train", &argument, &format!("--{EVIL}")],
        &["doctor", "--device", &argument],
    ];
    for args in cases {
        let output = tenggat().args(args).env("HF_HUB_OFFLINE", "1").output().unwrap();
        let said = text(&output);
        assert!(is_clean(&said), "{args:?}: {said:?}");
        assert!(
            args.contains(&&*job) || said.contains(r"\u{1b}") || said.contains(r"\u001b"),
            "{args:?}: {said}"
        );
        assert!(!said.contains("\nok, 0 warnings.png"), "{said}");
        if args.contains(&"--json") {
            serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap();
        }
    }
    let said = text(&tenggat().arg("check").arg(&job).output().unwrap());
    assert!(said.contains(r"broken\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\u{7f}\u{8}\u{202e}"), "{said}");
    assert!(said.contains(r"broken\nok, 0 warnings.png"), "{said}");
}

#[test]
fn a_request_to_a_run_is_shown_and_not_obeyed() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path(), "steps: 2000");
    let mut train = tenggat();
    train.arg("train").arg(&job).args(["--budget", "12s"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = train.spawn().unwrap();
    let run = folder.path().join("fox");
    for _ in 0..9000 {
        if logged_steps(&run) > 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    fs::write(run.join("deadline.request"), format!("soon{EVIL}")).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = text(&output);
    assert!(output.status.success() && said.contains(r"soon\u{1b}]0;owned") && is_clean(&said), "{said:?}");
}

/// On a terminal our own bar may move the cursor and clear its line; nothing else may.
#[test]
fn bars_on_a_terminal_survive_and_names_stay_harmless() {
    let folder = tempfile::tempdir().unwrap();
    let set = folder.path().join("set");
    fs::create_dir(&set).unwrap();
    for name in ["fox.png", "fox.txt"] {
        fs::copy(demo_pictures("train").join(name), set.join(name)).unwrap();
    }
    fs::write(set.join(format!("broken{EVIL}.png")), "no picture").unwrap();
    let path = job(folder.path(), "steps: 5");
    let data = demo_pictures("train").display().to_string();
    fs::write(&path, fs::read_to_string(&path).unwrap().replace(&data, &set.display().to_string())).unwrap();
    let (seen, given) = terminal();
    let mut train: Command = tenggat();
    train.arg("train").arg(&path).arg("-v").env("TERM", "xterm");
    train.stdout(given.try_clone().unwrap()).stderr(given);
    let mut child = train.spawn().unwrap();
    drop(train);
    let screen = std::thread::spawn(move || {
        let (mut seen, mut bytes, mut all) = (seen, [0; 4096], Vec::new());
        while let Ok(n @ 1..) = seen.read(&mut bytes) {
            all.extend(&bytes[..n]);
        }
        String::from_utf8_lossy(&all).into_owned()
    });
    assert!(ends(&mut child, WITHIN).success());
    let screen = screen.join().unwrap();
    assert!(screen.contains("5/5") && screen.contains("\u{1b}[2K"), "{screen:?}");
    let mut rest = screen.replace("\r\n", "\n").replace('\r', "");
    // Colours, and the way from one line of a drawing to another.
    let colours = ["\u{1b}[2K", "\u{1b}[32m", "\u{1b}[33m", "\u{1b}[34m", "\u{1b}[2m", "\u{1b}[0m"];
    for own in colours.into_iter().chain(["\u{1b}[1A", "\u{1b}[2A", "\u{1b}[1B", "\u{1b}[2B"]) {
        rest = rest.replace(own, "");
    }
    assert!(is_clean(&rest) && rest.contains(r"broken\u{1b}]0;owned"), "{rest:?}");
}
