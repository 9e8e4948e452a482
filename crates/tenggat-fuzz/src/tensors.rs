//! Files of weights.

use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// A file with a tensor for every float type, `m.weight` of 4 rows and 64 columns among them.
fn checkpoint() -> Vec<u8> {
    let bytes: Vec<u8> = (0..1024u32).map(|i| (i * 7 % 61) as u8).collect();
    let tensors = [
        ("m.weight", Dtype::BF16, vec![4, 64]),
        ("m.bias", Dtype::F32, vec![4]),
        ("half", Dtype::F16, vec![2, 3]),
        ("double", Dtype::F64, vec![3]),
        ("codes", Dtype::U8, vec![5]),
        ("scalar", Dtype::F32, vec![]),
        ("empty", Dtype::F32, vec![0, 7]),
    ];
    let views = tensors.map(|(name, dtype, shape)| {
        let len = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        (name, TensorView::new(dtype, shape, &bytes[..len]).expect("a tensor"))
    });
    safetensors::serialize(views, None).expect("a file")
}

pub mod weights {
    //! A folder of weights: one file, or an index beside a file, and all tensors of it.

    use tenggat_models::weights::Weights;
    use tenggat_tensor::{DType, Device};

    use crate::scratch::Scratch;

    /// What begins like JSON is an index, everything else the file.
    pub fn run(bytes: &[u8]) {
        let scratch = Scratch::new();
        if bytes.first() == Some(&b'{') {
            scratch.write("model.safetensors.index.json", bytes);
            scratch.write("a.safetensors", &super::checkpoint());
        } else {
            scratch.write("model.safetensors", bytes);
        }
        let Ok(weights) = Weights::open(scratch.folder(), "model") else { return };
        let _ = weights.metadata();
        for name in weights.names() {
            let Ok(shape) = weights.shape(name) else { continue };
            for dtype in [DType::F32, DType::BF16] {
                let _ = weights.tensor(name, shape, &Device::cpu(), dtype);
            }
            if let Ok(stored) = weights.stored(name, shape) {
                let _ = stored.read::<f32>(0..1, &mut [0.0]);
            }
        }
    }

    /// A file, and an index.
    pub fn seeds() -> Vec<Vec<u8>> {
        let index = br#"{"metadata": {"total_size": 9}, "weight_map": {"m.weight": "a.safetensors", "x": "a.safetensors"}}"#;
        vec![super::checkpoint(), index.to_vec()]
    }
}

pub mod quantised {
    //! A file of quantised matrices; the first byte says of which format.

    use tenggat_models::weights::{Checkpoint, Matrix, Modules, Quantisation, QuantisedFile, Weights};
    use tenggat_tensor::weight::Format;
    use tenggat_tensor::{DType, Device};

    use crate::scratch::Scratch;

    const FORMATS: [&str; 5] = ["uint4", "uint3", "int8", "qint8", "qfloat8"];

    fn format(first: u8) -> Format {
        FORMATS[usize::from(first) % FORMATS.len()].parse().expect("a format")
    }

    fn matrix() -> Matrix {
        Matrix::stacked(vec!["m".into()], 64, 4)
    }

    /// See the module.
    pub fn run(bytes: &[u8]) {
        let Some((&first, bytes)) = bytes.split_first() else { return };
        let scratch = Scratch::new();
        let path = scratch.write("a.safetensors", bytes);
        let Ok(file) = QuantisedFile::open(&path) else { return };
        if let Ok(quantised) = file.matrix(&matrix(), format(first)) {
            let _ = quantised.dequantise(&Device::cpu(), DType::F32);
        }
    }

    /// One file of each format.
    pub fn seeds() -> Vec<Vec<u8>> {
        (0..FORMATS.len() as u8).map(seed).collect()
    }

    fn seed(first: u8) -> Vec<u8> {
        let scratch = Scratch::new();
        scratch.write("model.safetensors", &super::checkpoint());
        let weights = Weights::open(scratch.folder(), "model").expect("a folder");
        let device = Device::cpu();
        let from = Checkpoint::new(weights, "", &device, DType::F32, DType::BF16);
        let wanted = Quantisation { format: format(first), recovery: None, cache: None };
        let from = from.quantised(&wanted, Modules::All, &[], &|_, _| {}).expect("a format");
        let path = scratch.path("quantised.safetensors");
        QuantisedFile::write(&path, &from, &[matrix()], &|_, _| {}).expect("a file");
        [vec![first], std::fs::read(path).expect("a file")].concat()
    }
}
