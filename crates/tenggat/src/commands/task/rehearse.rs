//! `tenggat task --rehearse`: everything that a task needs is tried, and nothing is trained.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use tenggat_drive::{Installation, WEBHOOK_SECRET, free_bytes};
use tenggat_plan::{WallClock, format_duration};
use tenggat_tensor::Device;
use tenggat_train::contest::container::{Roots, Task};
use tenggat_train::contest::work::Work;
use tenggat_train::contest::{HoldOut, Split};
use tenggat_train::run::Stop;

use super::preset::{Choices, JobMaker, quantised};
use super::setup::{Setup, keys, prepare, side};
use super::{TaskArgs, driven};
use crate::assets;
use crate::device::{self, Choice};
use crate::output::say;
use crate::when::plural;

/// Room that LoRAs, the optimiser's state and cached pictures of a task take at most, in bytes.
const ROOM_FOR_RESULTS: u64 = 8_000_000_000;
const ROOM_FOR_PICTURES: u64 = 2_000_000_000;
/// Longest wait for the trainer's Python to say what it has.
const PYTHON_PATIENCE: Duration = Duration::from_secs(120);
/// What is asked of it.
const PYTHON: &str = "import torch; print(torch.__version__, torch.cuda.is_available())";

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Good,
    /// It may do harm.
    Doubtful,
    /// The container would fail, or deliver the bare model.
    Bad,
}

/// The lines of a rehearsal.
#[derive(Default)]
struct Findings {
    bad: usize,
}

impl Findings {
    fn tell(&mut self, what: &str, verdict: Verdict, text: &str) {
        let word = match verdict {
            Verdict::Good => "ok",
            Verdict::Doubtful => "doubtful",
            Verdict::Bad => "would fail",
        };
        self.bad += usize::from(verdict == Verdict::Bad);
        say!("{what:<14} {word}: {text}");
    }

    /// Tells of something that is good, or why it is bad; returns it.
    fn take<T>(&mut self, what: &str, found: anyhow::Result<(T, String)>) -> Option<T> {
        match found {
            Ok((value, text)) => {
                self.tell(what, Verdict::Good, &text);
                Some(value)
            }
            Err(e) => {
                self.tell(what, Verdict::Bad, &format!("{e:#}"));
                None
            }
        }
    }
}

/// Tries everything, and says what would go wrong.
///
/// # Errors
/// Something would.
pub fn rehearse(
    args: &TaskArgs,
    task: &Task,
    roots: &Roots,
    clock: WallClock,
    choice: Choice,
) -> anyhow::Result<()> {
    let mut findings = Findings::default();
    let kind = args.model_type;
    let model = match args.model.as_str() {
        assets::MINI => assets::mini().map(|folder| folder.join("model")),
        _ => roots.model(task).map_err(Into::into),
    };
    let model = model.map(|folder| (folder.clone(), folder.display().to_string()));
    let model = findings.take("model", model);
    let archive = roots.dataset(task).map(|path| (path.clone(), path.display().to_string()));
    let archive = findings.take("archive", archive.map_err(Into::into));
    let output = roots.output(task);
    findings.take("output", writable(&output).map(|()| ((), output.display().to_string())));
    room(&mut findings, "disk", &output, ROOM_FOR_RESULTS);
    let setup = Setup {
        args,
        task,
        roots,
        kind,
        model: model.clone().unwrap_or_default(),
        archive: archive.clone().unwrap_or_default(),
        side: side(args),
        output,
    };
    if model.is_some() {
        look_at_model(&mut findings, &setup);
    }
    let installation = if kind.is_ours() {
        let opened = device::open(choice).map(|device| {
            let on = if matches!(device, Device::Cpu(_)) { "the processor" } else { "a GPU" };
            ((), format!("tenggat itself, on {on}"))
        });
        findings.take("trainer", opened);
        None
    } else {
        look_at_trainer(&mut findings, &setup, choice)
    };
    if archive.is_some() {
        let pictures = look_at_pictures(&mut findings, &setup, clock);
        if let (Some((work, pictures)), true) = (&pictures, model.is_some()) {
            findings.take("job", job(&setup, work, pictures, installation.as_ref()));
        }
    }
    look_around(&mut findings, kind.is_ours());
    anyhow::ensure!(
        findings.bad == 0,
        "the container would fail for the {} marked `would fail`",
        plural(findings.bad as u64, "reason")
    );
    Ok(())
}

/// Whether a folder can be made and files written, flushed, renamed and removed in it.
fn writable(folder: &Path) -> anyhow::Result<()> {
    let made: Vec<&Path> = folder.ancestors().take_while(|folder| !folder.exists()).collect();
    let tried = || {
        fs::create_dir_all(folder)?;
        let mut probe = tempfile::NamedTempFile::new_in(folder)?;
        probe.write_all(b"probe")?;
        probe.as_file().sync_all()?;
        let to = folder.join(".tenggat-rehearsal");
        probe.persist(&to)?;
        fs::remove_file(&to)
    };
    let result = tried().with_context(|| format!("{} cannot be written to", folder.display()));
    // What a rehearsal made it takes away again; a folder that is not empty stays.
    made.into_iter().for_each(|folder| drop(fs::remove_dir(folder)));
    result
}

/// Whether a disk has so many bytes left; the folder may yet have to be made.
fn room(findings: &mut Findings, what: &str, folder: &Path, wanted: u64) {
    let there = folder.ancestors().find(|folder| folder.is_dir());
    let Some(free) = there.and_then(free_bytes) else { return };
    let text = format!("{:.1} GB are free for {}", free as f64 / 1e9, folder.display());
    if free >= wanted {
        findings.tell(what, Verdict::Good, &text);
    } else {
        let text = format!("{text}; {:.0} GB may be needed", wanted as f64 / 1e9);
        findings.tell(what, if free < wanted / 16 { Verdict::Bad } else { Verdict::Doubtful }, &text);
    }
}

fn look_at_model(findings: &mut Findings, setup: &Setup<'_>) {
    for part in setup.kind.parts(&setup.model, setup.roots) {
        if !part.path.exists() {
            let text = format!("there is no {}", part.path.display());
            findings.tell(part.what, Verdict::Bad, &text);
        }
    }
    let weights = keys(setup).map(|keys| ((), format!("{} recognised", plural(keys.len() as u64, "layer"))));
    findings.take("weights", weights);
    if setup.kind.wants_adapter(setup.task) {
        match setup.kind.training_adapter(setup.roots, setup.task) {
            Some(path) => findings.tell("adapter", Verdict::Good, &path.display().to_string()),
            None => findings.tell(
                "adapter",
                Verdict::Doubtful,
                "a distilled model is trained with `zimage_turbo_training_adapter_v2.safetensors`, and the cache's \
                 hf_cache has none",
            ),
        }
    }
}

/// ai-toolkit, and whether its Python can compute.
fn look_at_trainer(findings: &mut Findings, setup: &Setup<'_>, choice: Choice) -> Option<Installation> {
    let found = driven::installation(setup).map(|installation| {
        let text = format!("ai-toolkit in {}", installation.folder.display());
        (installation, text)
    });
    let installation = findings.take("trainer", found)?;
    let python = installation.python.display().to_string();
    match ask_python(&installation) {
        Err(e) => findings.tell("python", Verdict::Bad, &format!("{python}: {e:#}")),
        Ok(said) if said.contains("True") || choice == Choice::Cpu => {
            findings.tell("python", Verdict::Good, &format!("{python} has PyTorch {said}"));
        }
        Ok(said) => {
            let text = format!("{python} has PyTorch {said}, which sees no GPU");
            findings.tell("python", Verdict::Bad, &text);
        }
    }
    Some(installation)
}

/// PyTorch's version, and whether it sees a GPU.
fn ask_python(installation: &Installation) -> anyhow::Result<String> {
    let mut child = Command::new(&installation.python)
        .args(["-c", PYTHON])
        .env_remove(WEBHOOK_SECRET)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("it cannot be started; name ai-toolkit's Python with --python")?;
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if began.elapsed() > PYTHON_PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            anyhow::bail!("it had not imported PyTorch after {} s", PYTHON_PATIENCE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let read = |pipe: Option<&mut dyn Read>| {
        let mut text = String::new();
        // What is no text is of no interest.
        let _ = pipe.map(|pipe| pipe.read_to_string(&mut text));
        text
    };
    let said = read(child.stdout.as_mut().map(|pipe| pipe as &mut dyn Read));
    if status.success() {
        return Ok(said.trim().to_owned());
    }
    let complaint = read(child.stderr.as_mut().map(|pipe| pipe as &mut dyn Read));
    let last = complaint.lines().last().unwrap_or("it says nothing").trim().to_owned();
    anyhow::bail!("it cannot import PyTorch ({last})")
}

/// Unpacks and prepares the pictures, as the task would, and holds their number against the hours.
fn look_at_pictures(findings: &mut Findings, setup: &Setup<'_>, clock: WallClock) -> Option<(Work, Split)> {
    let work = Work::open(setup.args.work_root.as_deref(), setup.task);
    let work = work.map(|work| {
        let text = work.path().display().to_string();
        (work, text)
    });
    let work = findings.take("work folder", work.map_err(Into::into))?;
    room(findings, "work disk", work.path(), ROOM_FOR_PICTURES);
    let hold_out = if setup.kind.is_ours() { HoldOut::OneInTen } else { HoldOut::None };
    let pictures = match prepare(setup, &work, hold_out, &Stop::default()) {
        Ok(pictures) => pictures,
        Err(e) => {
            findings.tell("pictures", Verdict::Bad, &format!("{e:#}"));
            return None;
        }
    };
    let count = pictures.pictures.0 + pictures.pictures.1;
    let bare = [Some(&pictures.train), pictures.held_out.as_ref()];
    let bare: usize = bare.into_iter().flatten().map(|folder| without_caption(folder)).sum();
    if !pictures.bad.is_empty() || bare > 0 {
        let text = format!("{} cannot be used, {bare} have no caption", pictures.bad.len());
        findings.tell("pictures", Verdict::Doubtful, &text);
    }
    hours(findings, setup, clock, count);
    Some((work, pictures))
}

fn without_caption(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let texts = entries.filter(|path| path.extension().is_some_and(|kind| kind == "txt"));
    texts.filter(|path| fs::read_to_string(path).is_ok_and(|text| text.trim().is_empty())).count()
}

/// The hours beside those that the rule gives.
fn hours(findings: &mut Findings, setup: &Setup<'_>, clock: WallClock, pictures: usize) {
    let (given, rule) = (setup.hours(pictures), setup.kind.hours(pictures));
    let limited = setup.limited(clock, given);
    let left = format_duration(limited.deadline_s.unwrap_or(0.0));
    let text = format!(
        "{given} h, in which the training has {left}; the rule gives {} for {} {rule} h or a quarter more",
        plural(pictures as u64, "picture"),
        setup.kind.name()
    );
    let near = given >= rule && given <= rule + 0.25;
    findings.tell("hours", if near { Verdict::Good } else { Verdict::Doubtful }, &text);
}

/// Whether a job comes of it all.
fn job(
    setup: &Setup<'_>,
    work: &Work,
    pictures: &Split,
    installation: Option<&Installation>,
) -> anyhow::Result<((), String)> {
    if setup.kind.is_ours() {
        let choices = if setup.args.model == assets::MINI { Choices::MINI } else { Choices::QWEN_IMAGE };
        let quantised = quantised(&setup.model, setup.roots)?;
        let maker = JobMaker { args: setup.args, choices, model: &setup.model, side: setup.side, quantised };
        let (_, warnings) = maker.job(pictures)?;
        return Ok(((), format!("complete, {}", plural(warnings.len() as u64, "warning"))));
    }
    let job = driven::job(setup, work, pictures)?;
    let named = installation.map_or(String::new(), |it| format!(" for {}", it.folder.display()));
    Ok(((), format!("complete{named}, `arch: {}`", job.arch())))
}

/// The machine's network: the contest's container has none.
fn look_around(findings: &mut Findings, is_ours: bool) {
    let offline = std::env::var("HF_HUB_OFFLINE").is_ok_and(|value| value == "1");
    if offline || is_ours {
        findings.tell("network", Verdict::Good, "nothing is fetched");
    } else {
        findings.tell(
            "network",
            Verdict::Doubtful,
            "HF_HUB_OFFLINE is not 1: ai-toolkit may try to fetch files, and wait for a network that is not there",
        );
    }
}
