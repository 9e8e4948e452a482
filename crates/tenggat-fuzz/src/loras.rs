//! LoRA files, and the small adapters that they are put into.

use tenggat_models::lora::{Candidate, Kind, Layout, Lora};
use tenggat_tensor::{DType, Device};

/// An adapter of two modules of 6 inputs and 4 outputs.
pub(crate) fn adapter(kind: impl Into<Kind>) -> Lora {
    let candidate = |name: &str| Candidate { name: name.into(), output: 4, trained: true };
    let layer =
        (6, vec![candidate("transformer_blocks.0.attn.to_q"), candidate("transformer_blocks.0.attn.to_k")]);
    let layout = Layout::new(kind, [layer], |_| true);
    tenggat_train::lora::initial::initialise(layout, 1, &Device::cpu(), DType::F32).expect("a small adapter")
}

pub mod lora {
    //! A LoRA or LoKr of any style, read and put into an adapter.

    use safetensors::Dtype;
    use safetensors::tensor::TensorView;
    use tenggat_models::lora::Kind;
    use tenggat_train::lora::file::{self as lora_file, Header};

    use super::adapter;
    use crate::scratch::Scratch;

    /// See the module.
    pub fn run(bytes: &[u8]) {
        let scratch = Scratch::new();
        let path = scratch.write("a.safetensors", bytes);
        if let Ok(header) = Header::read(&path) {
            let _ = (header.step(), header.software());
        }
        let Ok(file) = lora_file::load(&path) else { return };
        let _ = (file.is_finite(), file.step());
        for kind in [Kind::LowRank(2), Kind::Kronecker { factor: Some(2) }] {
            let _ = lora_file::start_from(&file, &mut adapter(kind));
        }
    }

    /// A LoRA in three styles, and a LoKr.
    pub fn seeds() -> Vec<Vec<u8>> {
        let name = "transformer_blocks.0.attn.to_q";
        let low = |prefix: &str, a: &str, b: &str| {
            file(&[(format!("{prefix}{name}{a}"), vec![2, 6]), (format!("{prefix}{name}{b}"), vec![4, 2])])
        };
        let kron = |part: &str, shape: &[usize]| (format!("diffusion_model.{name}.{part}"), shape.to_vec());
        vec![
            low("diffusion_model.", ".lora_A.weight", ".lora_B.weight"),
            low("transformer.", ".lora_down.weight", ".lora_up.weight"),
            low("lora_unet_", ".lora_down.weight", ".lora_up.weight"),
            file(&[kron("lokr_w1", &[2, 2]), kron("lokr_w2", &[2, 3]), kron("alpha", &[])]),
        ]
    }

    fn file(tensors: &[(String, Vec<usize>)]) -> Vec<u8> {
        let bytes: Vec<u8> = (0..64u8).flat_map(|i| (f32::from(i) * 0.1).to_le_bytes()).collect();
        let views = tensors.iter().map(|(name, shape)| {
            let len = 4 * shape.iter().product::<usize>();
            let view = TensorView::new(Dtype::F32, shape.clone(), &bytes[..len]).expect("a tensor");
            (name.as_str(), view)
        });
        let texts = [("training_info", r#"{"step": 3, "epoch": 1}"#), ("software", r#"{"name": "tenggat"}"#)];
        let metadata = texts.map(|(key, value)| (key.to_owned(), value.to_owned()));
        safetensors::serialize(views, Some(metadata.into())).expect("a file")
    }
}
