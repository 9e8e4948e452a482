//! What is refused, all of it at once, and in which words.

use std::path::Path;

use super::frame::{TYPICAL, parse, with};
use crate::{Error, Job, Recompute};

#[test]
fn all_refusals_are_shown_at_once_in_the_order_of_the_file() {
    let mut text = TYPICAL.to_owned();
    for (from, to) in [
        ("linear: 16", "linear: 0"),
        ("caption_ext: \"txt\"", "buckets: false"),
        ("optimizer: \"adamw8bit\"", "optimizer: automagic"),
        ("lr: 1e-4", "lr: fast"),
        ("steps: 2000", "force_consistent_noise: true"),
        ("sample_every: 250", "sample_every: -1"),
    ] {
        text = text.replacen(from, to, 1);
    }
    let error = parse(&text).unwrap_err();
    let Error::Several { errors } = &error else { panic!("{error}") };
    let keys = ["linear", "buckets", "force_consistent_noise", "optimizer", "lr", "sample_every"];
    let shown: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(shown.len(), keys.len(), "{error}");
    for (shown, key) in shown.iter().zip(keys) {
        assert!(shown.contains(&format!(".{key}`")) && shown.contains('^'), "{key}: {shown}");
    }
    assert!(error.to_string().starts_with("6 things are wrong:\njob.yaml:12:"), "{error}");
}

#[test]
fn one_fault_is_told_once() {
    for (from, to) in [
        ("name_or_path: \"Qwen/Qwen-Image\"", "name_or_path: [a]"),
        ("folder_path: \"${DATA}/pears\"", "folder_path: 7"),
        ("resolution: [ 512, 768, 1024 ]", "resolution: [512, 0, x]"),
    ] {
        let error = parse(&with(from, to)).unwrap_err();
        assert!(matches!(error, Error::Value { .. }), "{to}: {error}");
    }
    let error = parse(&with("      network:\n        type: \"lora\"", "      network:\n        7: \"lora\""))
        .unwrap();
    assert!(error.1.iter().any(|w| w.message.contains("`7` is not a known key")));
}

#[test]
fn a_job_of_another_kind_is_refused_for_that_alone() {
    let other = with("arch: \"qwen_image:2512\"", "arch: flux").replace("lr: 1e-4", "lr: fast");
    assert!(matches!(parse(&other).unwrap_err(), Error::Refused { why, .. } if why.contains("`flux`")));
}

#[test]
fn a_job_without_a_network_would_train_the_whole_model() {
    for network in ["", "      network:\n", "      network: null\n"] {
        let start = TYPICAL.find("      network:").unwrap();
        let end = TYPICAL.find("      save:").unwrap();
        let text = format!("{}{network}{}", &TYPICAL[..start], &TYPICAL[end..]);
        let error = parse(&text).unwrap_err().to_string();
        assert!(error.contains("`config.process[0].network` is missing"), "{error}");
        assert!(error.contains("type: lora"), "{error}");
    }
}

#[test]
fn keys_of_other_trainers_are_refused_where_a_default_would_stand_in() {
    for (from, to, key) in [
        ("lr: 1e-4", "learning_rate: 1e-4", "lr"),
        ("steps: 2000", "max_train_steps: 2000", "steps"),
        ("linear: 16\n        linear_alpha: 16", "network_dim: 16", "linear"),
        ("optimizer: \"adamw8bit\"", "optimizer_type: lion", "optimizer"),
    ] {
        let error = parse(&with(from, to)).unwrap_err();
        let Error::Refused { instead, .. } = &error else { panic!("{error}") };
        assert_eq!(*instead, format!("write `{key}`"));
    }
    let (_, warnings) = parse(&with("lr: 1e-4", "lr: 1e-4\n        learning_rate: 2e-4")).unwrap();
    assert!(warnings[0].message.contains("did you mean `lr`?"), "{}", warnings[0]);
}

#[test]
fn files_that_are_no_job_are_refused_in_plain_words() {
    let two = format!("{TYPICAL}---\njob: extension\n");
    let error = parse(&two).unwrap_err().to_string();
    assert!(error.contains("several YAML documents"), "{error}");
    let path = r#"folder_path: "C:\Users\me\new""#;
    let error = parse(&with("folder_path: \"${DATA}/pears\"", path)).unwrap_err().to_string();
    assert!(error.contains("single quotes"), "{error}");
    // All of these are escapes that YAML knows.
    let path = r#"folder_path: "C:\new\tables""#;
    let error = parse(&with("folder_path: \"${DATA}/pears\"", path)).unwrap_err().to_string();
    assert!(error.contains("single quotes") && error.contains("folder_path"), "{error}");
    for (path, refused) in [(r"a\new", true), (r"C:\example", true), (r"odd\e[2J", false)] {
        let read = parse(&with("folder_path: \"${DATA}/pears\"", &format!("folder_path: \"{path}\"")));
        assert_eq!(read.is_err(), refused, "{path}");
    }
    let folder = std::env::temp_dir();
    let read = |path: &Path| Job::from_file(path, None, &|_| None).unwrap_err().to_string();
    assert!(read(&folder).contains("a folder"));
}

#[test]
fn names_that_no_file_system_takes_are_refused() {
    for name in ["x".repeat(201), "é".repeat(101)] {
        let error = parse(&with("name: \"pears\"", &format!("name: {name}"))).unwrap_err().to_string();
        assert!(error.contains("at most 200"), "{error}");
        let error = Job::from_str(TYPICAL, Path::new("j"), Some(&name), &|_| Some("x".into())).unwrap_err();
        assert!(error.to_string().contains("`config.name`"), "{error}");
    }
    assert!(parse(&with("name: \"pears\"", &format!("name: {}", "x".repeat(200)))).is_ok());
    assert!(parse(&with("name: \"pears\"", "name: \"a\\0b\"")).is_err());
}

#[test]
fn the_truth_values_of_yaml_1_1_are_read_alike() {
    let recompute = |value: &str| {
        let text = with("gradient_checkpointing: true", &format!("gradient_checkpointing: {value}"));
        parse(&text).unwrap().0.train.recompute
    };
    for no in ["no", "off", "No", "OFF"] {
        assert_eq!(recompute(no), Recompute::Never, "{no}");
    }
    assert_eq!(recompute("yes"), Recompute::Auto);
}

#[test]
fn a_text_that_stands_for_nothing_is_pointed_out() {
    let (_, warnings) = parse(&with("trigger_word: \"p3ar\"", "trigger_word: None")).unwrap();
    assert!(warnings[0].message.contains("write `null`"), "{}", warnings[0]);
}

#[test]
fn a_lokr_is_said_not_to_load_in_diffusers() {
    let (_, warnings) = parse(&with("type: \"lora\"", "type: lokr")).unwrap();
    assert!(warnings[0].message.contains("diffusers cannot load"), "{}", warnings[0]);
}

#[test]
fn a_deadline_without_a_zone_is_told_so() {
    let own = "      tenggat: {deadline: '2030-01-02T03:04:05'}\n      network:";
    let error = parse(&with("      network:", own)).unwrap_err().to_string();
    assert!(error.contains("without a time zone"), "{error}");
}
