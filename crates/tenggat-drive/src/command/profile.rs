//! What is known of trainers that are run by a command of their own: how they are stopped, and what stopping
//! saves.

/// A known trainer, or any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    /// Its name.
    pub name: &'static str,
    /// Words of a command line that tell it.
    marks: &'static [&'static str],
    /// Whether Ctrl-C makes it save before it ends; else what counts is its last save.
    pub saves_on_interrupt: bool,
    /// Whether its bar of steps begins anew with every epoch.
    pub bar_of_epochs: bool,
    /// The option that says after how many steps it saves.
    pub save_every: Option<&'static str>,
    /// The option that says how many steps it takes.
    pub steps: Option<&'static str>,
}

/// Every known trainer. The sources of what is said of each are its own: musubi-tuner
/// `training/trainer_base.py`, sd-scripts `train_network.py`, OneTrainer `scripts/train.py` (an interrupted
/// run still ends with `trainer.end()`, which saves, unless `backup_before_save` is off), SimpleTuner
/// `cli/train.py`, diffusers `examples/`.
const KNOWN: [Profile; 5] = [
    Profile {
        name: "musubi-tuner",
        marks: &[
            "musubi",
            "qwen_image_train",
            "wan_train",
            "hv_train",
            "flux_2_train",
            "zimage_train",
            "krea2_train",
        ],
        saves_on_interrupt: false,
        bar_of_epochs: false,
        save_every: Some("--save_every_n_steps"),
        steps: Some("--max_train_steps"),
    },
    Profile {
        name: "OneTrainer",
        marks: &["OneTrainer", "scripts/train.py", "--config-path"],
        saves_on_interrupt: true,
        bar_of_epochs: true,
        save_every: None,
        steps: None,
    },
    Profile {
        name: "SimpleTuner",
        marks: &["simpletuner", "SimpleTuner"],
        saves_on_interrupt: false,
        bar_of_epochs: false,
        save_every: Some("--checkpoint_step_interval"),
        steps: Some("--max_train_steps"),
    },
    Profile {
        name: "diffusers",
        marks: &["train_dreambooth", "train_text_to_image", "train_controlnet", "diffusers"],
        saves_on_interrupt: false,
        bar_of_epochs: false,
        save_every: Some("--checkpointing_steps"),
        steps: Some("--max_train_steps"),
    },
    Profile {
        name: "kohya's sd-scripts",
        marks: &["sd-scripts", "train_network", "train_db", "fine_tune"],
        saves_on_interrupt: false,
        bar_of_epochs: false,
        save_every: Some("--save_every_n_steps"),
        steps: Some("--max_train_steps"),
    },
];

const OTHER: Profile = Profile {
    name: "unknown",
    marks: &[],
    saves_on_interrupt: false,
    bar_of_epochs: false,
    save_every: None,
    steps: None,
};

impl Profile {
    /// The profile that a command line tells.
    pub fn of(command: &[String]) -> Profile {
        let told = |mark: &&str| command.iter().any(|word| word.contains(*mark));
        KNOWN.into_iter().find(|profile| profile.marks.iter().any(&told)).unwrap_or(OTHER)
    }

    /// The number that an option of the command line has: `--name 25` or `--name=25`.
    pub fn number(option: Option<&str>, command: &[String]) -> Option<u64> {
        let option = option?;
        let at =
            command.iter().rposition(|word| word == option || word.starts_with(&format!("{option}=")))?;
        match command[at].split_once('=') {
            Some((_, number)) => number.parse().ok(),
            None => command.get(at + 1)?.parse().ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(String::from).collect()
    }

    #[test]
    fn commands_tell_their_trainer() {
        for (line, name) in [
            ("accelerate launch src/musubi_tuner/qwen_image_train_network.py --dit x", "musubi-tuner"),
            ("python scripts/train.py --config-path c.json", "OneTrainer"),
            ("simpletuner train", "SimpleTuner"),
            ("accelerate launch train_dreambooth_lora_qwen_image.py", "diffusers"),
            ("accelerate launch sd-scripts/flux_train_network.py", "kohya's sd-scripts"),
            ("python my_own.py", "unknown"),
        ] {
            assert_eq!(Profile::of(&words(line)).name, name, "{line}");
        }
    }

    #[test]
    fn numbers_of_options_are_read() {
        let line = words("x --max_train_steps=100 --save_every_n_steps 25 --max_train_steps 200");
        assert_eq!(Profile::number(Some("--save_every_n_steps"), &line), Some(25));
        assert_eq!(Profile::number(Some("--max_train_steps"), &line), Some(200));
        assert_eq!(Profile::number(None, &line), None);
    }
}
