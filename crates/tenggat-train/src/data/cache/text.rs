//! Embeddings of captions.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

use super::kept::{self, ENCODER};
use super::{Misfit, Settings, Unfit, Usage, name};
use crate::files::tensor_file::{self, Entry};

/// Name of the embedding, `[1, tokens, width]`.
const EMBEDDING: &str = "text_embed";
/// Name of the mask, `[1, tokens]` i64, ones.
const MASK: &str = "attention_mask";

/// The embedding of one caption.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// Tokens, without padding.
    pub tokens: usize,
    /// Channels of a token.
    pub width: usize,
    /// `[tokens, width]`.
    pub values: Vec<f32>,
}

/// A caption that will be needed for a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// The picture: upstream keeps a file for each.
    pub picture: &'a Path,
    /// The caption.
    pub caption: &'a str,
    /// Whether files are read and written for it.
    pub on_disk: bool,
}

/// Embeddings of all captions, each encoded once at most: from cache files where they are good, else from
/// `encode`. Every request that is to be on disk has its file afterwards. `width` is the text encoder's.
///
/// # Errors
/// Those of `encode`.
pub fn texts<E>(
    requests: &[Request<'_>],
    width: usize,
    settings: Settings<'_>,
    mut encode: impl FnMut(&[&str]) -> Result<Vec<Embedding>, E>,
) -> Result<(BTreeMap<String, Embedding>, Usage), E> {
    let mut usage = Usage::default();
    let mut found: BTreeMap<String, Embedding> = BTreeMap::new();
    let mut without_file = Vec::new();
    let mut missing = BTreeSet::new();
    for request in requests {
        match request.on_disk.then(|| read(request, width, settings)) {
            Some(Ok(embedding)) => {
                // Where files disagree, the first counts.
                found.entry(request.caption.into()).or_insert(embedding);
                continue;
            }
            Some(Err(unfit)) => {
                usage.damaged += usize::from(unfit == Unfit::Damaged);
                without_file.push(request);
            }
            None => {}
        }
        missing.insert(request.caption);
    }
    usage.read = found.len();
    usage.misfits = misfits(&without_file).filter(|(_, why)| *why == Misfit::Spaces || usage.read == 0);
    let missing: Vec<&str> = missing.into_iter().filter(|caption| !found.contains_key(*caption)).collect();
    let to_disk: BTreeSet<&str> = without_file.iter().map(|r| r.caption).collect();
    for group in missing.chunks(settings.at_once.max(1)) {
        for (caption, mut embedding) in group.iter().zip(encode(group)?) {
            if to_disk.contains(caption) {
                super::rounded(&mut embedding.values, settings.dtype);
            }
            usage.encoded += 1;
            found.insert((*caption).into(), embedding);
        }
    }
    for request in without_file {
        if let Some(embedding) = found.get(request.caption) {
            write(request, embedding, settings, &mut usage);
        }
    }
    Ok((found, usage))
}

/// Whether embeddings of another program lie where these are missing, for how many pictures, and why they do
/// not fit.
fn misfits(missing: &[&Request<'_>]) -> Option<(usize, Misfit)> {
    let mut folders: BTreeMap<PathBuf, BTreeSet<String>> = BTreeMap::new();
    let (mut spaced, mut others) = (BTreeSet::new(), BTreeSet::new());
    for request in missing {
        let path = name::text_path(request.picture, request.caption);
        let (Some(folder), Some(stem)) = (path.parent(), request.picture.file_stem()) else { continue };
        let names = folders.entry(folder.to_path_buf()).or_insert_with(|| {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        });
        let start = format!("{}_", stem.to_string_lossy());
        let length = start.len() + name::HASH_AND_END;
        let mut own = names.range(start.clone()..).take_while(|name| name.starts_with(&start));
        if !path.exists() && own.any(|name| name.len() == length) {
            others.insert(request.picture);
        }
        let is_there = |caption: &String| name::text_path(request.picture, caption).exists();
        if upstream_spellings(request.caption).iter().any(is_there) {
            spaced.insert(request.picture);
        }
    }
    match (spaced.len(), others.len()) {
        (0, 0) => None,
        (0, n) => Some((n, Misfit::Text)),
        (n, _) => Some((n, Misfit::Spaces)),
    }
}

/// How ai-toolkit may spell a caption: with two spaces behind a comma, and with the end of the file's line.
fn upstream_spellings(caption: &str) -> Vec<String> {
    let commas = caption.replace(',', ", ");
    let spellings = [&commas[..], caption]
        .into_iter()
        .flat_map(|text| ["", "\n", "\r\n", " "].into_iter().map(move |end| format!("{text}{end}")));
    spellings.filter(|text| text != caption).collect()
}

fn read(request: &Request<'_>, width: usize, settings: Settings<'_>) -> Result<Embedding, Unfit> {
    let kept = kept::read(&name::text_path(request.picture, request.caption), settings.encoder, None)?;
    let tensors = SafeTensors::deserialize(&kept.bytes).map_err(|_| Unfit::Damaged)?;
    let (shape, mut values) = kept::values(&tensors, EMBEDDING).ok_or(Unfit::Damaged)?;
    let &[1, padded, own] = &shape[..] else { return Err(Unfit::Missing) };
    let tokens = match tensors.tensor(MASK) {
        Ok(mask) => ones(&mask).filter(|_| mask.shape() == [1, padded]).ok_or(Unfit::Damaged)?,
        Err(_) => padded,
    };
    if own != width || tokens == 0 {
        return Err(Unfit::Missing);
    }
    values.truncate(tokens * width);
    Ok(Embedding { tokens, width, values })
}

/// Number of ones at the start of a mask; `None` if there is a one after a zero, or another type of mask.
fn ones(mask: &safetensors::tensor::TensorView<'_>) -> Option<usize> {
    let set: Vec<bool> = match mask.dtype() {
        Dtype::I64 => mask.data().chunks_exact(8).map(|b| b.iter().any(|&b| b != 0)).collect(),
        Dtype::BOOL | Dtype::U8 => mask.data().iter().map(|&b| b != 0).collect(),
        _ => tensor_file::floats(mask).ok()?.iter().map(|&v| v != 0.0).collect(),
    };
    let ones = set.iter().take_while(|&&s| s).count();
    set[ones..].iter().all(|&s| !s).then_some(ones)
}

fn write(request: &Request<'_>, embedding: &Embedding, settings: Settings<'_>, usage: &mut Usage) {
    let Embedding { tokens, width, values } = embedding;
    let mask = Entry {
        name: MASK.into(),
        dtype: Dtype::I64,
        shape: vec![1, *tokens],
        bytes: std::iter::repeat_n(1i64.to_le_bytes(), *tokens).flatten().collect(),
    };
    let entries =
        vec![Entry::floats(EMBEDDING.into(), vec![1, *tokens, *width], values, settings.dtype), mask];
    let metadata = [(ENCODER.to_owned(), settings.encoder.to_owned())];
    usage.write(&name::text_path(request.picture, request.caption), &metadata, entries);
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::job::SaveType;

    const SETTINGS: Settings<'static> = Settings { dtype: SaveType::F32, encoder: "a", at_once: 2 };

    /// Encodes a caption to as many tokens as it has letters, and notes it.
    fn run(
        requests: &[Request<'_>],
        settings: Settings<'_>,
    ) -> (BTreeMap<String, Embedding>, Usage, Vec<Vec<String>>) {
        let mut asked = Vec::new();
        let encode = |captions: &[&str]| -> Result<Vec<Embedding>, Infallible> {
            asked.push(captions.iter().map(|c| c.to_string()).collect());
            let one = |c: &&str| Embedding {
                tokens: c.len() + 1,
                width: 3,
                values: vec![c.len() as f32 + 0.1; 3 * (c.len() + 1)],
            };
            Ok(captions.iter().map(one).collect())
        };
        let (found, usage) = texts(requests, 3, settings, encode).unwrap();
        (found, usage, asked)
    }

    fn request<'a>(picture: &'a Path, caption: &'a str) -> Request<'a> {
        Request { picture, caption, on_disk: true }
    }

    #[test]
    fn captions_are_encoded_once_and_kept_for_every_picture() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a.png"), folder.path().join("b.png"));
        let requests = [request(&a, "red"), request(&a, ""), request(&b, "green"), request(&b, "")];
        let (first, usage, asked) = run(&requests, SETTINGS);
        assert_eq!(asked, [vec!["", "green"], vec!["red"]]);
        assert_eq!((usage.read, usage.encoded, first.len()), (0, 3, 3));
        assert!(requests.iter().all(|r| name::text_path(r.picture, r.caption).is_file()));
        let (second, usage, asked) = run(&requests, SETTINGS);
        assert_eq!((usage.read, usage.encoded, asked.len()), (3, 0, 0));
        assert_eq!(first, second);
        let memory = requests.map(|r| Request { on_disk: false, ..r });
        assert_eq!(run(&memory, SETTINGS).1.encoded, 3);
        // A picture that is new shares what another has.
        let c = folder.path().join("c.png");
        let (_, usage, asked) = run(&[requests[0], request(&c, "red")], SETTINGS);
        assert!(asked.is_empty() && usage.encoded == 0 && name::text_path(&c, "red").is_file());
    }

    #[test]
    fn embeddings_that_do_not_fit_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a.png"), folder.path().join("b.png"));
        let write = |picture: &Path, caption: &str| run(&[request(picture, caption)], SETTINGS);
        assert_eq!(write(&a, "red,  ripe\n").1.misfits, None);
        write(&b, "green");
        // As ai-toolkit spells it, another text, and what fits.
        let (_, usage, _) = run(&[request(&a, "red, ripe"), request(&b, "green")], SETTINGS);
        assert_eq!(usage.misfits, Some((1, Misfit::Spaces)));
        // A caption that was edited is no news, a folder of which nothing is of use is.
        let (_, usage, _) = run(&[request(&a, "blue"), request(&b, "green")], SETTINGS);
        assert_eq!(usage.misfits, None);
        let (_, usage, _) = run(&[request(&a, "yellow"), request(&b, "black")], SETTINGS);
        assert_eq!(usage.misfits, Some((2, Misfit::Text)));
        assert_eq!(run(&[request(&a, "yellow"), request(&b, "black")], SETTINGS).1.misfits, None);
    }

    #[test]
    fn damage_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let a = folder.path().join("a.png");
        let good = run(&[request(&a, "red")], SETTINGS).0;
        let path = name::text_path(&a, "red");
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 40;
        bytes[last] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let (found, usage, _) = run(&[request(&a, "red")], SETTINGS);
        assert_eq!((found, usage.damaged, usage.encoded), (good, 1, 1));
    }

    #[test]
    fn files_have_upstreams_keys_and_shapes() {
        let folder = tempfile::tempdir().unwrap();
        let a = folder.path().join("a.png");
        run(&[request(&a, "red")], Settings { dtype: SaveType::Bf16, ..SETTINGS });
        let bytes = std::fs::read(name::text_path(&a, "red")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let (text, mask) = (tensors.tensor("text_embed").unwrap(), tensors.tensor("attention_mask").unwrap());
        assert_eq!((text.shape(), text.dtype()), (&[1, 4, 3][..], Dtype::BF16));
        assert_eq!((mask.shape(), mask.dtype()), (&[1, 4][..], Dtype::I64));
        assert_eq!(ones(&mask), Some(4));
    }

    #[test]
    fn padding_is_cut_off_and_bad_files_are_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let a = folder.path().join("a.png");
        let path = name::text_path(&a, "red");
        let file = |width: usize, mask: &[i64]| {
            let bytes = mask.iter().flat_map(|v| v.to_le_bytes()).collect();
            let mask_entry =
                Entry { name: MASK.into(), dtype: Dtype::I64, shape: vec![1, mask.len()], bytes };
            let text =
                Entry::floats(EMBEDDING.into(), vec![1, 5, width], &vec![7.0; 5 * width], SaveType::Bf16);
            tensor_file::write(&path, &[], &[mask_entry, text]).unwrap();
        };
        file(3, &[1, 1, 1, 0, 0]);
        let (found, usage, _) = run(&[request(&a, "red")], SETTINGS);
        assert_eq!(
            (usage.read, &found["red"]),
            (1, &Embedding { tokens: 3, width: 3, values: vec![7.0; 9] })
        );
        let cases: [(usize, &[i64]); 4] = [(3, &[1, 0, 1, 0, 0]), (3, &[0; 5]), (3, &[1; 4]), (4, &[1; 5])];
        for (width, mask) in cases {
            file(width, mask);
            let (found, usage, _) = run(&[request(&a, "red")], SETTINGS);
            assert_eq!((usage.encoded, found["red"].tokens), (1, 4), "{width} {mask:?}");
        }
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 3]).unwrap();
        assert_eq!(run(&[request(&a, "red")], SETTINGS).1.encoded, 1);
        assert_eq!(run(&[request(&a, "red")], Settings { encoder: "b", ..SETTINGS }).1.encoded, 1);
    }
}
