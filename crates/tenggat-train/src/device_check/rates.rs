//! How fast a card is: what planning needs to know of it.

use serde::{Deserialize, Serialize};
use tenggat_models::Result;
use tenggat_plan::{Clock, Machine};
use tenggat_tensor::ops::{attention, copy};
use tenggat_tensor::random::Philox;
use tenggat_tensor::{DType, Device, Tensor};

use crate::plan::bench::product_flops_per_s;

/// Tokens of attention, as in a step at 1024 × 1024; heads and channels of each.
const TOKENS: usize = 4320;
const HEADS: usize = 24;
const CHANNELS: usize = 128;
/// Rows of the product that is timed.
const ROWS: f64 = 4096.0;
/// Bytes that are copied within the device, and from the host.
const COPIED: usize = 512 << 20;
const SENT: usize = 256 << 20;
/// How often each is timed, after a first time; the fastest counts.
const TIMES: usize = 4;

/// Rates of a card, per second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MeasuredRates {
    /// FLOP of products with 4096 rows, in the type of activations.
    pub product_flop: f64,
    /// FLOP of attention over 4320 tokens, forward.
    pub attention_forward_flop: f64,
    /// The same backward.
    pub attention_backward_flop: f64,
    /// Bytes read and written by a copy within the device.
    pub memory_bytes: f64,
    /// Bytes from the host's memory.
    pub host_bytes: f64,
}

impl MeasuredRates {
    /// Measures a card.
    ///
    /// # Errors
    /// Out of memory, or the device failed.
    pub fn measure(device: &Device, clock: &dyn Clock) -> Result<Self> {
        let product_flop = product_flops_per_s(device, clock, HEADS * CHANNELS)?;
        let [attention_forward_flop, attention_backward_flop] = attention_rates(device, clock)?;
        let from = Tensor::zeros(device, DType::U8, &[COPIED / 4096, 4096])?;
        let mut to = from.duplicate()?;
        let copy_s = fastest(device, clock, || Ok(copy::forward(from.view(), to.view_mut())?))?;
        drop((from, to));
        let (bytes, mut there) = (vec![1u8; SENT], Tensor::empty(device, DType::U8, &[SENT])?);
        let send_s = fastest(device, clock, || Ok(there.set_bytes(&bytes)?))?;
        Ok(MeasuredRates {
            product_flop,
            attention_forward_flop,
            attention_backward_flop,
            memory_bytes: 2.0 * COPIED as f64 / copy_s,
            host_bytes: SENT as f64 / send_s,
        })
    }

    /// The machine with these rates in place of those of the catalogue; others are scaled with the one that
    /// they are a share of.
    pub fn apply(&self, machine: &mut Machine) {
        let rates = &mut machine.rates;
        let products = self.product_flop * (1.0 + rates.gemm.half / ROWS) / rates.gemm.per_s;
        rates.gemm.per_s *= products;
        rates.lora_gemm.per_s *= products;
        let tokens = TOKENS as f64;
        for (rate, measured) in [
            (&mut rates.attention_forward, self.attention_forward_flop),
            (&mut rates.attention_backward, self.attention_backward_flop),
        ] {
            rate.per_s = measured * (1.0 + rate.half / tokens);
        }
        let memory = self.memory_bytes / rates.elementwise_bytes_per_s;
        for rate in [
            &mut rates.elementwise_bytes_per_s,
            &mut rates.lora_bytes_per_s,
            &mut rates.optimiser_bytes_per_s,
            &mut rates.operand_bytes_per_s,
            &mut rates.lora_activation_bytes_per_s,
            &mut rates.attention_bytes_per_s,
        ] {
            *rate *= memory;
        }
        rates.host_bytes_per_s = self.host_bytes;
    }
}

/// Seconds of work, the fastest of several times.
fn fastest(device: &Device, clock: &dyn Clock, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut least = f64::INFINITY;
    for time in 0..=TIMES {
        device.synchronise()?;
        let began_s = clock.now_s();
        work()?;
        device.synchronise()?;
        if time > 0 {
            least = least.min(clock.now_s() - began_s);
        }
    }
    Ok(least)
}

/// FLOP/s of attention forward and backward: `4·h·s²·d`, and two and a half times that.
fn attention_rates(device: &Device, clock: &dyn Clock) -> Result<[f64; 2]> {
    let shape = [TOKENS, HEADS * CHANNELS];
    let numbers = |seed| -> Result<Tensor> {
        let mut values = vec![0.0f32; shape[0] * shape[1]];
        Philox::new(seed).normal(0, &mut values);
        Ok(Tensor::from_f32(device, device.activations(), &values, &shape)?)
    };
    let (q, k, v, d_o) = (numbers(1)?, numbers(2)?, numbers(3)?, numbers(4)?);
    let (mut o, mut lse) = (q.empty_like(&shape)?, Tensor::empty(device, DType::F32, &[TOKENS, HEADS])?);
    let [mut dq, mut dk, mut dv] = [q.empty_like(&shape)?, q.empty_like(&shape)?, q.empty_like(&shape)?];
    let layout = attention::Layout {
        key_lens: &[TOKENS],
        device_lens: None,
        tokens: TOKENS,
        heads: HEADS,
        scale: 1.0 / (CHANNELS as f64).sqrt(),
        bf16_products: false,
    };
    let forward_s = fastest(device, clock, || {
        Ok(attention::forward(q.view(), k.view(), v.view(), layout, o.view_mut(), lse.view_mut())?)
    })?;
    let backward_s = fastest(device, clock, || {
        let saved = attention::Saved { q: q.view(), k: k.view(), v: v.view(), o: o.view(), lse: lse.view() };
        Ok(attention::backward(saved, layout, d_o.view(), dq.view_mut(), dk.view_mut(), dv.view_mut())?)
    })?;
    let flop = 4.0 * (HEADS * TOKENS * TOKENS * CHANNELS) as f64;
    Ok([flop / forward_s, 2.5 * flop / backward_s])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A product of 4096 rows is planned at the rate that it was measured at.
    #[test]
    fn plans_use_what_was_measured() {
        let mut machine = Machine::gpu("NVIDIA H200", 140e9);
        let before = machine.clone();
        let rates = MeasuredRates {
            product_flop: 500e12,
            attention_forward_flop: 400e12,
            attention_backward_flop: 300e12,
            memory_bytes: 2e12,
            host_bytes: 20e9,
        };
        rates.apply(&mut machine);
        let at = |rate: tenggat_plan::Rate, n: f64| rate.per_s * n / (n + rate.half);
        assert!((at(machine.rates.gemm, ROWS) / 500e12 - 1.0).abs() < 1e-12);
        assert!((at(machine.rates.attention_backward, TOKENS as f64) / 300e12 - 1.0).abs() < 1e-12);
        assert_eq!(machine.rates.host_bytes_per_s, 20e9);
        assert_eq!(machine.rates.elementwise_bytes_per_s, 2e12);
        let optimiser = machine.rates.optimiser_bytes_per_s / before.rates.optimiser_bytes_per_s;
        assert!((optimiser * before.rates.elementwise_bytes_per_s / 2e12 - 1.0).abs() < 1e-12);
    }
}
