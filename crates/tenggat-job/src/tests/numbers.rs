//! Every number of every key: what is in range is read, all else is refused by name, and nothing panics.

use super::frame::{TYPICAL, file_with, job, parse, with};
use crate::keys;

/// Numbers that no author means, and some that they may.
const NUMBERS: [&str; 16] = [
    "0",
    "-1",
    "1",
    "0.5",
    "1000000000",
    "1e18",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "340282366920938463463374607431768211456",
    "1e300",
    "-1e300",
    ".nan",
    ".inf",
    "-.inf",
];

#[test]
fn no_number_of_any_key_panics_and_those_out_of_range_are_named() {
    let mut numeric = 0;
    for section in keys::sections() {
        for key in section.keys.iter().filter(|key| !["config", "process"].contains(&key.name)) {
            numeric += usize::from(key.range.is_some());
            for number in NUMBERS {
                let read = parse(&file_with(section.path, &format!("{}: {number}, ", key.name)));
                let Some(range) = key.range else { continue };
                let value: f64 = number.trim_start_matches(['.']).parse().unwrap_or(f64::NAN);
                if number.contains("inf") || !range.contains(value) {
                    let error = read.err().unwrap_or_else(|| panic!("{}: {number}", key.name)).to_string();
                    assert!(error.contains(&format!(".{}`", key.name)), "{}: {number}: {error}", key.name);
                }
            }
        }
    }
    assert!(numeric > 60, "{numeric} numeric keys");
}

#[test]
fn ranges_hold_for_inline_flags_as_for_keys() {
    let flag = |flag: &str| parse(&with("a [trigger] on a table", &format!("a --{flag}")));
    for wrong in ["w 1000000000", "h 0", "w 31", "s 0", "s 4294967296", "l nan", "l 1e300", "m inf", "m -1e9"]
    {
        let error = flag(wrong).unwrap_err().to_string();
        assert!(error.contains(&format!("`--{wrong}`")) && error.contains("out of range"), "{error}");
    }
    let prompt = flag("w 8192 --h 32 --s 1000 --l 0 --m -1").unwrap().0.sample.prompts[0].clone();
    assert_eq!((prompt.width, prompt.height, prompt.steps), (8192, 32, 1000));
}

#[test]
fn zero_steps_between_saves_and_samples_mean_never() {
    let never = with("save_every: 250", "save_every: 0").replace("sample_every: 250", "sample_every: 0");
    let job = job(&never);
    assert_eq!((job.save.every, job.sample.every, job.sample.enabled), (0, 0, true));
}

#[test]
fn accumulation_is_read_under_either_name() {
    let read = |keys: &str| parse(&with("gradient_accumulation: 1", keys));
    let batches = |keys: &str| read(keys).unwrap().0.train.gradient_accumulation;
    assert_eq!(batches("gradient_accumulation: 3"), 3);
    assert_eq!(batches("gradient_accumulation_steps: 4"), 4);
    assert_eq!(batches("gradient_accumulation: 1\n        gradient_accumulation_steps: 4"), 4);
    assert_eq!(batches("gradient_accumulation: 4\n        gradient_accumulation_steps: 1"), 4);
    let error =
        read("gradient_accumulation: 2\n        gradient_accumulation_steps: 4").unwrap_err().to_string();
    assert!(error.contains("write one of the two keys"), "{error}");
}

#[test]
fn the_key_that_holds_the_number_is_blamed() {
    for (from, to, key) in [
        ("width: 1024", "width: 0", "`config.process[].sample.width`"),
        ("height: 1000", "height: 16", "`config.process[].sample.height`"),
        ("sample_steps: 25", "sample_steps: 0", "`config.process[].sample.sample_steps`"),
        ("linear: 16", "linear: 100000", "`config.process[].network.linear`"),
        (
            "batch_size: 1",
            "batch_size: 9223372036854775807",
            "`config.process[].train.batch_size`: 9223372036854775807 is out of range",
        ),
        ("steps: 2000", "min_denoising_steps: 1000", "`config.process[0].train.min_denoising_steps`"),
    ] {
        let error = parse(&with(from, to)).unwrap_err().to_string();
        let line = TYPICAL[..TYPICAL.find(from).unwrap()].matches('\n').count() + 1;
        assert!(error.contains(key) && error.starts_with(&format!("job.yaml:{line}:")), "{to}: {error}");
    }
}

#[test]
fn rates_that_learn_nothing_or_destroy_are_warned_about() {
    let told = |to: &str| {
        let warnings = parse(&with("lr: 1e-4", to)).unwrap().1;
        warnings.into_iter().map(|w| w.message).collect::<Vec<_>>().join("; ")
    };
    assert!(told("max_loss: 5").contains("`lr` is missing"));
    assert!(told("lr: 0").contains("nothing is learnt"));
    assert!(told("lr: 5e5").contains("is a minus missing"));
    assert_eq!(told("lr: 1e-2"), "");
    let prodigy = with("optimizer: \"adamw8bit\"", "optimizer: prodigyopt").replace("lr: 1e-4", "lr: 1");
    assert_eq!(parse(&prodigy).unwrap().1, []);
    assert_eq!(job(&prodigy).train.optimiser.kind, crate::Optimiser::Prodigy);
}
