//! Files that earlier runs have left.

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tenggat_job::SaveType;
use tenggat_train::data::cache::Settings;

const SETTINGS: Settings<'static> = Settings { dtype: SaveType::F32, encoder: "a", at_once: 2 };

/// A file of one tensor with these metadata.
fn file(name: &str, shape: &[usize], metadata: &[(&str, &str)]) -> Vec<u8> {
    let bytes: Vec<u8> =
        (0..shape.iter().product::<usize>()).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, shape.to_vec(), &bytes).expect("a tensor");
    let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    safetensors::serialize([(name, view)], Some(metadata)).expect("a file")
}

pub mod metrics {
    //! The metrics of a run, read to be shown and to be resumed.

    use tenggat_train::outcome::metrics::{self, Metrics};

    use crate::scratch::Scratch;

    /// See the module.
    ///
    /// # Panics
    /// What was kept on resuming is not what was read.
    pub fn run(bytes: &[u8]) {
        let scratch = Scratch::new();
        let path = scratch.write("metrics.jsonl", bytes);
        let records = metrics::read(&path).expect("a file that is there");
        let (mut resumed, found) = Metrics::resume(&path, 5).expect("a file that is there");
        assert!(found.records.iter().all(|record| record.step <= 5));
        if let Some(record) = records.first() {
            resumed.write(record).expect("a file that is there");
            let again = metrics::read(&path).expect("a file that is there");
            assert_eq!(again.len(), found.records.len() + 1);
        }
    }

    /// Three steps, one of them without a loss.
    pub fn seeds() -> Vec<Vec<u8>> {
        let line = |step: u32, loss: &str| {
            format!(
                "{{\"step\":{step},\"time_s\":1.5,\"loss\":{loss},\"lr\":0.0001,\"grad_norm\":1.0,\
                 \"s_per_step\":0.5,\"bucket\":\"64x64\",\"val_loss\":0.5}}\n"
            )
        };
        vec![[line(1, "0.5"), line(2, "null"), line(9, "1e300")].concat().into_bytes()]
    }
}

pub mod latent_cache {
    //! A cached latent.

    use std::convert::Infallible;

    use tenggat_train::data::cache::{Latent, latent_path, latents};
    use tenggat_train::data::pictures::{Crop, Item};

    use super::{SETTINGS, file};
    use crate::scratch::Scratch;

    /// See the module.
    ///
    /// # Panics
    /// A latent came back that is not of its shape or not finite.
    pub fn run(bytes: &[u8]) {
        let scratch = Scratch::new();
        let item = item(scratch.write("a.png", b"an image"));
        scratch.write_at(&latent_path(&item), bytes);
        let encode =
            |items: &[&Item]| -> Result<Vec<Option<Latent>>, Infallible> { Ok(vec![None; items.len()]) };
        let Ok((found, _)) = latents(&[&item], 2, SETTINGS, |_| true, encode);
        for latent in found.into_iter().flatten() {
            assert_eq!(latent.values.len(), 2 * 8 * 8);
            assert!(latent.values.iter().all(|value| value.is_finite()));
        }
    }

    /// A file of ai-toolkit's, and one that says more of itself.
    pub fn seeds() -> Vec<Vec<u8>> {
        let ours = [("tenggat_encoder", "a"), ("tenggat_source", "0123"), ("tenggat_checksum", "4567")];
        vec![file("latent", &[2, 8, 8], &[]), file("latent", &[2, 8, 8], &ours)]
    }

    fn item(path: std::path::PathBuf) -> Item {
        Item {
            path,
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
}

pub mod text_cache {
    //! A cached embedding.

    use tenggat_train::data::cache::{Embedding, Request, text_path, texts};

    use super::{SETTINGS, file};
    use crate::scratch::Scratch;

    /// See the module.
    ///
    /// # Panics
    /// An embedding came back that is not of its shape or not finite.
    pub fn run(bytes: &[u8]) {
        let scratch = Scratch::new();
        let picture = scratch.write("a.png", b"an image");
        scratch.write_at(&text_path(&picture, "a fox"), bytes);
        let request = Request { picture: &picture, caption: "a fox", on_disk: true };
        let encode = |_: &[&str]| -> Result<Vec<Embedding>, ()> { Err(()) };
        let Ok((found, _)) = texts(&[request], 3, SETTINGS, encode) else { return };
        for embedding in found.values() {
            assert_eq!(embedding.values.len(), embedding.tokens * embedding.width);
            assert!(embedding.width == 3 && embedding.values.iter().all(|value| value.is_finite()));
        }
    }

    /// A file of ai-toolkit's, and one that says more of itself.
    pub fn seeds() -> Vec<Vec<u8>> {
        let ours = [("tenggat_encoder", "a"), ("tenggat_checksum", "4567")];
        vec![file("text_embed", &[1, 5, 3], &[]), file("text_embed", &[1, 5, 3], &ours)]
    }
}
