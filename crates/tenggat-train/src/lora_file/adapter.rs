//! From a LoRA file to an adapter of a model.

use tenggat_models::lora::{Layout, Lora};
use tenggat_models::qwen_image::transformer::Transformer;
use tenggat_tensor::{DType, Tensor};

use super::{Error, Loaded, LoraFile, Result};

/// An adapter of `model` with the weights of a file, strength 1. Modules of a lower rank than the highest are filled up
/// with zeros, which change nothing.
///
/// # Errors
/// The file has a module that the model lacks or of another size, or the device is out of memory.
pub fn into_lora(file: &LoraFile, model: &Transformer) -> Result<Lora> {
    let rank = highest_rank(file);
    let layout = model.lora_layout(rank, |name| find(file, name).is_some());
    let mut values = vec![0.0f32; layout.len()];
    put(file, &layout, &mut values)?;
    let parameters = Tensor::from_f32(model.device(), DType::F32, &values, &[values.len()])?;
    Ok(Lora::new(layout, parameters))
}

/// Gives an adapter that is about to be trained the weights of a file. Modules that the file lacks stay as they are;
/// where its rank is lower, so do the ranks above it, whose B is zero and learns. Returns the number of modules that
/// the file lacks.
///
/// # Errors
/// The file has a higher rank, a module that the adapter lacks, or one of another size.
pub fn start_from(file: &LoraFile, lora: &mut Lora) -> Result<usize> {
    let (rank, own) = (lora.layout.rank(), highest_rank(file));
    if own > rank {
        return Err(Error::Format {
            path: file.path.clone(),
            reason: format!(
                "it has rank {own} and the job {rank}; set `network.linear: {own}`, or train a new LoRA"
            ),
        });
    }
    let mut values = lora.parameters.to_f32()?;
    put(file, &lora.layout, &mut values)?;
    let parameters = &lora.parameters;
    let wide: Vec<f64> = values.into_iter().map(f64::from).collect();
    lora.parameters = Tensor::from_f64(&parameters.device(), parameters.dtype(), &wide, parameters.shape())?;
    Ok(lora.layout.modules().len() - file.modules.len())
}

fn highest_rank(file: &LoraFile) -> usize {
    file.modules.iter().map(|m| m.rank).max().unwrap_or(0)
}

fn find<'a>(file: &'a LoraFile, name: &str) -> Option<&'a Loaded> {
    let place = file.modules.binary_search_by(|m| m.name.as_str().cmp(name)).ok()?;
    file.modules.get(place)
}

/// Writes the file's matrices over the adapter's, of which each has at least the file's rank.
fn put(file: &LoraFile, layout: &Layout, values: &mut [f32]) -> Result<()> {
    let wrong = |reason: String| Error::Format { path: file.path.clone(), reason };
    let known = |name: &str| layout.modules().iter().any(|m| m.name == name);
    if let Some(strange) = file.modules.iter().find(|m| !known(&m.name)) {
        return Err(wrong(format!(
            "module `{}` is not in this model, or not trained by this job; is the LoRA of another model?",
            strange.name
        )));
    }
    let rank = layout.rank();
    for module in layout.modules() {
        let Some(own) = find(file, &module.name) else { continue };
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
    Ok(())
}

#[cfg(test)]
mod tests {
    use tenggat_models::lora::Candidate;
    use tenggat_tensor::Device;

    use super::*;

    fn file(rank: usize, name: &str, input: usize) -> LoraFile {
        let values = |n: usize, from: f32| (0..n).map(|i| from + i as f32).collect();
        let (a, b) = (values(rank * input, 100.0), values(2 * rank, 200.0));
        let module = Loaded { name: name.into(), rank, input, output: 2, a, b };
        LoraFile { path: "start.safetensors".into(), modules: vec![module], metadata: Default::default() }
    }

    fn adapter() -> Lora {
        let candidate = |name: &str| Candidate { name: name.into(), output: 2, trained: true };
        let layout = Layout::new(2, [(3, vec![candidate("m"), candidate("n")])], |_| true);
        crate::adapter::initialise(layout, 1, &Device::cpu(), DType::F32).unwrap()
    }

    #[test]
    fn higher_ranks_and_other_modules_stay_as_they_begin() {
        let (before, mut lora) = (adapter().parameters.to_f32().unwrap(), adapter());
        assert_eq!(start_from(&file(1, "m", 3), &mut lora).unwrap(), 1);
        let after = lora.parameters.to_f32().unwrap();
        let [m, n] = lora.layout.modules() else { panic!() };
        assert_eq!(after[m.a..m.a + 3], [100.0, 101.0, 102.0]);
        assert_eq!(after[m.a + 3..m.a + 6], before[m.a + 3..m.a + 6]);
        // B is [output, rank]: the file's column, then one of zeros.
        assert_eq!(after[m.b..m.b + 4], [200.0, 0.0, 201.0, 0.0]);
        assert_eq!(after[n.a..n.a + 6], before[n.a..n.a + 6]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refused = |file: &LoraFile| start_from(file, &mut adapter()).unwrap_err().to_string();
        assert!(refused(&file(3, "m", 3)).contains("`network.linear: 3`"));
        assert!(refused(&file(1, "k", 3)).contains("`k` is not in this model"));
        assert!(refused(&file(1, "m", 4)).contains("expected 3 inputs"));
    }
}
