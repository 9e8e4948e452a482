//! Names of cache files, those of ai-toolkit: its caches are found, and ours by it.
//! Source: ai-toolkit `toolkit/dataloader_mixins.py`, `get_latent_path` and `_build_text_embedding_path`.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use md5::{Digest, Md5};
use serde_json::{Map, Value, json};

use crate::data::pictures::Item;
use crate::files::python_json;
use crate::job::ARCH;

/// Folder of latents, beside the pictures.
const LATENTS: &str = "_latent_cache";
/// Folder of text embeddings, beside the pictures.
const TEXTS: &str = "_t_e_cache";

/// Length of the hash of a name and of what follows it.
pub(super) const HASH_AND_END: usize = "0123456789abcdefghijkl.safetensors".len();

/// What a latent depends on, in upstream's words; sorted by key, as it is hashed.
pub(super) fn latent_info(item: &Item) -> Map<String, Value> {
    let crop = item.crop;
    let name = item.path.file_name().unwrap_or_default().to_string_lossy();
    let mut pairs = vec![
        ("filename", json!(name)),
        ("scale_to_width", json!(crop.scaled.0)),
        ("scale_to_height", json!(crop.scaled.1)),
        ("crop_x", json!(crop.x)),
        ("crop_y", json!(crop.y)),
        ("crop_width", json!(crop.width)),
        ("crop_height", json!(crop.height)),
        ("latent_space_version", json!(ARCH)),
        ("latent_version", json!(1)),
    ];
    // Upstream names a mirroring only where there is one.
    pairs.extend(item.flip_x.then(|| ("flip_x", json!(true))));
    pairs.extend(item.flip_y.then(|| ("flip_y", json!(true))));
    sorted(pairs)
}

/// Where the latent of an item is kept: `_latent_cache/<stem>_<hash>.safetensors` beside the picture.
pub fn latent_path(item: &Item) -> PathBuf {
    path(&item.path, LATENTS, latent_info(item))
}

/// Where the embedding of a caption is kept: `_t_e_cache/<stem>_<hash>.safetensors` beside the picture.
pub fn text_path(picture: &Path, caption: &str) -> PathBuf {
    let pairs = vec![
        ("caption", json!(caption)),
        ("text_embedding_space_version", json!(ARCH)),
        ("text_embedding_version", json!(1)),
    ];
    path(picture, TEXTS, sorted(pairs))
}

fn sorted(mut pairs: Vec<(&str, Value)>) -> Map<String, Value> {
    pairs.sort_by_key(|(key, _)| *key);
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn path(picture: &Path, folder: &str, info: Map<String, Value>) -> PathBuf {
    let hash = URL_SAFE_NO_PAD.encode(Md5::digest(python_json::dumps(&Value::Object(info))));
    let mut name = picture.file_stem().unwrap_or_default().to_os_string();
    name.push(format!("_{hash}.safetensors"));
    picture.with_file_name(folder).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::pictures::Crop;

    /// Hashes computed by Python's `json`, `hashlib` and `base64` with upstream's formula.
    #[test]
    fn names_are_those_of_the_reference() {
        let crop = Crop { scaled: (683, 384), x: 5, y: 0, width: 672, height: 384 };
        let item = Item { path: "/p/pear.png".into(), crop, ..crate::data::pictures::tests::item() };
        let cases = [
            (false, false, "lIKabEPwijlLFQWGne7YVA"),
            (true, false, "OF-gviYrIIaNOSW8QTrd7Q"),
            (true, true, "gRtfEB6UtjxBJMxdy11ymA"),
        ];
        for (flip_x, flip_y, hash) in cases {
            let expected = format!("/p/_latent_cache/pear_{hash}.safetensors");
            assert_eq!(latent_path(&Item { flip_x, flip_y, ..item.clone() }), Path::new(&expected));
        }
        let crop = Crop { scaled: (128, 128), x: 0, y: 0, width: 128, height: 128 };
        let odd = Item { path: "Birne, größe 🦊.jpg".into(), crop, ..item };
        assert_eq!(
            latent_path(&odd),
            Path::new("_latent_cache/Birne, größe 🦊_eDiOB5B1KajKJsDOoYFsKw.safetensors")
        );
        let texts = [
            ("", "ReUTt6KnbKSJntP6OywPxg"),
            ("a pear", "nYmGUxH7i7Zyd95zgQ64zA"),
            ("p3ar ", "rx2GildfQ2QNKtOWM4hJXg"),
            ("eine \"Birne\",\n größer 🦊\\", "nnsY_UO0sIoPZTepffEdcw"),
        ];
        for (caption, hash) in texts {
            let expected = format!("/p/_t_e_cache/pear.v2_{hash}.safetensors");
            assert_eq!(text_path(Path::new("/p/pear.v2.webp"), caption), Path::new(&expected));
        }
    }
}
