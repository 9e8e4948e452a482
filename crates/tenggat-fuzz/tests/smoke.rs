//! Every fuzz target on its seeds, on the inputs that once failed, and on mutations. `TENGGAT_MUTANTS` asks
//! for another number of those per target, `TENGGAT_FUZZ_TARGET` for one target alone.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tenggat_fuzz::{TARGETS, Target, mutate};

/// Mutations of each target.
const MUTANTS: u64 = 250;
/// Most memory that an input may take. Seeds have some KB; the largest image that is decoded has 4 MB.
const MOST_BYTES: usize = 256 << 20;
/// An input that takes so long hangs.
const LONGEST: Duration = Duration::from_secs(10);

/// The system's allocator, counted.
struct Counted;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn add(bytes: usize) {
    PEAK.fetch_max(NOW.fetch_add(bytes, Relaxed) + bytes, Relaxed);
}

// SAFETY: every call is handed to the system's allocator as it is; counting touches no memory of the
// caller's.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller keeps the contract of `alloc_zeroed`, which is the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the block came from the system's allocator by one of the functions above.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counted = Counted;

/// One at a time, for the peak is that of the process.
static TURN: Mutex<()> = Mutex::new(());

/// The inputs that once failed.
fn failed_once(name: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/regressions").join(name);
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// What is wrong with the way a target takes an input.
fn complaint(target: &Target, bytes: &[u8]) -> Option<String> {
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    let began = Instant::now();
    let panicked = catch_unwind(AssertUnwindSafe(|| (target.run)(bytes))).is_err();
    let (taken, took) = (PEAK.load(Relaxed).saturating_sub(before), began.elapsed());
    if panicked {
        Some("panics".into())
    } else if taken > MOST_BYTES {
        Some(format!("takes {} MB", taken >> 20))
    } else if took > LONGEST {
        Some(format!("takes {} s", took.as_secs()))
    } else {
        None
    }
}

/// Tries an input, and keeps one that fails.
fn try_one(target: &Target, what: &str, bytes: &[u8], bad: &mut Vec<String>) {
    // Should the process be aborted, its output ends with the input.
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{what}", target.name));
    let current = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-current", target.name));
    fs::write(&current, bytes).unwrap();
    if let Some(complaint) = complaint(target, bytes) {
        fs::write(&kept, bytes).unwrap();
        bad.push(format!("{} {what} {complaint}: {}", target.name, kept.display()));
    }
}

fn smoke(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let asked = |name: &str| std::env::var(name).ok();
    if asked("TENGGAT_FUZZ_TARGET").is_some_and(|name| name != target.name) {
        return;
    }
    let mutants = asked("TENGGAT_MUTANTS").and_then(|n| n.parse().ok()).unwrap_or(MUTANTS);
    let mut bad = Vec::new();
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty());
    for (number, seed) in seeds.iter().enumerate() {
        try_one(target, &format!("seed-{number}"), seed, &mut bad);
    }
    for path in failed_once(target.name) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        try_one(target, &name, &fs::read(path).unwrap(), &mut bad);
    }
    for number in 0..mutants {
        try_one(target, &format!("mutation-{number}"), &mutate::mutation(number, &seeds), &mut bad);
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

/// Targets with a test below.
const TESTED: &[&str] = &[
    "picture",
    "job",
    "archive",
    "lora",
    "state",
    "weights",
    "quantised",
    "tokenizer",
    "configs",
    "metrics",
    "latent_cache",
    "text_cache",
    "hub_headers",
];

#[test]
fn arbitrary_bytes_as_images_do_no_harm() {
    smoke("picture");
}

#[test]
fn arbitrary_bytes_as_jobs_do_no_harm() {
    smoke("job");
}

#[test]
fn arbitrary_bytes_as_archives_do_no_harm() {
    smoke("archive");
}

#[test]
fn arbitrary_bytes_as_loras_do_no_harm() {
    smoke("lora");
}

#[test]
fn arbitrary_bytes_as_checkpoints_do_no_harm() {
    smoke("state");
}

#[test]
fn arbitrary_bytes_as_weights_do_no_harm() {
    smoke("weights");
}

#[test]
fn arbitrary_bytes_as_quantised_weights_do_no_harm() {
    smoke("quantised");
}

#[test]
fn arbitrary_bytes_as_tokenizers_do_no_harm() {
    smoke("tokenizer");
}

#[test]
fn arbitrary_bytes_as_configurations_of_models_do_no_harm() {
    smoke("configs");
}

#[test]
fn arbitrary_bytes_as_metrics_do_no_harm() {
    smoke("metrics");
}

#[test]
fn arbitrary_bytes_as_caches_of_latents_do_no_harm() {
    smoke("latent_cache");
}

#[test]
fn arbitrary_bytes_as_caches_of_prompts_do_no_harm() {
    smoke("text_cache");
}

#[test]
fn arbitrary_bytes_as_answers_of_the_hub_do_no_harm() {
    smoke("hub_headers");
}

#[test]
fn every_target_is_tried_and_has_a_fuzzer() {
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(TESTED, names);
    let fuzzers = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/fuzz_targets");
    for name in names {
        let text = fs::read_to_string(fuzzers.join(format!("{name}.rs"))).unwrap();
        assert!(text.contains(&format!("tenggat_fuzz::run(\"{name}\", bytes)")), "{text}");
    }
}

/// The seeds as files, for libFuzzer.
#[test]
#[ignore = "writes the seeds into the folder that TENGGAT_CORPUS names"]
fn write_the_corpora() {
    let folder = PathBuf::from(std::env::var("TENGGAT_CORPUS").unwrap());
    for target in TARGETS {
        let folder = folder.join(target.name);
        fs::create_dir_all(&folder).unwrap();
        for (number, seed) in (target.seeds)().iter().enumerate() {
            fs::write(folder.join(format!("seed-{number}")), seed).unwrap();
        }
    }
}
