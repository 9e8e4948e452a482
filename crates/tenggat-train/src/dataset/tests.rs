//! Folders in, items out.

use image::RgbImage;

use super::*;

/// A data set with nothing but a path.
pub(super) fn set(path: impl Into<PathBuf>) -> job::Dataset {
    let text = "job: extension\nconfig:\n  name: n\n  process:\n    - type: sd_trainer\n      \
                datasets: [{folder_path: p}]\n      model: {name_or_path: m, arch: qwen_image}\n";
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
    let (items, bad) = load(&[set], Compat::default(), 1).unwrap();
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
    let (items, bad) = load(&[set(folder.path())], Compat::default(), 1).unwrap();
    assert_eq!(items.len(), 1);
    let reasons: Vec<String> = bad.iter().map(|b| b.error.to_string()).collect();
    assert!(reasons[0].contains("bad.jpg is no whole picture"), "{}", reasons[0]);
    assert!(reasons[1].contains("odd.txt is not UTF-8"), "{}", reasons[1]);
}

#[test]
fn an_empty_set_is_an_error_that_names_the_folder() {
    let folder = folder(&[]);
    let error = load(&[set(folder.path())], Compat::default(), 1).unwrap_err().to_string();
    assert!(
        error.contains(folder.path().to_str().unwrap()) && error.contains("no usable picture"),
        "{error}"
    );
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
    let (items, bad) = load(&[set(path)], Compat::default(), 1).unwrap();
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
    let (items, bad) = load(&[set(folder.path())], Compat::default(), 1).unwrap();
    assert!(bad.is_empty() && items.len() == 2);
    let broken = broken(&items);
    assert_eq!(broken.len(), 1);
    assert!(broken[0].error.to_string().contains("b.png is no whole picture"), "{}", broken[0].error);
}

#[test]
fn cuts_are_drawn_once_for_each_entry() {
    let folder = folder(&[("a.png", 200, 100, None)]);
    let set =
        job::Dataset { random_crop: true, num_repeats: 800, resolutions: vec![64], ..set(folder.path()) };
    let places = |seed| -> Vec<usize> {
        let (items, _) = load(std::slice::from_ref(&set), Compat::default(), seed).unwrap();
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
    let (items, _) = load(&[set], Compat::default(), 1).unwrap();
    assert_eq!((items[0].captions[0].as_str(), items[0].dropped.as_str()), ("a f0x fox", ""));
}
