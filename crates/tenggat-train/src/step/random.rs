//! Everything random in a training step, as a function of (seed, batch, sample): a resumed run draws what an
//! uninterrupted one would have drawn.

use tenggat_models::qwen_image::Scheduler;
use tenggat_models::qwen_image::geometry::LATENTS_PER_TOKEN;
use tenggat_tensor::random::Philox;

use crate::job::{Balance, Bell, TimestepType};
use crate::step::timesteps;

/// How noise levels are distributed and weighted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NoiseLevels {
    /// The table that is drawn from.
    pub kind: TimestepType,
    /// Which end of the table is drawn more often.
    pub balance: Balance,
    /// Extra loss weights.
    pub bell: Bell,
    /// Indices that may be drawn, from the noisy end; the last is excluded.
    pub range: (usize, usize),
}

/// What is drawn from one stream.
#[derive(Debug, Clone, Copy)]
enum Purpose {
    Sigma = 1,
    Caption,
    Noise,
    NoiseOffset,
}

/// Counter of the index draw in its stream, far from those of a table.
const INDEX: u64 = 1 << 32;

/// The random numbers of a run.
#[derive(Debug, Clone, Copy)]
pub struct Draws {
    random: Philox,
}

/// Noise level of a sample and the weight of its loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Level {
    /// σ, 0 (data) to 1 (noise).
    pub sigma: f64,
    /// Multiplies the sample's loss.
    pub weight: f64,
}

impl Draws {
    /// The draws of this seed.
    pub fn new(seed: u64) -> Self {
        Draws { random: Philox::new(seed) }
    }

    fn stream(purpose: Purpose, batch: u64, sample: usize) -> u64 {
        (purpose as u64) << 56 | (batch & 0xffff_ffff) << 16 | (sample as u64 & 0xffff)
    }

    /// Noise level of a sample whose image has this many tokens: an entry of a table of 1000.
    pub fn level(
        &self,
        levels: NoiseLevels,
        scheduler: &Scheduler,
        image_tokens: usize,
        batch: u64,
        sample: usize,
    ) -> Level {
        let stream = Self::stream(Purpose::Sigma, batch, sample);
        let index = self.index(levels, stream);
        let sigma = match levels.kind {
            TimestepType::Linear | TimestepType::Weighted => timesteps::linear()[index] / 1000.0,
            TimestepType::Shift => {
                let table = scheduler.train_sigmas(image_tokens);
                table[index.min(table.len() - 1)]
            }
            TimestepType::Sigmoid => self.sigmoid_table(stream)[index],
            TimestepType::LognormBlend => self.lognormal_table(stream)[index],
        };
        let weighted = levels.kind == TimestepType::Weighted;
        let weight = if weighted { timesteps::weighted_loss_weights()[index] } else { 1.0 };
        let bell = match levels.bell {
            Bell::Flat => 1.0,
            Bell::Whole => timesteps::bell_loss_weights()[index],
            Bell::Half => timesteps::half_bell_loss_weights()[index],
        };
        Level { sigma, weight: weight * bell }
    }

    fn index(&self, levels: NoiseLevels, stream: u64) -> usize {
        let last = timesteps::ENTRIES - 1;
        let (from, to) =
            (levels.range.0.min(last - 1), levels.range.1.clamp(levels.range.0.min(last - 1) + 1, last));
        let r = self.random.uniform(stream, INDEX);
        let along = match levels.balance {
            Balance::Balanced => return from + self.random.below(stream, INDEX, to - from),
            Balance::Content => r.powi(3),
            Balance::Style => 1.0 - r.powi(3),
        };
        (from + (along * (to - from) as f64) as usize).min(to - 1)
    }

    /// 1000 values of sigmoid(N(0, 1)), falling.
    fn sigmoid_table(&self, stream: u64) -> Vec<f64> {
        let mut table = vec![0.0; timesteps::ENTRIES];
        self.random.normal_f64(stream, &mut table);
        table.iter_mut().for_each(|x| *x = 1.0 / (1.0 + (-*x).exp()));
        table.sort_by(|a, b| b.total_cmp(a));
        table
    }

    /// 750 values of 1 − x / max x with log-normal x (σ = 0.333) and 250 linear ones, in whole timesteps,
    /// falling.
    fn lognormal_table(&self, stream: u64) -> Vec<f64> {
        let (many, few) = (timesteps::ENTRIES * 3 / 4, timesteps::ENTRIES / 4);
        let mut table = vec![0.0; many];
        self.random.normal_f64(stream, &mut table);
        table.iter_mut().for_each(|x| *x = (0.333 * *x).exp());
        let max = table.iter().copied().fold(0.0, f64::max);
        table.iter_mut().for_each(|x| *x = 1000.0 * (1.0 - *x / max));
        table.extend((0..few).map(|i| 1000.0 - 999.0 * i as f64 / (few - 1) as f64));
        table.iter_mut().for_each(|x| *x = x.floor() / 1000.0);
        table.sort_by(|a, b| b.total_cmp(a));
        table
    }

    /// Where the prompt of a sample is drawn from: the numbers and their stream.
    pub(crate) fn of_caption(&self, batch: u64, sample: usize) -> (Philox, u64) {
        (self.random, Self::stream(Purpose::Caption, batch, sample))
    }

    /// Noise of one sample, `tokens · channels` numbers; `offset` adds that much of one more normal number to
    /// all elements of a channel.
    pub fn noise(&self, batch: u64, sample: usize, channels: usize, offset: f64, out: &mut [f32]) {
        self.random.normal(Self::stream(Purpose::Noise, batch, sample), out);
        if offset != 0.0 {
            let mut shift = vec![0.0; channels.div_ceil(LATENTS_PER_TOKEN)];
            self.random.normal(Self::stream(Purpose::NoiseOffset, batch, sample), &mut shift);
            for token in out.chunks_mut(channels) {
                for (c, x) in token.iter_mut().enumerate() {
                    *x += offset as f32 * shift[c / LATENTS_PER_TOKEN];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scheduler() -> Scheduler {
        Scheduler::load(
            &std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/mini/model/scheduler"),
        )
        .unwrap()
    }

    fn mean(kind: TimestepType, balance: Balance) -> f64 {
        let (draws, scheduler) = (Draws::new(1), scheduler());
        let levels = NoiseLevels { kind, balance, bell: Bell::Flat, range: (0, 999) };
        let drawn = (0..4000).map(|step| draws.level(levels, &scheduler, 64, step, 0));
        drawn.map(|l| l.sigma * l.weight).sum::<f64>() / 4000.0
    }

    #[test]
    fn levels_follow_their_distribution() {
        // Means of sigmoid(N(0,1)) and of a uniform number are 1/2; the shift moves them towards noise.
        assert!((mean(TimestepType::Sigmoid, Balance::Balanced) - 0.5).abs() < 0.015);
        assert!((mean(TimestepType::Linear, Balance::Balanced) - 0.5).abs() < 0.02);
        assert!((0.55..0.70).contains(&mean(TimestepType::Shift, Balance::Balanced)));
        // The weights favour the noisy half, so that the weighted mean lies above 1/2.
        assert!(mean(TimestepType::Weighted, Balance::Balanced) > 0.52);
        // E[r³] = 1/4 of the way from the noisy end.
        assert!((mean(TimestepType::Linear, Balance::Content) - 0.75).abs() < 0.02);
        assert!((mean(TimestepType::Linear, Balance::Style) - 0.25).abs() < 0.02);
        // Log-normal values crowd below their maximum: 1 − 1.06 / e^(0.333 · 3.2) and a quarter uniform.
        assert!((0.5..0.7).contains(&mean(TimestepType::LognormBlend, Balance::Balanced)));
    }

    #[test]
    fn a_range_bounds_the_levels() {
        let (draws, scheduler) = (Draws::new(1), scheduler());
        for balance in [Balance::Balanced, Balance::Content, Balance::Style] {
            let levels =
                NoiseLevels { kind: TimestepType::Linear, balance, bell: Bell::Half, range: (200, 300) };
            for step in 0..500 {
                let level = draws.level(levels, &scheduler, 64, step, 0);
                assert!((0.7..=0.8).contains(&level.sigma) && level.weight > 0.0, "{level:?}");
            }
        }
    }

    #[test]
    fn draws_depend_on_the_step_and_the_sample_alone() {
        let draws = Draws::new(7);
        let noise = |step, sample| {
            let mut x = [0.0; 64];
            draws.noise(step, sample, 64, 0.1, &mut x);
            x
        };
        assert_eq!(noise(3, 1), noise(3, 1));
        assert!(noise(3, 1) != noise(3, 0) && noise(3, 1) != noise(4, 1));
    }
}
