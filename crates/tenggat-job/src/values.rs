//! The named values of a job: what each name stands for, and which are not there yet.

use super::suggest;

/// What is added to a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkKind {
    /// `B·A` of the job's rank.
    Lora,
    /// A Kronecker product `W₁ ⊗ W₂`.
    Lokr {
        /// Wanted small factor of both sides; `None`: as near to the square root as possible.
        factor: Option<usize>,
    },
}

/// How frozen weights are stored: `qtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qtype {
    /// `uintN`: N-bit unsigned integers in groups of 64 with scale and zero point, 2 ≤ N ≤ 7.
    Uint(u8),
    /// `qfloat8`: e4m3 floats, one scale per row, as optimum-quanto rounds them.
    QFloat8,
    /// `float8`: e4m3 floats, one scale per row, as torchao rounds them.
    Float8,
    /// `qint8`: integers in ±127, one scale per row, as optimum-quanto rounds them.
    QInt8,
    /// `int8`: integers in −128…127, one scale per row, as torchao rounds them.
    Int8,
}

/// Where timesteps are drawn from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimestepType {
    /// Normal numbers through a sigmoid: mostly the middle of the noise range.
    Sigmoid,
    /// Every noise level alike.
    Linear,
    /// As linear, the loss weighted by noise level.
    Weighted,
    /// The sampler's schedule for the size of the picture.
    Shift,
    /// A mixture of log-normal and linear.
    LognormBlend,
}

/// Which end of the noise range is drawn more often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balance {
    /// Neither.
    Balanced,
    /// The noisy end, which decides composition: index = r³ · 1000.
    Content,
    /// The clean end, which decides texture: index = (1 − r³) · 1000.
    Style,
}

/// Extra loss weights over the timestep table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bell {
    /// None.
    Flat,
    /// A bell over the whole table (`linear_timesteps`).
    Whole,
    /// A bell whose noisy half is flat (`linear_timesteps2`).
    Half,
}

/// What is minimised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Mean of squared errors.
    MeanSquared,
    /// Mean of absolute errors.
    MeanAbsolute,
    /// `2c·(√(e² + c²) − c)` with c = 0.01.
    PseudoHuber,
}

/// What becomes of the activations that the backward pass needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Recompute {
    /// As many blocks keep theirs as fit into memory; the others recompute them.
    #[default]
    Auto,
    /// Every block recomputes its own.
    Always,
    /// Every block keeps its own.
    Never,
}

/// What turns gradients into steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Optimiser {
    /// AdamW with decoupled weight decay.
    AdamW,
    /// AdamW with states of 8 bits in blocks of 256, as bitsandbytes keeps them.
    AdamW8bit,
    /// Adam, whose weight decay is part of the gradient.
    Adam,
    /// Lion.
    Lion,
    /// Prodigy.
    Prodigy,
    /// Adafactor.
    Adafactor,
}

/// How the learning rate runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LrScheduler {
    /// The same throughout.
    Constant,
    /// The same after a warm-up.
    ConstantWithWarmup,
    /// A straight line to zero (with `compat: linear-ramp`, from a third up to the whole).
    Linear,
    /// Half a cosine to `eta_min`.
    Cosine,
    /// Several half cosines.
    CosineWithRestarts,
    /// Warm-up, plateau, decay to zero at the end of the budget.
    WarmupStableDecay,
}

/// Which LoRA of a run is the finished one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deliver {
    /// That of the last step.
    Newest,
    /// That with the lowest velocity error on the held-out pictures, among those that are measured on the
    /// way; the first is the one that the run begins with.
    Best,
}

/// Type of a saved tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaveType {
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// Single precision.
    F32,
}

impl SaveType {
    /// Bytes of a number.
    pub fn bytes(self) -> usize {
        match self {
            SaveType::F16 | SaveType::Bf16 => 2,
            SaveType::F32 => 4,
        }
    }
}

/// The round before the first step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstRound {
    /// At the start of a run, not when it is resumed.
    AtStart,
    /// Also when resumed.
    Always,
    /// Never.
    Never,
}

/// File format of samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PictureFormat {
    /// JPEG.
    Jpeg,
    /// PNG.
    Png,
    /// WebP.
    WebP,
}

/// One name of a value.
pub(super) struct Choice<T> {
    pub name: &'static str,
    pub value: Result<T, &'static str>,
}

const fn is<T: Copy>(name: &'static str, value: T) -> Choice<T> {
    Choice { name, value: Ok(value) }
}

const fn not<T: Copy>(name: &'static str, instead: &'static str) -> Choice<T> {
    Choice { name, value: Err(instead) }
}

pub(super) const TIMESTEP_TYPES: &[Choice<TimestepType>] = &[
    is("sigmoid", TimestepType::Sigmoid),
    is("linear", TimestepType::Linear),
    is("weighted", TimestepType::Weighted),
    is("shift", TimestepType::Shift),
    is("flux_shift", TimestepType::Shift),
    is("lumina2_shift", TimestepType::Shift),
    is("lognorm_blend", TimestepType::LognormBlend),
    not("next_sample", "use weighted"),
    not("one_step", "use weighted"),
    not("two_step", "use weighted"),
    not("four_step", "use weighted"),
    not("eight_step", "use weighted"),
];

pub(super) const BALANCES: &[Choice<Balance>] =
    &[is("balanced", Balance::Balanced), is("content", Balance::Content), is("style", Balance::Style)];

pub(super) const LOSSES: &[Choice<Loss>] = &[
    is("mse", Loss::MeanSquared),
    is("mae", Loss::MeanAbsolute),
    is("pseudo_huber", Loss::PseudoHuber),
    not("wavelet", "use mse"),
    not("stepped", "use mse"),
    not("mean_flow", "use mse"),
    not("pixelspace", "use mse"),
];

pub(super) const OPTIMISERS: &[Choice<Optimiser>] = &[
    is("adamw", Optimiser::AdamW),
    is("adamw8bit", Optimiser::AdamW8bit),
    is("adamw8", Optimiser::AdamW8bit),
    is("adam", Optimiser::Adam),
    is("lion", Optimiser::Lion),
    is("prodigy", Optimiser::Prodigy),
    is("adafactor", Optimiser::Adafactor),
    not("adam8bit", "use adamw8bit"),
    not("adam8", "use adamw8bit"),
    not("lion8bit", "use lion"),
    not("ademamix8bit", "use adamw8bit"),
    not("prodigy8bit", "use prodigy"),
    not("adagrad", "use adamw"),
    not("dadaptation", "use prodigy"),
    not("dadaptationadam", "use prodigy"),
    not("dadaptationlion", "use prodigy"),
    not("automagic", "use adamw"),
    not("automagic2", "use adamw"),
    not("automagic3", "use adamw"),
];

pub(super) const LR_SCHEDULERS: &[Choice<LrScheduler>] = &[
    is("constant", LrScheduler::Constant),
    is("constant_with_warmup", LrScheduler::ConstantWithWarmup),
    is("linear", LrScheduler::Linear),
    is("cosine", LrScheduler::Cosine),
    is("cosine_with_restarts", LrScheduler::CosineWithRestarts),
    is("warmup_stable_decay", LrScheduler::WarmupStableDecay),
    is("wsd", LrScheduler::WarmupStableDecay),
    not("step", "it fails in ai-toolkit too; use cosine"),
    not("polynomial", "it fails in ai-toolkit too; use cosine"),
];

pub(super) const DELIVERIES: &[Choice<Deliver>] = &[is("newest", Deliver::Newest), is("best", Deliver::Best)];

pub(super) const SAVE_TYPES: &[Choice<SaveType>] = &[
    is("float16", SaveType::F16),
    is("fp16", SaveType::F16),
    is("f16", SaveType::F16),
    is("half", SaveType::F16),
    is("bfloat16", SaveType::Bf16),
    is("bf16", SaveType::Bf16),
    is("float32", SaveType::F32),
    is("fp32", SaveType::F32),
    is("f32", SaveType::F32),
    is("float", SaveType::F32),
    is("single", SaveType::F32),
];

pub(super) const QUANTISATIONS: &[Choice<Qtype>] = &[
    is("qfloat8", Qtype::QFloat8),
    is("float8", Qtype::Float8),
    is("qint8", Qtype::QInt8),
    is("int8", Qtype::Int8),
    is("uint2", Qtype::Uint(2)),
    is("uint3", Qtype::Uint(3)),
    is("uint4", Qtype::Uint(4)),
    is("uint5", Qtype::Uint(5)),
    is("uint6", Qtype::Uint(6)),
    is("uint7", Qtype::Uint(7)),
    not("uint8", "it leaves the weights as they are; write `quantize: false`"),
    not("qint4", "use uint4"),
    not("qint2", "use uint2"),
    not("nvfp4", "use uint4"),
];

pub(super) const PICTURE_FORMATS: &[Choice<PictureFormat>] = &[
    is("jpg", PictureFormat::Jpeg),
    is("jpeg", PictureFormat::Jpeg),
    is("png", PictureFormat::Png),
    is("webp", PictureFormat::WebP),
];

/// Why a name gives no value.
pub(super) enum Unchosen {
    /// Known and refused; what to do.
    Refused(&'static str),
    /// Unknown; the message.
    Unknown(String),
}

/// The value of a name; case does not matter.
pub(super) fn choose<T: Copy>(name: &str, choices: &'static [Choice<T>]) -> Result<T, Unchosen> {
    let lower = name.to_lowercase();
    if let Some(choice) = choices.iter().find(|c| c.name == lower) {
        return choice.value.map_err(Unchosen::Refused);
    }
    let names = || choices.iter().filter(|c| c.value.is_ok()).map(|c| c.name);
    let advice = match suggest::nearest(name, names()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("expected one of {}", names().collect::<Vec<_>>().join(", ")),
    };
    Err(Unchosen::Unknown(format!("`{name}` is not known; {advice}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_chosen_refused_or_suggested() {
        assert!(matches!(choose("AdamW8Bit", OPTIMISERS), Ok(Optimiser::AdamW8bit)));
        assert!(matches!(choose("automagic", OPTIMISERS), Err(Unchosen::Refused("use adamw"))));
        let Err(Unchosen::Unknown(message)) = choose("adamv", OPTIMISERS) else { panic!("accepted") };
        assert!(message.ends_with("did you mean `adamw`?"), "{message}");
        let Err(Unchosen::Unknown(message)) = choose("tiff", PICTURE_FORMATS) else { panic!("accepted") };
        assert!(message.ends_with("expected one of jpg, jpeg, png, webp"), "{message}");
    }
}
