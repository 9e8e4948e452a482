//! What a newcomer does first: `init`, `train`, `sample` and `score` on images of his own.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use common::{demo_pictures, tenggat, text};

const NAMES: [&str; 5] = ["automobile", "bell", "drum", "fox", "house"];

/// Five captioned images in `pictures`.
fn pictures(folder: &Path) -> PathBuf {
    let set = folder.join("pictures");
    fs::create_dir(&set).unwrap();
    for name in NAMES {
        for extension in ["png", "txt"] {
            let file = format!("{name}.{extension}");
            fs::copy(demo_pictures("train").join(&file), set.join(&file)).unwrap();
        }
    }
    set
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    tenggat().current_dir(folder).args(arguments).env("HF_HUB_OFFLINE", "1").output().unwrap()
}

fn fine(folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    text(&output)
}

fn fails(folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", text(&output));
    text(&output)
}

#[test]
fn captions_become_sample_prompts_and_images_are_held_out() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    pictures(here);
    let said = fine(here, &["init", "pictures", "--model", "mini", "--held-out", "2"]);
    assert!(said.contains("5 images, 2 of them held out") && said.contains("drawings of 128"), "{said}");
    let job = fs::read_to_string(here.join("pictures.yaml")).unwrap();
    for caption in ["automobile, neon sign style", "bell, neon sign style", "fox, neon sign style"] {
        assert!(job.contains(&format!("- \"{caption}\"")), "{job}");
    }
    let list = |part: &str| -> Vec<String> {
        let text = fs::read_to_string(here.join(format!("pictures.{part}.json"))).unwrap();
        let list: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
        list.keys().map(|path| Path::new(path).file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    };
    assert_eq!((list("train"), list("held-out")), {
        let own = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        (own(&["automobile", "drum", "house"]), own(&["bell", "fox"]))
    });
    let said = fine(here, &["check", "pictures.yaml"]);
    assert!(
        said.contains("ok, 0 warnings") && said.contains("3 images") && said.contains("2 images"),
        "{said}"
    );

    fs::write(here.join("pictures.yaml"), job.replace("steps: 2000", "steps: 3")).unwrap();
    let said = fine(here, &["train", "pictures.yaml"]);
    // Bare model and LoRA are shown once, side by side.
    assert_eq!(said.matches("error on 2 unseen images").count(), 1, "{said}");
    assert!(said.contains("velocity at 16 noise levels") && !said.contains("bare model "), "{said}");
    assert!(here.join("output/pictures/sheet.png").is_file());
    // Several prompts give sheets.
    assert!(here.join("output/pictures/sheets/000000003.jpg").is_file());

    let said = fails(here, &["init", "pictures", "--out", "x.yaml", "--held-out", "5"]);
    assert!(said.contains("leaves nothing to train on"), "{said}");
    assert!(fails(here, &["init", "pictures/fox.png"]).contains("is a file; name the folder"));
}

#[test]
fn a_lora_is_used_by_the_name_of_its_run() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    pictures(here);
    fine(here, &["init", "pictures", "--model", "mini"]);
    let job = fs::read_to_string(here.join("pictures.yaml")).unwrap();
    fs::write(here.join("pictures.yaml"), job.replace("steps: 2000", "steps: 2")).unwrap();
    fine(here, &["train", "pictures.yaml"]);

    // The run knows the model, the prompts and the size.
    let said = fine(here, &["sample", "--lora", "output/pictures", "--steps", "2"]);
    assert!(said.contains("sample-3.png"), "{said}");
    assert_eq!(image::image_dimensions(here.join("sample-1.png")).unwrap(), (128, 128));
    let file = "output/pictures/last.safetensors";
    fine(here, &["sample", "--lora", file, "--prompt", "fox", "--size", "64x96", "--steps", "1"]);
    assert_eq!(image::image_dimensions(here.join("sample.png")).unwrap(), (64, 96));
    // Without a run, the size suits the model.
    fine(here, &["sample", "--model", "mini", "--prompt", "fox", "--steps", "1", "--out", "bare.png"]);
    assert_eq!(image::image_dimensions(here.join("bare.png")).unwrap(), (128, 128));
    assert!(fails(here, &["sample", "--prompt", "fox"]).contains("--model"));
    assert!(fails(here, &["sample", "--model", "mini"]).contains("--prompt"));
    assert!(fails(here, &["sample", "--lora", "pictures", "--model", "mini"]).contains("has no LoRA"));

    fs::create_dir_all(here.join("one")).unwrap();
    let said = fails(here, &["score", "--model", "mini", "--data", "one"]);
    assert!(said.contains("--data one has no image") && !said.contains("folder_path"), "{said}");
    for file in ["fox.png", "fox.txt"] {
        fs::copy(demo_pictures("train").join(file), here.join("one").join(file)).unwrap();
    }
    let args = ["score", "--lora", "output/pictures", "--data", "one", "--noises", "1", "--seeds", "1"];
    let said = fine(here, &[&args[..], &["--steps", "2", "--long-side", "64"]].concat());
    assert!(said.contains("error on 1 test image;"), "{said}");
}

#[test]
fn a_budget_in_which_no_step_fits_is_a_failure() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let job = common::job(here, "batch_size: 1");
    let job = job.to_str().unwrap();
    let said = fails(here, &["train", job, "--budget", "1s"]);
    assert!(said.contains("no step fitted into the budget") && said.contains("longer budget"), "{said}");
    let output = run(here, &["train", job, "--budget", "-5m"]);
    assert!(!output.status.success() && !text(&output).contains("use '-- -5m'"), "{}", text(&output));
}

#[test]
fn check_says_how_much_of_an_image_is_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let set = here.join("pictures");
    fs::create_dir(&set).unwrap();
    image::RgbImage::from_pixel(180, 120, image::Rgb([9, 90, 9])).save(set.join("a.png")).unwrap();
    fs::write(set.join("a.txt"), "a meadow").unwrap();
    fine(here, &["init", "pictures", "--model", "mini"]);
    let said = fine(here, &["check", "pictures.yaml"]);
    // 192 × 128 after resizing, cut to a square.
    assert!(said.contains("1 image, 1 entry an epoch, 128×128, up to 33 % of an image cut off"), "{said}");
}
