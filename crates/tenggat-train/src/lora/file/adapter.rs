//! From a LoRA file to an adapter of a model.

use tenggat_models::lora::{Kind, Layout, Lora, factors};
use tenggat_models::transformer::Transformer;
use tenggat_tensor::{DType, Tensor};

use super::{Error, Loaded, LoraFile, Result};

/// An adapter of `model` with the weights of a file, strength 1. Modules of a lower rank than the highest are
/// filled up with zeros, which change nothing.
///
/// # Errors
/// The file mixes LoRA and LoKr modules, or no `lokr_factor` splits all its modules; it has a module that the
/// model lacks or of another size; or the device is out of memory.
pub fn into_lora(file: &LoraFile, model: &Transformer) -> Result<Lora> {
    let layout = model.lora_layout(kind(file)?, |name| find(file, name).is_some());
    fits(file, &layout)?;
    let mut values = vec![0.0f32; layout.len()];
    put(file, &layout, &mut values);
    let parameters = Tensor::from_f32(model.device(), DType::F32, &values, &[values.len()])?;
    Ok(Lora::new(layout, parameters))
}

/// Gives an adapter that is about to be trained the weights of a file. Modules that the file lacks stay as
/// they are; where its rank is lower, so do the ranks above it, whose B is zero and learns. Returns the
/// number of modules that the file lacks.
///
/// # Errors
/// The file is a LoRA and the adapter a LoKr, or the reverse; it mixes both, or no `lokr_factor` splits all
/// its modules; it has a higher rank, a module that the adapter lacks, or one of another size; or the device
/// failed.
pub fn start_from(file: &LoraFile, lora: &mut Lora) -> Result<usize> {
    let (rank, own) = (lora.layout.rank(), highest_rank(file));
    if matches!(lora.layout.kind(), Kind::LowRank(_)) != matches!(kind(file)?, Kind::LowRank(_)) {
        let reason =
            "it is a LoRA where the job trains a LoKr, or the other way round; change `network.type`";
        return Err(Error::Format { path: file.path.clone(), reason: reason.into() });
    }
    if own > rank {
        return Err(Error::Format {
            path: file.path.clone(),
            reason: format!(
                "it has rank {own} and the job {rank}; set `network.linear: {own}`, or train a new LoRA"
            ),
        });
    }
    fits(file, &lora.layout)?;
    let mut values = lora.parameters.to_f32()?;
    put(file, &lora.layout, &mut values);
    let parameters = &lora.parameters;
    let wide: Vec<f64> = values.into_iter().map(f64::from).collect();
    lora.parameters = Tensor::from_f64(&parameters.device(), parameters.dtype(), &wide, parameters.shape())?;
    Ok(lora.layout.modules().len() - file.modules.len())
}

fn highest_rank(file: &LoraFile) -> usize {
    file.modules.iter().map(|m| m.rank).max().unwrap_or(0)
}

/// What the file adds to layers: a rank, or Kronecker products with the factor that splits all its modules as
/// they are.
fn kind(file: &LoraFile) -> Result<Kind> {
    let wrong = |reason: &str| Error::Format { path: file.path.clone(), reason: reason.into() };
    let splits: Vec<[usize; 2]> = file.modules.iter().filter_map(|m| m.split).collect();
    if splits.is_empty() {
        return Ok(Kind::LowRank(highest_rank(file)));
    }
    if splits.len() < file.modules.len() {
        return Err(wrong("some modules are LoRAs and some LoKrs; a file holds one kind"));
    }
    let mut wanted: Vec<usize> = splits.concat();
    wanted.sort_unstable();
    wanted.dedup();
    let fits = |factor: &Option<usize>| {
        let split = |m: &Loaded| Some([factors(m.output, *factor).0, factors(m.input, *factor).0]);
        file.modules.iter().all(|m| m.split == split(m))
    };
    let factor = std::iter::once(None).chain(wanted.into_iter().map(Some)).find(fits);
    let factor = factor.ok_or_else(|| wrong("its modules are split by no common `lokr_factor`"))?;
    Ok(Kind::Kronecker { factor })
}

fn find<'a>(file: &'a LoraFile, name: &str) -> Option<&'a Loaded> {
    let place = file.modules.binary_search_by(|m| m.name.as_str().cmp(name)).ok()?;
    file.modules.get(place)
}

/// Looks that an adapter has every module of the file, of the same sizes; before anything is allocated by
/// them.
fn fits(file: &LoraFile, layout: &Layout) -> Result<()> {
    let wrong = |reason: String| Error::Format { path: file.path.clone(), reason };
    let known = |name: &str| layout.modules().iter().any(|m| m.name == name);
    if let Some(strange) = file.modules.iter().find(|m| !known(&m.name)) {
        return Err(wrong(format!(
            "module `{}` is not in this model, or not trained by this job; is the LoRA of another model?",
            strange.name
        )));
    }
    for module in layout.modules() {
        let Some(own) = find(file, &module.name) else { continue };
        if (own.input, own.output) != (module.input, module.output) {
            return Err(wrong(format!(
                "module `{}`: expected {} inputs and {} outputs, got {} and {}; is the LoRA of another \
                 model?",
                own.name, module.input, module.output, own.input, own.output
            )));
        }
        if let Some(split) = own.split.filter(|split| *split != module.a_shape) {
            let (ours, theirs) = (module.a_shape, split);
            let name = &own.name;
            return Err(wrong(format!(
                "module `{name}` is split as {theirs:?}, and the job as {ours:?}; change \
                 `network.lokr_factor`"
            )));
        }
    }
    Ok(())
}

/// Writes the file's matrices over those of an adapter that it fits, of which each has at least the file's
/// rank.
fn put(file: &LoraFile, layout: &Layout, values: &mut [f32]) {
    let rank = layout.rank();
    for module in layout.modules() {
        let Some(own) = find(file, &module.name) else { continue };
        values[module.a..module.a + own.a.len()].copy_from_slice(&own.a);
        if own.split.is_some() {
            values[module.b..module.b + own.b.len()].copy_from_slice(&own.b);
            continue;
        }
        let rows = values[module.b..module.b + module.output * rank].chunks_exact_mut(rank);
        rows.zip(own.b.chunks_exact(own.rank)).for_each(|(to, from)| to[..own.rank].copy_from_slice(from));
    }
}

#[cfg(test)]
mod tests {
    use tenggat_models::lora::Candidate;
    use tenggat_tensor::Device;

    use super::*;

    fn file(rank: usize, name: &str, input: usize) -> LoraFile {
        let values = |n: usize, from: f32| (0..n).map(|i| from + i as f32).collect();
        let (a, b) = (values(rank * input, 100.0), values(2 * rank, 200.0));
        let module = Loaded { name: name.into(), rank, input, output: 2, split: None, a, b };
        LoraFile { path: "start.safetensors".into(), modules: vec![module], metadata: Default::default() }
    }

    fn adapter() -> Lora {
        let candidate = |name: &str| Candidate { name: name.into(), output: 2, trained: true };
        let layout = Layout::new(2, [(3, vec![candidate("m"), candidate("n")])], |_| true);
        crate::lora::initial::initialise(layout, 1, &Device::cpu(), DType::F32).unwrap()
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

    #[test]
    fn kronecker_products_keep_their_split() {
        let candidate = |name: &str| Candidate { name: name.into(), output: 12, trained: true };
        let kind = Kind::Kronecker { factor: Some(2) };
        let layers = || [(8, vec![candidate("m"), candidate("n")])];
        let layout = Layout::new(kind, layers(), |_| true);
        let mut lora = crate::lora::initial::initialise(layout, 1, &Device::cpu(), DType::F32).unwrap();
        let (a, b) = (vec![1.0; 4], vec![2.0; 24]);
        let module = Loaded { name: "m".into(), rank: 0, input: 8, output: 12, split: Some([2, 2]), a, b };
        let path = "start.safetensors".into();
        let mut file = LoraFile { path, modules: vec![module], metadata: Default::default() };
        assert_eq!(super::kind(&file).unwrap(), kind);
        assert_eq!(start_from(&file, &mut lora).unwrap(), 1);
        let values = lora.parameters.to_f32().unwrap();
        assert_eq!(values[..28], [vec![1.0; 4], vec![2.0; 24]].concat());
        assert!(start_from(&file, &mut adapter()).unwrap_err().to_string().contains("`network.type`"));
        let other = Layout::new(Kind::Kronecker { factor: None }, layers(), |_| true);
        let mut other = crate::lora::initial::initialise(other, 1, &Device::cpu(), DType::F32).unwrap();
        assert!(start_from(&file, &mut other).unwrap_err().to_string().contains("`network.lokr_factor`"));
        file.modules[0].split = Some([4, 2]);
        assert!(super::kind(&file).unwrap_err().to_string().contains("no common"));
    }
}
