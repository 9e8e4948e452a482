//! From a LoRA file to an adapter of a model.

use tenggat_models::lora::Lora;
use tenggat_models::qwen_image::transformer::Transformer;
use tenggat_tensor::{DType, Tensor};

use super::{Error, LoraFile, Result};

/// An adapter of `model` with the weights of a file, strength 1. Modules of a lower rank than the highest are filled up
/// with zeros, which change nothing.
///
/// # Errors
/// The file has a module that the model lacks or of another size, or the device is out of memory.
pub fn into_lora(file: &LoraFile, model: &Transformer) -> Result<Lora> {
    let rank = file.modules.iter().map(|m| m.rank).max().unwrap_or(0);
    let find = |name: &str| file.modules.binary_search_by(|m| m.name.as_str().cmp(name)).ok();
    let layout = model.lora_layout(rank, |name| find(name).is_some());
    let wrong = |reason: String| Error::Format { path: file.path.clone(), reason };
    if layout.modules().len() < file.modules.len() {
        let known = |name: &str| layout.modules().iter().any(|m| m.name == name);
        let strange = file.modules.iter().find(|m| !known(&m.name)).map_or("", |m| m.name.as_str());
        return Err(wrong(format!("module `{strange}` is not in this model; is the LoRA of another model?")));
    }
    let mut values = vec![0.0f32; layout.len()];
    for module in layout.modules() {
        let Some(own) = find(&module.name).map(|i| &file.modules[i]) else { continue };
        if (own.input, own.output) != (module.input, module.output) {
            return Err(wrong(format!(
                "module `{}`: expected {} inputs and {} outputs, got {} and {}; is the LoRA of another model?",
                own.name, module.input, module.output, own.input, own.output
            )));
        }
        values[module.a..module.a + own.a.len()].copy_from_slice(&own.a);
        let rows = values[module.b..module.b + module.output * rank].chunks_exact_mut(rank);
        rows.zip(own.b.chunks_exact(own.rank)).for_each(|(to, from)| to[..own.rank].copy_from_slice(from));
    }
    let parameters = Tensor::from_f32(model.device(), DType::F32, &values, &[values.len()])?;
    Ok(Lora { layout, parameters, scale: 1.0 })
}
