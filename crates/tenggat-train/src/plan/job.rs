//! A job as planning sees it: shapes and their shares, the model's dimensions, lengths of the captions.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use tenggat_models::Result;
use tenggat_models::qwen_image::text_encoder::Config as TextConfig;
use tenggat_models::qwen_image::{PromptTemplate, Tokenizer};
use tenggat_models::transformer::Config;
use tenggat_models::transformer::layer::{Family, Layer, module_name};
use tenggat_models::vae::VaeConfig;
use tenggat_plan::{
    BucketShape, Elsewhere, ModelDims, ModelProfile, Optimiser as PlannedOptimiser, PlanJob, Precision,
    SampleJob, SamplePicture, Surroundings, Targets, ValidationJob, ValidationPlan,
};
use tenggat_tensor::weight::Format;

use crate::data::pictures::{self, Batches, Item};
use crate::job::{FirstRound, Job, Network, NetworkKind, Optimiser, Qtype};

/// Characters per token of English captions with the Qwen2 vocabulary, as far as that can be said in general.
const CHARACTERS_PER_TOKEN: f64 = 4.3;
/// Tokens that the prompt's frame adds behind it.
const FRAME_TOKENS: f64 = 5.0;
/// Tokens of a caption that nobody knows yet.
const UNKNOWN_TOKENS: u64 = 128;
/// Pictures of a data set that is not there yet.
const UNKNOWN_PICTURES: u64 = 20;
/// Rank of the published accuracy recovery adapters.
pub const RECOVERY_RANK: u64 = 16;

/// What planning knows about a model.
#[derive(Debug)]
pub struct ModelFacts {
    /// Dimensions of its transformer.
    pub dims: ModelDims,
    /// The rest of it.
    pub surroundings: Surroundings,
    /// How its captions are counted; `None`: by their length.
    prompts: Option<(PromptTemplate, Tokenizer)>,
}

impl ModelFacts {
    /// Qwen-Image, as published.
    pub fn qwen_image() -> Self {
        ModelFacts { dims: ModelDims::QWEN_IMAGE, surroundings: Surroundings::QWEN_IMAGE, prompts: None }
    }

    /// The model in a folder, from its configuration files alone.
    ///
    /// # Errors
    /// A configuration file is missing or malformed.
    pub fn read(folder: &Path) -> Result<Self> {
        let vae = VaeConfig::read(&folder.join("vae"))?;
        let dims = dims(&Config::read(&folder.join("transformer"))?, vae.spatial_factor());
        let text = TextConfig::read(&folder.join("text_encoder"))?;
        let prompts = (PromptTemplate::load(folder)?, Tokenizer::load(&folder.join("tokenizer"))?);
        // Convolutions between c channels take c² multiplications per pixel.
        let narrower = (vae.base_dim as f64 / VaeConfig::default().base_dim as f64).powi(2);
        let published = Surroundings::QWEN_IMAGE;
        let surroundings = Surroundings {
            text_encoder_weights: text_weights(&text),
            vae_encode_flops_per_px: published.vae_encode_flops_per_px * narrower,
            vae_decode_flops_per_px: published.vae_decode_flops_per_px * narrower,
        };
        Ok(ModelFacts { dims, surroundings, prompts: Some(prompts) })
    }

    /// Tokens of a caption as the transformer sees it.
    fn tokens(&self, caption: &str) -> f64 {
        let counted = self.prompts.as_ref().and_then(|(template, tokenizer)| {
            Some(template.ids(tokenizer, caption).ok()?.len().saturating_sub(template.dropped()) as f64)
        });
        counted
            .unwrap_or_else(|| (caption.chars().count() as f64 / CHARACTERS_PER_TOKEN).ceil() + FRAME_TOKENS)
    }
}

/// The optimiser as planning sees it.
pub(crate) fn optimiser(kind: Optimiser) -> PlannedOptimiser {
    match kind {
        Optimiser::AdamW | Optimiser::Adam => PlannedOptimiser::AdamW,
        Optimiser::AdamW8bit => PlannedOptimiser::AdamW8bit,
        Optimiser::Lion => PlannedOptimiser::Lion,
        Optimiser::Prodigy => PlannedOptimiser::Prodigy,
        Optimiser::Adafactor => PlannedOptimiser::Adafactor,
    }
}

/// A transformer's dimensions; `spatial_factor` pixels of the VAE become one latent pixel.
pub fn dims(config: &Config, spatial_factor: usize) -> ModelDims {
    ModelDims {
        layers: config.num_layers as u64,
        heads: config.num_attention_heads as u64,
        head_dim: config.attention_head_dim as u64,
        joint_dim: config.joint_attention_dim as u64,
        in_channels: config.in_channels as u64,
        pixels_per_token: (spatial_factor * config.patch_size) as u64,
    }
}

/// Weights of the language model's matrices, embeddings left out: they are looked up.
fn text_weights(config: &TextConfig) -> f64 {
    let (hidden, inner) = (config.hidden_size as f64, config.intermediate_size as f64);
    let queries = (config.num_attention_heads * config.head_dim) as f64;
    let keys = (config.num_key_value_heads * config.head_dim) as f64;
    config.num_hidden_layers as f64 * (2.0 * hidden * (queries + keys) + 3.0 * hidden * inner)
}

/// A job with what the plan had to guess about it.
#[derive(Debug)]
pub struct Planned {
    /// The job.
    pub job: PlanJob,
    /// What was guessed or left out, for the user.
    pub notes: Vec<String>,
}

/// The job as planning sees it, on a machine that multiplies unquantised weights as `unquantised`.
pub fn plan_job(job: &Job, facts: &ModelFacts, unquantised: Precision) -> Planned {
    let mut notes = Vec::new();
    let (buckets, text_tokens) = match pictures::load(&job.datasets, job.compat, job.seed) {
        Ok(loaded) => shapes(job, &loaded.items, facts),
        Err(e) => {
            notes.push(format!("{e}; planned as {UNKNOWN_PICTURES} square images per data set"));
            (squares(job), UNKNOWN_TOKENS)
        }
    };
    if !(job.network.only_if_contains.is_empty() && job.network.ignore_if_contains.is_empty()) {
        notes.push("planned as if every module were trained; leaving some out saves a little".to_owned());
    }
    if let NetworkKind::Lokr { .. } = job.network.kind {
        notes.push(format!("planned as a LoRA of rank {}; a LoKr takes less", job.network.rank));
    }
    let planned = PlanJob {
        model: ModelProfile::qwen_image_like(&facts.dims),
        dims: facts.dims,
        surroundings: facts.surroundings,
        buckets,
        batch: job.train.batch_size as u64,
        accumulation: job.train.gradient_accumulation as u64,
        text_tokens,
        rank: job.network.rank as u64,
        precision: job.model.quantisation.map_or(unquantised, |qtype| precision(format(qtype))),
        ara_rank: job.model.recovery_adapter.as_ref().map(|_| RECOVERY_RANK),
        fp8_products: job.model.fp8_products,
        offloaded_share: job.model.offloaded_share,
        optimiser: optimiser(job.train.optimiser.kind),
        steps: job.train.steps,
        fill: job.limits.fill,
        save_every: job.save.every,
        samples: samples(job),
        validation: job.train.validation.as_ref().map(|validation| ValidationJob {
            every_steps: validation.every,
            pictures: validation.items.len() as u64,
            levels: validation.sigmas.len() as u64,
            side_px: validation.resolution as u64,
            share_max: ValidationPlan::SHARE_MAX,
        }),
        upload: job.push.is_some(),
        memory_limit_bytes: job.limits.memory_bytes,
        elsewhere: Elsewhere {
            targets: targets(&job.network),
            captions_encoded: job.datasets.iter().all(|set| set.cache_text_to_disk),
            ..Elsewhere::default()
        },
        ..PlanJob::qwen_image()
    };
    Planned { job: planned, notes }
}

/// A storage format as planning sees it.
pub fn precision(format: Format) -> Precision {
    match format {
        Format::QFloat8 | Format::Float8 => Precision::Float8,
        Format::QInt8 | Format::Int8 => Precision::Int8,
        Format::Uint(bits) => Precision::Uint(bits),
    }
}

/// Shapes of the data set as it is, and text tokens of a batch, averaged over the batches.
fn shapes(job: &Job, items: &[Item], facts: &ModelFacts) -> (Vec<BucketShape>, u64) {
    let batches = Batches::new(items, job.train.gradient_accumulation, job.seed);
    let mut shares: BTreeMap<(usize, usize), f64> = BTreeMap::new();
    let mut tokens = 0.0;
    for (batch, share) in batches.shares() {
        if let Some(&first) = batch.first() {
            *shares.entry((items[first].crop.width, items[first].crop.height)).or_default() += share;
        }
        tokens += share * padded_tokens(batch.iter().map(|&i| &items[i]), facts);
    }
    let mut seen = HashSet::new();
    let mut pictures: BTreeMap<(usize, usize), u64> = BTreeMap::new();
    for item in items {
        if seen.insert((&item.path, item.crop, item.flip_x, item.flip_y)) {
            *pictures.entry((item.crop.width, item.crop.height)).or_default() += 1;
        }
    }
    let bucket = |(&(width, height), &share): (&(usize, usize), &f64)| BucketShape {
        width_px: width as u64,
        height_px: height as u64,
        share,
        pictures: pictures.get(&(width, height)).copied().unwrap_or(0),
    };
    (shares.iter().map(bucket).collect(), tokens.round() as u64)
}

/// Expected length of the longest caption of a batch, each being dropped with its own chance.
fn padded_tokens<'a>(batch: impl Iterator<Item = &'a Item>, facts: &ModelFacts) -> f64 {
    let mut lengths: Vec<(f64, f64, f64)> = batch
        .map(|item| {
            let kept = item.captions.first().map_or(0.0, |caption| facts.tokens(caption));
            (kept, facts.tokens(&item.dropped), item.dropout_rate)
        })
        .collect();
    lengths.sort_by(|a, b| b.0.total_cmp(&a.0));
    let dropped = lengths.iter().map(|(_, dropped, _)| *dropped).fold(0.0, f64::max);
    // The longest is kept, or it is dropped and the next longest is kept, and so on.
    let (mut expected, mut all_dropped) = (0.0, 1.0);
    for (kept, _, rate) in lengths {
        expected += all_dropped * (1.0 - rate) * kept.max(dropped);
        all_dropped *= rate;
    }
    expected + all_dropped * dropped
}

/// Squares of the job's resolutions, for data sets that are not there.
fn squares(job: &Job) -> Vec<BucketShape> {
    let mut squares: BTreeMap<usize, (f64, u64)> = BTreeMap::new();
    for set in &job.datasets {
        for &side in &set.resolutions {
            let square = squares.entry(side).or_default();
            *square = (square.0 + set.num_repeats as f64, square.1 + UNKNOWN_PICTURES);
        }
    }
    let all: f64 = squares.values().map(|(share, _)| share).sum();
    squares
        .into_iter()
        .map(|(side, (share, pictures))| BucketShape {
            width_px: side as u64,
            height_px: side as u64,
            share: share / all,
            pictures,
        })
        .collect()
}

/// Which layers other programs would train, judged by one layer of each kind; `None` if the job leaves it to
/// them.
fn targets(network: &Network) -> Option<Targets> {
    if network.only_if_contains.is_empty() && network.ignore_if_contains.is_empty() {
        return None;
    }
    let kinds = [
        (Layer::ImgMod, Targets::All),
        (Layer::ImgMlpOut, Targets::AttentionAndMlp),
        (Layer::TxtQkv, Targets::Attention),
    ];
    let module = |layer: Layer| module_name(0, layer.modules(Family::QwenImage)[0]);
    let trained = |layer: Layer| network.trains(&module(layer));
    Some(kinds.into_iter().find(|&(layer, _)| trained(layer)).map_or(Targets::ImageAttention, |(_, t)| t))
}

/// The job's sample pictures, each as it is drawn.
fn samples(job: &Job) -> Option<SampleJob> {
    let sample = &job.sample;
    let picture = |prompt: &crate::job::Prompt| SamplePicture {
        width_px: prompt.width as u64,
        height_px: prompt.height as u64,
        denoising_steps: prompt.steps as u64,
        guided: prompt.guidance_scale > 1.0,
    };
    (sample.enabled && !sample.prompts.is_empty()).then(|| SampleJob {
        every_steps: sample.every,
        start_step: sample.start_step,
        pictures: sample.prompts.iter().map(picture).collect(),
        first: sample.first != FirstRound::Never,
        last: true,
    })
}

/// The storage format that a `qtype` names.
pub(crate) fn format(qtype: Qtype) -> Format {
    match qtype {
        Qtype::Uint(bits) => Format::Uint(bits),
        Qtype::QFloat8 => Format::QFloat8,
        Qtype::Float8 => Format::Float8,
        Qtype::QInt8 => Format::QInt8,
        Qtype::Int8 => Format::Int8,
    }
}

#[cfg(test)]
mod tests {
    use tenggat_models::hub::Repository;

    use super::*;
    use crate::job::is_repository;

    /// The demo's job with its data set and model.
    fn demo(resolutions: &str, batch: usize) -> (Job, ModelFacts) {
        let mini = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/mini");
        let variable = |name: &str| match name {
            "DATA" => Some(mini.join("demo-dataset/train").display().to_string()),
            "OUT" => Some("out".to_owned()),
            "SEED" => Some("1".to_owned()),
            _ => None,
        };
        let text = std::fs::read_to_string(mini.join("demo.yaml")).unwrap();
        let text = text
            .replace("resolution: [128]", &format!("resolution: [{resolutions}]"))
            .replace("batch_size: 4", &format!("batch_size: {batch}"));
        let (job, _) = Job::from_str(&text, Path::new("demo.yaml"), Some("demo"), &variable).unwrap();
        (job, ModelFacts::read(&mini.join("model")).unwrap())
    }

    #[test]
    fn a_data_set_is_planned_by_its_pictures() {
        let (job, facts) = demo("128, 64", 4);
        let planned = plan_job(&job, &facts, Precision::F32);
        assert_eq!(planned.notes, Vec::<String>::new());
        let planned = planned.job;
        assert_eq!(
            (planned.dims.layers, planned.dims.width(), planned.dims.pixels_per_token),
            (6, 192.0, 16)
        );
        let shapes: Vec<_> = planned.buckets.iter().map(|b| (b.width_px, b.height_px, b.pictures)).collect();
        assert_eq!(shapes, [(64, 64, 48), (128, 128, 48)]);
        assert!((planned.buckets.iter().map(|b| b.share).sum::<f64>() - 1.0).abs() < 1e-12);
        assert_eq!((planned.rank, planned.batch, planned.steps), (16, 4, None));
        // The text encoder of the mini model has 0.6 M weights, not 7.6 G.
        assert!((1e5..3e6).contains(&planned.surroundings.text_encoder_weights));
    }

    #[test]
    fn captions_are_counted_as_they_will_be_padded() {
        let facts = ModelFacts::qwen_image();
        let (job, _) = demo("128", 1);
        let items = pictures::load(&job.datasets, job.compat, job.seed).unwrap().items;
        let item = |caption: &str, rate: f64| Item {
            captions: vec![caption.to_owned()],
            dropped: String::new(),
            dropout_rate: rate,
            ..items[0].clone()
        };
        let long = "x".repeat(43); // 10 tokens and the frame
        assert_eq!(padded_tokens([item(&long, 0.0)].iter(), &facts), 15.0);
        assert_eq!(padded_tokens([item(&long, 0.5)].iter(), &facts), 10.0);
        // Both dropped once in four times.
        assert_eq!(padded_tokens([item(&long, 0.5), item(&long, 0.5)].iter(), &facts), 12.5);
        assert_eq!(padded_tokens([item(&long, 0.0), item("", 0.0)].iter(), &facts), 15.0);
    }

    #[test]
    fn a_missing_data_set_is_planned_by_its_resolutions() {
        let (mut job, _) = demo("512, 768, 1024", 1);
        job.datasets[0].path = "nowhere".into();
        let planned = plan_job(&job, &ModelFacts::qwen_image(), Precision::Bf16);
        assert!(planned.notes[0].contains("nowhere"), "{:?}", planned.notes);
        let shapes: Vec<_> = planned.job.buckets.iter().map(|b| (b.width_px, b.share)).collect();
        assert_eq!(shapes, [(512, 1.0 / 3.0), (768, 1.0 / 3.0), (1024, 1.0 / 3.0)]);
        assert_eq!(planned.job.dims, ModelDims::QWEN_IMAGE);
    }

    #[test]
    fn every_qtype_has_the_name_of_its_format() {
        let types =
            [Qtype::QFloat8, Qtype::Float8, Qtype::QInt8, Qtype::Int8, Qtype::Uint(2), Qtype::Uint(7)];
        for (qtype, name) in types.into_iter().zip(["qfloat8", "float8", "qint8", "int8", "uint2", "uint7"]) {
            assert_eq!(format(qtype), name.parse().unwrap(), "{name}");
        }
    }

    #[test]
    fn jobs_and_the_hub_read_the_same_names_of_repositories() {
        let names = [
            "Qwen/Qwen-Image",
            "me/lora@main",
            "me/lora@refs/pr/3",
            "a.b/c_d",
            "model",
            "/models/x",
            "./x",
            "../x",
            "a/b/c",
            "a/",
            "/b",
            "a/b@",
            "a/b@../../x",
            "~/x",
            "a/b c",
            "a/b@x/../y",
            "a/b..c",
            "a/-b",
            "ä/b",
            "",
        ];
        for name in names {
            assert_eq!(is_repository(name), Repository::parse(name).is_some(), "{name}");
        }
        assert_eq!(names.iter().filter(|name| is_repository(name)).count(), 4);
    }
}
