//! Plans are made by cuDNN with a stand-in for the driver.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use super::super::handle::{pack, version};
use super::super::plan::{Kept, Pass, Plan, Plans};
use super::super::{Backward, Forward, Shape};
use super::{
    CARDS, Card, PASSES, card as of_version, graphs_finalise, libraries, mixed, refused_operations_are_named,
    skip,
};

/// Variable that tells a child process of the test where the stand-in for the driver is.
const STUB: &str = "TENGGAT_STUB_DRIVER";
/// The version of cuDNN whose kernels are known, and what they are called.
const KNOWN: (usize, &str) = (91_900, include_str!("kernels.txt"));

/// Makes plans, which compiles kernels but runs none. cuDNN wants a driver for that, so a child process gets
/// one that does nothing.
#[test]
fn plans_are_made_and_restored() {
    if let Some(stub) = env::var_os(STUB) {
        return plans_with(Path::new(&stub));
    }
    if !libraries() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let Some(stub) = stub_driver(folder.path()) else {
        skip("no C compiler");
        return;
    };
    let (_crate, module) = module_path!().split_once("::").unwrap();
    let child = Command::new(env::current_exe().unwrap())
        .args(["--exact", &format!("{module}::plans_are_made_and_restored"), "--nocapture"])
        .env(STUB, stub)
        .output()
        .unwrap();
    let [out, err] = [child.stdout, child.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    eprintln!("{err}");
    assert!(child.status.success() && out.contains("1 passed"), "{}\n{out}\n{err}", child.status);
}

/// Compiles a library with the functions of the driver that cuDNN looks up. None of them does anything.
fn stub_driver(folder: &Path) -> Option<PathBuf> {
    let (source, library) = (folder.join("stub.c"), folder.join("libcuda.so.1"));
    fs::write(&source, include_str!("stub_driver.c")).unwrap();
    let compiler = env::var_os("CC").unwrap_or_else(|| "cc".into());
    let done = Command::new(compiler)
        .args(["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o"])
        .args([&library, &source])
        .status()
        .ok()?;
    assert!(done.success());
    Some(library)
}

fn plans_with(stub: &Path) {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: the library has no initialisers.
    std::mem::forget(unsafe { Library::open(Some(stub), RTLD_NOW | RTLD_GLOBAL) }.unwrap());
    assert!(libraries());
    graphs_finalise();
    refused_operations_are_named();
    let qwen = Shape::separate(2, 4300, 24, 128);
    let few = [qwen, Shape::packed(1, 4173, 24, 128), mixed(2, 1031, 4, 64)];
    let mut chosen = Vec::new();
    for card in CARDS {
        let target = card.target().unwrap();
        for (shape, pass) in few.into_iter().flat_map(|shape| PASSES.map(|pass| (shape, pass))) {
            let plan = match Plan::build(&pass.graph(&shape), &target) {
                Ok(plan) => plan,
                Err(error) => panic!("{}: {pass:?} {shape:?}: {error}", card.name),
            };
            let json = plan.json().unwrap();
            let restored = Plan::restore(&json, &target).unwrap();
            assert_eq!(restored.json().unwrap(), json);
            assert_eq!(restored.workspace_bytes, plan.workspace_bytes);
            let Shape { batch, tokens, heads, head_dim, .. } = shape;
            let kernels = kernels(&json).join(", ");
            let line = format!("{}: {pass:?} {batch}x{tokens}x{heads}x{head_dim}: {kernels}", card.name);
            eprintln!("{line}: workspace {} B, plan {} B", plan.workspace_bytes, json.len());
            chosen.push(line);
            // On 9.0 and 10.x kernels ask for next to nothing; on others for another accumulator and a little
            // more.
            let asks = card.version < 900 || card.version >= 1200;
            let most = if asks { shape.scratch_bytes().iter().sum() } else { 4096 };
            assert!(
                plan.workspace_bytes <= most,
                "{}: {pass:?} {shape:?}: {}",
                card.name,
                plan.workspace_bytes
            );
        }
    }
    let (version_known, known) = KNOWN;
    // Another version may choose others, which the output shows.
    if version().unwrap() == version_known {
        let known: Vec<_> = known.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(chosen, known);
    }
    files_keep_plans(of_version(900), mixed(1, 128, 4, 64));
    packs_are_accepted();
}

/// Names of a plan's kernels, without the beginning that all have.
fn kernels(json: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(json);
    let named = text.split("\"kernelName\":\"").skip(1).filter_map(|rest| rest.split('"').next());
    named.map(|name| name.trim_start_matches("cudnn_generated_fort_native_").to_owned()).collect()
}

/// A plan is read from its file, and made anew from a file that is damaged.
fn files_keep_plans(card: &Card, shape: Shape) {
    let folder = tempfile::tempdir().unwrap();
    let get = |device: &str| {
        let kept = Kept { folder: folder.path().join("plans"), version: 91_900, device: device.to_owned() };
        let mut plans = Plans::new(card.target().unwrap(), Some(kept));
        plans.get(Pass::Forward, &shape).unwrap().json().unwrap()
    };
    let files = || -> Vec<PathBuf> {
        fs::read_dir(folder.path().join("plans")).unwrap().map(|entry| entry.unwrap().path()).collect()
    };
    let first = get(card.name);
    let [file] = &files()[..] else { panic!("one file, not {:?}", files()) };
    assert_eq!(fs::read(file).unwrap(), first);

    let long_ago = UNIX_EPOCH + Duration::from_secs(1);
    let age = || File::options().write(true).open(file).unwrap().set_modified(long_ago).unwrap();
    let modified = || fs::metadata(file).unwrap().modified().unwrap();
    age();
    assert_eq!(get(card.name), first);
    assert_eq!(modified(), long_ago, "the plan was made anew");
    for damaged in [&first[..first.len() / 2], b"", b"{}", b"\xff\x00"] {
        fs::write(file, damaged).unwrap();
        age();
        get(card.name);
        assert_ne!(modified(), long_ago, "{} bytes were taken for a plan", damaged.len());
        Plan::restore(&fs::read(file).unwrap(), &card.target().unwrap()).unwrap();
    }
    get("another device");
    assert_eq!(files().len(), 2);
}

fn packs_are_accepted() {
    let addresses =
        Forward { q: 256, k: 512, v: 768, o: 1024, stats: 1280, key_lengths: 1536, query_lengths: 1792 };
    pack(&addresses.memory(), &Pass::Forward.numbers(0.1), 2048).unwrap();
    let backward = Backward { saved: addresses, d_o: 2304, dq: 2560, dk: 2816, dv: 3072 };
    pack(&backward.memory([4096, 8192]), &Pass::Backward.numbers(0.1), 16384).unwrap();
}
