//! Runs that are interrupted and resumed, seen from outside: real processes, real kills.
#![cfg(unix)]
#![allow(clippy::print_stdout, reason = "tests say what they found")]

mod common;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::small_job::Job;

/// Kills a run again and again and compares it with one that was left alone; `at` gives the steps and the
/// delays.
fn killed_and_left_alone(steps: u64, at: impl IntoIterator<Item = (u64, Duration)>) -> usize {
    let train = format!("steps: {steps}");
    let (alone, killed) = (Job::new(&train, ""), Job::new(&train, ""));
    alone.run(&[]);
    let mut kills = 0;
    for (step, delay) in at {
        kills += usize::from(killed.cut_off("-KILL", step, delay));
    }
    let said = killed.run(&[]);
    assert!(said.contains("resuming") || said.contains("done"), "{said}");
    assert!(alone.lora() == killed.lora(), "the LoRA differs after {kills} kills");
    assert_eq!(alone.log(), killed.log());
    let numbered = |job: &Job| {
        let mut names: Vec<_> = fs::read_dir(job.file("")).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(numbered(&alone), numbered(&killed));
    kills
}

#[test]
fn a_killed_run_ends_with_the_bytes_of_one_left_alone() {
    let at = [(3, 0), (6, 7), (7, 13), (13, 3)].map(|(step, ms)| (step, Duration::from_millis(ms)));
    assert!(killed_and_left_alone(16, at) >= 3);
}

/// The same at twenty random steps; some twenty seconds on an idle machine.
#[test]
#[ignore = "long; `cargo test --release --test resume -- --ignored`"]
fn twenty_kills_leave_no_trace() {
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    let mut state = u64::from(seed) | 1;
    let mut below = |n: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    let mut steps: Vec<u64> = (0..20).map(|_| 2 + below(95)).collect();
    steps.sort_unstable();
    println!("seed {seed}: killed after steps {steps:?}");
    let at: Vec<_> = steps.into_iter().map(|step| (step, Duration::from_millis(below(30)))).collect();
    let kills = killed_and_left_alone(100, at);
    println!("{kills} kills");
    assert!(kills >= 15);
}

#[test]
fn an_interrupted_run_goes_on_and_a_finished_one_says_so() {
    let (alone, job) = (Job::new("steps: 12", ""), Job::new("steps: 12", ""));
    alone.run(&[]);
    assert!(job.cut_off("-TERM", 3, Duration::ZERO));
    let said = job.run(&[]);
    assert!(said.contains("resuming"), "{said}");
    assert!(alone.lora() == job.lora() && alone.log() == job.log());

    // Finished: nothing is done, and more steps go on from there.
    let before = job.lora();
    let said = job.run(&[]);
    assert!(said.contains("this job is finished, 12 steps") && said.contains("--start-over"), "{said}");
    assert!(before == job.lora());
    job.rewrite("steps: 12", "steps: 14");
    let said = job.run(&[]);
    assert!(said.contains("after 12 steps") && job.steps() == 14, "{said}");
    assert!(before != job.lora());
    assert!(!job.folder.path().join("fox.old-1").exists());

    // A state that is spoilt is no reason to lose the weights.
    fs::write(job.file("resume.state"), "spoilt").unwrap();
    job.rewrite("steps: 14", "steps: 16");
    let said = job.run(&[]);
    assert!(
        said.contains("cannot resume from") && said.contains("resume.state: ") && job.steps() == 16,
        "{said}"
    );

    // Without a state there is none in the folder.
    job.rewrite("      model:", "      tenggat: {resume: false}\n      model:");
    let said = job.run(&[]);
    assert!(said.contains("`resume: false`") && job.folder.path().join("fox.old-1").exists(), "{said}");
    assert!(!job.file("resume.state").exists());
}

#[test]
fn every_optimiser_trains_and_goes_on() {
    let mut all = Vec::new();
    for optimiser in [
        "lr: 1e-3, optimizer: adam",
        "lr: 1e-4, optimizer: lion",
        "lr: 1, optimizer: prodigy, optimizer_params: {d0: 1e-4}",
        "lr: 1e-3, optimizer: adafactor, optimizer_params: {beta1: 0.9}",
    ] {
        let (alone, job) = (Job::new("steps: 6", ""), Job::new("steps: 6", ""));
        for job in [&alone, &job] {
            job.rewrite("lr: 1e-3, optimizer: adamw8bit", optimiser);
        }
        alone.run(&[]);
        assert!(job.cut_off("-KILL", 3, Duration::ZERO));
        let said = job.run(&[]);
        assert!(said.contains("resuming") && alone.lora() == job.lora(), "{optimiser}: {said}");
        assert!(!all.contains(&job.lora()), "{optimiser} trains as another does");
        all.push(job.lora());
    }
}

#[test]
fn whatever_is_drawn_weighed_and_measured_goes_on() {
    let network = "network: {type: lora, linear: 16, linear_alpha: 16}";
    let dropped = "network: {type: lora, linear: 16, linear_alpha: 16, dropout: 0.2,
                network_kwargs: {rank_dropout: 0.1, module_dropout: 0.1}}";
    let data = "caption_dropout_rate: 0.5}";
    let varied = "caption_dropout_rate: 0.5, shuffle_tokens: true, random_crop: true, mask_path: 'SET'}
        - {folder_path: 'SET', resolution: 64, is_reg: true, flip_x: true}";
    let validation = "steps: 7, gradient_accumulation: 2, validation_config:
            {validate_every_n_steps: 3, resolution: 64, validation_items: [{image_path: 'SET/bell.png'}]}";
    let cases: [(&str, &[(&str, &str)]); 4] = [
        (
            "dropout and accumulation",
            &[(network, dropped), ("steps: 7", "steps: 7, gradient_accumulation: 3")],
        ),
        ("LoKr", &[(network, "network: {type: lokr, lokr_factor: 4}")]),
        ("masks and regularisation", &[(data, varied)]),
        (
            "validation",
            &[("steps: 7", validation), ("      model:", "      tenggat: {keep_best: true}\n      model:")],
        ),
    ];
    for (what, changes) in cases {
        let (alone, job) = (Job::new("steps: 7", ""), Job::new("steps: 7", ""));
        for job in [&alone, &job] {
            let set = job.folder.path().join("set");
            changes
                .iter()
                .for_each(|(from, to)| job.rewrite(from, &to.replace("SET", &set.display().to_string())));
        }
        // What is said of a LoKr concerns where it can be used.
        let said = alone.run(&[]);
        let unexpected =
            said.lines().find(|l| l.contains("warning") && !l.contains("diffusers cannot load a LoKr"));
        assert!(unexpected.is_none(), "{what}: {said}");
        assert!(job.cut_off("-KILL", 3, Duration::ZERO));
        let said = job.run(&[]);
        assert!(said.contains("resuming") && alone.lora() == job.lora(), "{what}: {said}");
        assert_eq!(alone.log(), job.log(), "{what}");
        let best = |job: &Job| fs::read(job.file("fox_best.safetensors")).ok();
        assert!(best(&alone) == best(&job) && best(&job).is_some() == (what == "validation"), "{what}");
    }
}

#[test]
fn the_weights_of_another_trainer_are_taken_and_its_optimiser_is_not() {
    let job = Job::new("steps: 4", "");
    job.run(&[]);
    fs::copy(job.file("last.safetensors"), job.file("fox_000000004.safetensors")).unwrap();
    for name in
        ["resume.state", "resume.state.previous", "fox.safetensors", "last.safetensors", "metrics.jsonl"]
    {
        fs::remove_file(job.file(name)).unwrap();
    }
    fs::write(job.file("optimizer.pt"), "PK").unwrap();
    let said = job.run(&[]);
    assert!(said.contains("this job is finished, 4 steps"), "{said}");
    job.rewrite("steps: 4", "steps: 6");
    let said = job.run(&[]);
    assert!(said.contains("optimizer.pt is ai-toolkit's") && said.contains("after 4 steps"), "{said}");
    assert_eq!(job.log().first().unwrap()[0], "5");
    assert_eq!(job.steps(), 2);
}

#[test]
fn a_budget_goes_on_where_it_was_and_is_not_given_twice() {
    let job = Job::new("weight_decay: 0", "");
    job.rewrite(", weight_decay: 0", "");
    let mut child = job.command(&["--budget", "12s"]).stdout(Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    while !job.file("resume.state").exists() || began.elapsed().as_secs_f64() < 5.0 {
        assert!(child.try_wait().unwrap().is_none(), "it ended after {:?}", began.elapsed());
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let before = job.log();
    let again = Instant::now();
    let said = job.run(&["--budget", "12s"]);
    let took_s = again.elapsed().as_secs_f64();
    assert!(said.contains("resuming") && said.contains("spent"), "{said}");
    // 5 s are spent, the last save may be a second older.
    assert!((4.0..8.5).contains(&took_s), "{took_s}");
    let after = job.log();
    assert!(after.len() > before.len());
    // The rate goes on falling without a jump, down to nothing; a stall of the machine can take the time of
    // the last step.
    let rates: Vec<f64> = after.iter().map(|line| line[2].parse().unwrap()).collect();
    assert!(rates.windows(2).all(|pair| pair[1] <= pair[0] && pair[0] - pair[1] < 3e-4), "{rates:?}");
    assert!(rates.last().unwrap() <= &(0.01 * rates[0]), "{rates:?}");
    let said = job.run(&["--budget", "12s"]);
    assert!(said.contains("a longer budget"), "{said}");
}

/// Another picture, another caption: the order of the batches is another too, which is said; the same ones
/// are not worth a word.
#[test]
fn pictures_that_changed_between_two_parts_of_a_run_are_told() {
    type Change = (&'static str, bool, fn(&Path));
    let changes: [Change; 3] = [
        ("nothing", false, |_| {}),
        ("a picture", true, |set| {
            fs::copy(set.join("fox.png"), set.join("zebra.png")).unwrap();
            fs::write(set.join("zebra.txt"), "a zebra").unwrap();
        }),
        ("a caption", true, |set| fs::write(set.join("bell.txt"), "another bell").unwrap()),
    ];
    for (what, told, change) in changes {
        let job = Job::new("steps: 3", "");
        job.run(&[]);
        change(&job.folder.path().join("set"));
        job.rewrite("steps: 3", "steps: 5");
        let said = job.run(&[]);
        assert!(said.contains("going on after 3 steps") || said.contains("after 3 steps"), "{what}: {said}");
        assert_eq!(said.contains("images or captions changed"), told, "{what}: {said}");
    }
}

/// The state knows the moment that a run was given, so that the same one is no more time and a later one is.
#[test]
fn a_deadline_is_told_from_a_later_one() {
    let job = Job::new("weight_decay: 0", "");
    job.rewrite(", weight_decay: 0", "");
    let deadline = jiff::Timestamp::now() + Duration::from_secs(7);
    let at = |moment: jiff::Timestamp| ["--deadline".to_owned(), moment.to_string()];
    let run = |arguments: [String; 2]| job.run(&arguments.each_ref().map(String::as_str));
    run(at(deadline));
    let (state, steps) = (fs::read(job.file("resume.state")).unwrap(), job.steps());
    let state = String::from_utf8_lossy(&state);
    let (_, value) = state.split_once("deadline_unix_s").expect("the moment of the deadline");
    let value = value.trim_start_matches(['"', '\\', ':']).split([',', '}']).next().unwrap();
    let noted_s: f64 = value.parse().unwrap();
    let given_s = deadline.as_millisecond() as f64 / 1000.0;
    assert!((noted_s - given_s).abs() < 0.5, "{noted_s}, given {given_s}");
    if jiff::Timestamp::now() + Duration::from_millis(200) < deadline {
        let said = run(at(deadline));
        assert!(said.contains("is finished") && said.contains("a later deadline"), "{said}");
        assert_eq!(job.steps(), steps);
    }
    let said = run(at(jiff::Timestamp::now() + Duration::from_secs(7)));
    assert!(job.steps() > steps, "{said}");
}
