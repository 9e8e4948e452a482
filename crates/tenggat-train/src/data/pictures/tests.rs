//! Folders in, items out.

use image::RgbImage;

use super::*;

/// A data set with nothing but a path.
pub(super) fn set(path: impl Into<PathBuf>) -> job::Dataset {
    let text = "job: extension\nconfig:\n  name: n\n  process:\n    - type: sd_trainer\n      \
                datasets: [{folder_path: p}]\n      model: {name_or_path: m, arch: qwen_image}\n      network: {}\n";
    let (job, _) = job::Job::from_str(text, Path::new("job.yaml"), None, &|_| None).unwrap();
    job::Dataset { path: path.into(), ..job.datasets[0].clone() }
}

/// An item without a file.
pub(crate) fn item() -> Item {
    Item {
        path: "a.png".into(),
        captions: vec!["a".into()],
        dropped: String::new(),
        dropout_rate: 0.0,
        crop: Crop::to_bucket(64, 64, 64),
        flip_x: false,
        flip_y: false,
        loss_multiplier: 1.0,
        mask: None,
        is_reg: false,
        network_weight: 1.0,
        dataset: 0,
        resolution: 64,
        batch_size: 1,
    }
}

fn folder(pictures: &[(&str, u32, u32, Option<&str>)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, width, height, caption) in pictures {
        RgbImage::new(*width, *height).save(folder.path().join(name)).unwrap();
        if let Some(caption) = caption {
            std::fs::write(folder.path().join(name).with_extension("txt"), caption).unwrap();
        }
    }
    folder
}

#[test]
fn items_carry_captions_crops_and_copies() {
    let folder = folder(&[("b.png", 64, 32, None), ("a.png", 128, 128, Some("a pear, ripe\n"))]);
    let set = job::Dataset {
        resolutions: vec![64, 512],
        num_repeats: 2,
        flip_x: true,
        flip_y: true,
        default_caption: Some("fruit".into()),
        ..set(folder.path())
    };
    let Loaded { items, bad, .. } = load(&[set], Compat::default(), 1).unwrap();
    assert!(bad.is_empty());
    // 2 pictures, 2 repeats, 4 with mirrored ones, 2 resolutions.
    assert_eq!(items.len(), 2 * 2 * 4 * 2);
    let names: Vec<_> = items[..4].iter().map(|i| i.path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["a.png", "b.png", "a.png", "b.png"]);
    assert_eq!((items[0].captions[0].as_str(), items[1].captions[0].as_str()), ("a pear, ripe", "fruit"));
    assert_eq!((items[0].crop.width, items[0].crop.height, items[0].resolution), (64, 64, 64));
    assert_eq!((items[16].crop.width, items[17].crop.height, items[17].resolution), (128, 32, 512));
    let flips: Vec<_> = items[..16].iter().map(|i| (i.flip_x, i.flip_y)).collect();
    let expected: Vec<_> = [(false, false), (true, false), (false, true), (true, true)]
        .into_iter()
        .flat_map(|f| [f; 4])
        .collect();
    assert_eq!(flips, expected);
}

#[test]
fn bad_pictures_are_left_out_and_listed() {
    let folder = folder(&[("good.png", 32, 32, None), ("odd.png", 32, 32, None)]);
    std::fs::write(folder.path().join("bad.jpg"), "no picture").unwrap();
    std::fs::write(folder.path().join("odd.txt"), b"\xff\xfe\x00").unwrap();
    let Loaded { items, bad, .. } = load(&[set(folder.path())], Compat::default(), 1).unwrap();
    assert_eq!(items.len(), 1);
    let reasons: Vec<String> = bad.iter().map(|b| b.error.to_string()).collect();
    assert!(reasons[0].contains("bad.jpg is not a usable image"), "{}", reasons[0]);
    assert!(reasons[1].contains("odd.txt is not UTF-8"), "{}", reasons[1]);
}

#[test]
fn an_empty_set_is_an_error_that_names_the_folder() {
    let folder = folder(&[]);
    let error = load(&[set(folder.path())], Compat::default(), 1).unwrap_err().to_string();
    assert!(error.contains(folder.path().to_str().unwrap()) && error.contains("no usable image"), "{error}");
    std::fs::write(folder.path().join("bad.jpg"), "no picture").unwrap();
    let error = load(&[set(folder.path())], Compat::default(), 1).unwrap_err().to_string();
    assert!(error.contains("1 found") && error.contains("bad.jpg"), "{error}");
}

#[test]
fn captions_are_dropped_as_often_as_asked() {
    let item = Item { dropout_rate: 0.25, captions: vec!["a".into(), "b".into()], ..item() };
    let random = Philox::new(3);
    let count = |text: &str| (0..4000).filter(|&i| item.prompt(random, 5, i) == text).count();
    // Standard deviations: √(4000·¼·¾) = 27, √(4000·⅜·⅝) = 31.
    assert!((890..1110).contains(&count("")), "{}", count(""));
    assert!((1375..1625).contains(&count("a")), "{}", count("a"));
    assert_eq!(item.prompts().collect::<Vec<_>>(), ["a", "b", ""]);
    let never = Item { dropout_rate: 1.0, ..item };
    assert_eq!(never.prompts().collect::<Vec<_>>(), [""]);
}

#[test]
fn the_mini_data_set_is_read_whole() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/mini/demo-dataset/train");
    let Loaded { items, bad, .. } = load(&[set(path)], Compat::default(), 1).unwrap();
    assert!(bad.is_empty());
    assert_eq!(items.len(), 24);
    assert!(items.iter().all(|i| (i.crop.width, i.crop.height) == (128, 128) && !i.captions[0].is_empty()));
    let pixels = load_pixels(&items[0]).unwrap();
    assert_eq!(pixels.len(), 128 * 128 * 3);
}

#[test]
fn pictures_cut_short_are_found_by_decoding_them() {
    let folder = folder(&[("a.png", 40, 40, None), ("b.png", 40, 40, None)]);
    let whole = std::fs::read(folder.path().join("b.png")).unwrap();
    std::fs::write(folder.path().join("b.png"), &whole[..whole.len() - 20]).unwrap();
    let Loaded { items, bad, .. } = load(&[set(folder.path())], Compat::default(), 1).unwrap();
    assert!(bad.is_empty() && items.len() == 2);
    let broken = broken(&items);
    assert_eq!(broken.len(), 1);
    assert!(broken[0].error.to_string().contains("b.png is not a usable image"), "{}", broken[0].error);
}

#[test]
fn cuts_are_drawn_once_for_each_entry() {
    let folder = folder(&[("a.png", 200, 100, None)]);
    let set =
        job::Dataset { random_crop: true, num_repeats: 800, resolutions: vec![64], ..set(folder.path()) };
    let places = |seed| -> Vec<usize> {
        let Loaded { items, .. } = load(std::slice::from_ref(&set), Compat::default(), seed).unwrap();
        assert!(
            items.iter().all(|i| i.crop.x + i.crop.width <= i.crop.scaled.0 && i.crop.y == items[0].crop.y)
        );
        items.iter().map(|i| i.crop.x).collect()
    };
    let (first, again, other) = (places(1), places(1), places(2));
    assert_eq!(first, again);
    assert_ne!(first, other);
    let slack = Crop::to_bucket(200, 100, 64).x * 2;
    assert!(first.contains(&0) && first.iter().max().is_some_and(|&x| x.abs_diff(slack) <= 1));
}

#[test]
fn regularisation_gets_no_trigger_word() {
    let folder = folder(&[("a.png", 64, 64, Some("a [trigger] fox"))]);
    let set = job::Dataset { is_reg: true, trigger_word: Some("f0x".into()), ..set(folder.path()) };
    let Loaded { items, .. } = load(&[set], Compat::default(), 1).unwrap();
    assert_eq!((items[0].captions[0].as_str(), items[0].dropped.as_str()), ("a f0x fox", ""));
}

/// The remarks on a data set, each without the folder that it begins with.
fn remarks(set: &job::Dataset) -> Vec<String> {
    let start = format!("{}: ", set.path.display());
    let loaded = load(std::slice::from_ref(set), Compat::default(), 1).unwrap();
    loaded.remarks.iter().map(|remark| remark.strip_prefix(&start).unwrap().to_owned()).collect()
}

#[test]
fn a_good_set_needs_no_remark() {
    let folder = folder(&[("a.png", 64, 64, Some("red")), ("b.png", 64, 64, Some("green"))]);
    let set = job::Dataset { resolutions: vec![64], ..set(folder.path()) };
    assert_eq!(remarks(&set), [""; 0]);
}

#[test]
fn captions_that_are_not_found_are_told_with_what_lies_beside() {
    let names = ["a.png", "b.png", "c.png", "d.png", "e.png"];
    let folder = folder(&names.map(|name| (name, 64, 64, Some("a fox"))));
    let named =
        |ext: &str| job::Dataset { caption_ext: ext.into(), resolutions: vec![64], ..set(folder.path()) };
    let expected = "5 of 5 images have no caption (a.png, b.png, c.png and 2 more): a.png has a.txt beside \
        it, but `caption_ext` asks for a.caption";
    assert_eq!(remarks(&named(".caption")), [expected]);
    // A trigger word does not make up for texts that somebody wrote; a default caption is meant to.
    let trigger = job::Dataset { trigger_word: Some("f0x".into()), ..named(".caption") };
    assert_eq!(remarks(&trigger), [expected]);
    let default = job::Dataset { default_caption: Some("a fox".into()), ..named(".caption") };
    assert_eq!(remarks(&default), [""; 0]);
    for (other, near) in [("a.TXT", "a.TXT"), ("a.png.txt", "a.png.txt")] {
        std::fs::remove_file(folder.path().join("a.txt")).unwrap();
        std::fs::write(folder.path().join(other), "a fox").unwrap();
        let expected = format!(
            "1 of 5 images has no caption (a.png): a.png has {near} beside it, but `caption_ext` asks for \
             a.txt"
        );
        assert_eq!(remarks(&named(".txt")), [expected]);
        std::fs::rename(folder.path().join(other), folder.path().join("a.txt")).unwrap();
    }
    std::fs::write(folder.path().join("a.txt"), " \n").unwrap();
    let expected = "1 of 5 images has no caption (a.png); write it into a.txt";
    assert_eq!(remarks(&named(".txt")), [expected]);
    let trigger = job::Dataset { trigger_word: Some("f0x".into()), ..named(".txt") };
    assert_eq!(remarks(&trigger), [""; 0]);
}

#[test]
fn kinds_that_are_not_read_are_named_and_counted() {
    let folder = folder(&[("a.png", 64, 64, Some("red"))]);
    for name in ["IMG_1.HEIC", "x.avif", "notes.md"] {
        std::fs::write(folder.path().join(name), "").unwrap();
    }
    let set = job::Dataset { resolutions: vec![64], ..set(folder.path()) };
    let expected = "2 images have formats that tenggat does not read (avif, heic): IMG_1.HEIC, x.avif; save \
        as PNG or JPEG";
    assert_eq!(remarks(&set), [expected]);
    std::fs::remove_file(folder.path().join("a.png")).unwrap();
    let error = load(&[set], Compat::default(), 1).unwrap_err().to_string();
    assert!(error.contains("2 found, none usable") && error.contains("IMG_1.HEIC has a format"), "{error}");
}

#[test]
fn masks_that_are_missing_are_told() {
    let folder = folder(&[("a.png", 64, 64, Some("red")), ("b.png", 64, 64, Some("red"))]);
    let masks = folder.path().join("masks");
    std::fs::create_dir(&masks).unwrap();
    RgbImage::new(64, 64).save(masks.join("a.png")).unwrap();
    let with = |folder: PathBuf, path: &Path| job::Dataset {
        resolutions: vec![64],
        masks: Some(job::Masks { folder: Some(folder), inverted: false, floor: 0.0 }),
        ..set(path)
    };
    let told = remarks(&with(masks.clone(), folder.path()));
    // The masks lie inside of the data set, and are no pictures of it.
    assert_eq!(told[0], "images in masks are not trained on, since they are masks or thumbnails");
    let shown = masks.display();
    assert_eq!(told[1], format!("1 of 2 images has no mask in {shown}, so the whole image counts: b.png"));
    let items = load(&[with(masks.clone(), folder.path())], Compat::default(), 1).unwrap().items;
    assert_eq!(items.iter().map(|item| item.mask.is_some()).collect::<Vec<_>>(), [true, false]);
    std::fs::rename(masks.join("a.png"), masks.join("mask-a.png")).unwrap();
    let told = remarks(&with(masks.clone(), folder.path()));
    assert!(told[1].ends_with("a mask is named like its image, but the folder has mask-a.png"), "{told:?}");
    let error = load(&[with(folder.path().join("msaks"), folder.path())], Compat::default(), 1).unwrap_err();
    assert!(error.to_string().contains("msaks"), "{error}");
}

#[test]
fn shapes_that_nobody_means_are_told() {
    let pictures = [("a.png", 64, 64, "x"), ("dot.png", 2, 2, "x"), ("line.png", 900, 3, "x")];
    let folder = folder(&pictures.map(|(name, w, h, text)| (name, w, h, Some(text))));
    let set = job::Dataset { resolutions: vec![64], ..set(folder.path()) };
    let expected = [
        "1 image is much smaller than the resolution of 64: dot.png",
        "1 image is very long and narrow: line.png; the first is trained on at 896 × 32",
    ];
    assert_eq!(remarks(&set), expected);
    let huge = job::Dataset { scale: 1e9, ..set };
    let error = load(&[huge], Compat::default(), 1).unwrap_err().to_string();
    assert!(error.contains("too long and narrow"), "{error}");
}

#[test]
fn jpegs_cut_short_are_left_out() {
    let folder = folder(&[("a.jpg", 80, 60, None), ("b.jpg", 80, 60, None), ("c.jpg", 80, 60, None)]);
    let whole = std::fs::read(folder.path().join("a.jpg")).unwrap();
    std::fs::write(folder.path().join("b.jpg"), &whole[..whole.len() * 9 / 10]).unwrap();
    let mut zeroed = whole.clone();
    zeroed[whole.len() * 9 / 10..].fill(0);
    std::fs::write(folder.path().join("c.jpg"), &zeroed).unwrap();
    let Loaded { items, .. } = load(&[set(folder.path())], Compat::default(), 1).unwrap();
    let errors: Vec<String> = broken(&items).iter().map(|bad| bad.error.to_string()).collect();
    assert_eq!(errors.len(), 2);
    assert!(errors[0].contains("b.jpg is not a usable image: it is cut short"), "{errors:?}");
    assert!(errors[1].contains("c.jpg is not a usable image: "), "{errors:?}");
    assert!(load_pixels(&items[1]).is_err() && load_whole(&items[2].path, 64).is_err());
}

/// A plain read of the first two would never come back.
#[cfg(unix)]
#[test]
fn special_files_are_left_out() {
    use std::os::unix::fs::symlink;
    let folder = folder(&[("good.png", 64, 64, Some("red")), ("text.png", 64, 64, None)]);
    let path = |name: &str| folder.path().join(name);
    assert!(std::process::Command::new("mkfifo").arg(path("pipe.png")).status().unwrap().success());
    symlink("/dev/zero", path("text.txt")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(path("socket.png")).unwrap();
    std::fs::create_dir(path("folder.png")).unwrap();
    let Loaded { items, bad, .. } = load(&[set(folder.path())], Compat::default(), 1).unwrap();
    assert_eq!(items.len(), 1);
    let named: Vec<String> = bad.iter().map(|bad| bad.error.to_string()).collect();
    assert_eq!(named.len(), 3);
    for (text, name) in named.iter().zip(["pipe.png", "socket.png", "text.txt"]) {
        assert!(text.contains(name) && text.contains("it is not a regular file"), "{text}");
    }
}
