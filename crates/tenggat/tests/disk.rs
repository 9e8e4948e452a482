//! A disk that is full: what was trained is saved all the same, or elsewhere, or the run says that it is not.
//! Small file systems in memory are mounted for that, which takes root; without it the tests say that they
//! did nothing, or fail where TENGGAT_REQUIRE_MOUNT is set.
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::small_job::{self, Job, text};

/// A file system of a given size where the run's folder goes.
struct Disk {
    path: PathBuf,
}

impl Disk {
    fn mount(path: &Path, kilobytes: u64) -> Option<Disk> {
        fs::create_dir_all(path).unwrap();
        let size = format!("size={kilobytes}k");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(path).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Disk { path: path.to_path_buf() });
        }
        assert!(std::env::var_os("TENGGAT_REQUIRE_MOUNT").is_none(), "nothing can be mounted; is this root?");
        small_job::not_tested("nothing can be mounted; run as root");
        None
    }

    fn resize(&self, kilobytes: u64) {
        let size = format!("remount,size={kilobytes}k");
        assert!(Command::new("mount").args(["-o", &size]).arg(&self.path).status().unwrap().success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

/// A run on a small disk; what cannot be placed there may go to `rescue`.
fn run(job: &Job, rescue: &Path, more: &[&str]) -> Output {
    let mut command = job.command(more);
    // The parent of the folder is on the small disk too, and so is the folder for temporary files.
    command.env("TENGGAT_RESCUE", rescue).env("TMPDIR", job.folder.path().join("out"));
    command.output().unwrap()
}

fn job_on(kilobytes: u64, train: &str) -> Option<(Job, Disk)> {
    let job = Job::new(train, "");
    let disk = Disk::mount(&job.folder.path().join("out"), kilobytes)?;
    let out = job.folder.path().display().to_string();
    job.rewrite(&format!("training_folder: '{out}'"), &format!("training_folder: '{out}/out'"));
    Some((job, disk))
}

fn file(job: &Job, name: &str) -> PathBuf {
    job.folder.path().join("out/fox").join(name)
}

fn finished_alone(train: &str) -> (Vec<u8>, u64, u64) {
    let alone = Job::new(train, "");
    alone.run(&[]);
    let kilobytes = |name: &str| fs::metadata(alone.file(name)).unwrap().len() / 1024 + 1;
    (alone.lora(), kilobytes("fox.safetensors"), kilobytes("resume.state"))
}

#[test]
fn without_any_room_the_lora_goes_elsewhere() {
    let (lora, ..) = finished_alone("steps: 5");
    let Some((job, _disk)) = job_on(100, "steps: 5") else { return };
    let rescue = job.folder.path().join("rescue");
    fs::create_dir(&rescue).unwrap();
    let output = run(&job, &rescue, &[]);
    let said = text(&output);
    assert!(output.status.success() && said.contains("the next save tries again"), "{said}");
    assert!(said.contains("rescue/fox_000000005.safetensors"), "{said}");
    assert_eq!(fs::read(rescue.join("fox_000000005.safetensors")).unwrap(), lora);
    // Nothing can be saved anywhere: that alone is a failure.
    let output = run(&job, &job.folder.path().join("out/none"), &[]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
}

#[test]
fn states_give_way_to_the_lora() {
    let (lora, lora_kb, state_kb) = finished_alone("steps: 6");
    // Room for one state and two LoRA files.
    let Some((job, disk)) = job_on(state_kb + 2 * lora_kb + 60, "steps: 6") else { return };
    let rescue = job.folder.path().join("rescue");
    let output = run(&job, &rescue, &[]);
    let said = text(&output);
    assert!(output.status.success() && said.contains("warning"), "{said}");
    for name in ["last.safetensors", "fox.safetensors"] {
        assert!(fs::read(file(&job, name)).unwrap() == lora, "{name}: {said}");
    }
    // The same command again has nothing to do, and more steps go on once there is room.
    let output = run(&job, &rescue, &[]);
    assert!(output.status.success() && text(&output).contains("this job is finished"), "{}", text(&output));
    disk.resize(100_000);
    job.rewrite("steps: 6", "steps: 7");
    let output = run(&job, &rescue, &[]);
    assert!(output.status.success() && text(&output).contains("after 6 steps"), "{}", text(&output));
}

/// With room for a single LoRA, the old one may not go before the new one is whole.
#[test]
fn an_older_lora_stays_until_a_newer_one_is_whole() {
    let (lora, lora_kb, _) = finished_alone("steps: 6");
    let Some((job, disk)) = job_on(lora_kb + 60, "steps: 6") else { return };
    let rescue = job.folder.path().join("rescue");
    let output = run(&job, &rescue, &[]);
    let said = text(&output);
    assert!(output.status.success() && said.contains("rescue/fox_000000006.safetensors"), "{said}");
    assert!(fs::read(rescue.join("fox_000000006.safetensors")).unwrap() == lora, "{said}");
    let bytes = fs::read(file(&job, "last.safetensors")).unwrap();
    assert!(safetensors::SafeTensors::deserialize(&bytes).is_ok(), "{said}");
    disk.resize(100_000);
    let output = run(&job, &rescue, &[]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(file(&job, "fox.safetensors").exists());
}

#[test]
fn a_run_that_found_no_room_at_its_end_recovers() {
    let (lora, lora_kb, _) = finished_alone("steps: 6");
    let Some((job, disk)) = job_on(40 * lora_kb, "steps: 6") else { return };
    let rescue = job.folder.path().join("rescue");
    let output = run(&job, &rescue, &[]);
    assert!(output.status.success(), "{}", text(&output));
    for name in ["last.safetensors", "fox.safetensors"] {
        fs::remove_file(file(&job, name)).unwrap();
    }
    // As a run left it that could not write the two.
    fs::write(job.folder.path().join("out/ballast"), vec![0; 200 << 20]).unwrap_err();
    let output = run(&job, &rescue, &[]);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    if !file(&job, "fox.safetensors").exists() {
        assert!(said.contains("rescue") || said.contains("warning"), "{said}");
        disk.resize(100_000);
        run(&job, &rescue, &[]);
    }
    for name in ["last.safetensors", "fox.safetensors"] {
        assert_eq!(fs::read(file(&job, name)).unwrap(), lora, "{said}");
    }
}
