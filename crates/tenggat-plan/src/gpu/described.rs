//! A card described by its numbers: `name=my card,tflops=91,gb=48,bandwidth=864`.

use std::borrow::Cow;

use super::Gpu;
use super::family::UNKNOWN;

/// A description of a card that is not understood.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GpuDescriptionError {
    /// A part without `=`.
    #[error("`{0}`: expected key=value, such as `name=my card,tflops=91,gb=48,bandwidth=864`")]
    NoValue(String),
    /// A key that does not exist.
    #[error("`{0}` is not a property of a card; use name, tflops, gb, bandwidth, fp8, f32 or host")]
    UnknownKey(String),
    /// A value that is no number, or out of range.
    #[error("{key}={value}: expected a number above 0 and below {most} ({unit})")]
    Value {
        /// The key.
        key: &'static str,
        /// What was written.
        value: String,
        /// First number that is too large.
        most: f64,
        /// Its unit.
        unit: &'static str,
    },
    /// A key that must be there.
    #[error("{0}=… is missing; a card needs tflops (dense bf16, TFLOP/s), gb (memory) and bandwidth (GB/s)")]
    Missing(&'static str),
}

/// A numeric property: its names, unit, and first value that is too large.
const PROPERTIES: [(&[&str], &str, f64); 6] = [
    (&["tflops", "bf16"], "dense bf16, TFLOP/s", 1e5),
    (&["gb", "memory"], "memory in GB", 1e4),
    (&["bandwidth"], "GB/s", 1e6),
    (&["fp8"], "dense fp8, TFLOP/s", 1e6),
    (&["f32"], "TFLOP/s without tensor cores", 1e5),
    (&["host"], "GB/s from the host", 1e4),
];

/// Share of the bf16 rate that a card does in f32 if it is not said: between that of data-centre cards (1/15)
/// and of gaming cards (1/2).
const F32_SHARE: f64 = 0.25;
/// GB/s from the host if it is not said: PCIe 4 with 16 lanes.
const HOST_GB_PER_S: f64 = 25.0;

impl Gpu {
    /// Whether `text` describes a card, rather than naming one.
    pub fn is_description(text: &str) -> bool {
        text.contains('=')
    }

    /// The card that is described by `name=…,tflops=…,gb=…,bandwidth=…` and, where known,
    /// `fp8=…,f32=…,host=…`. Its efficiencies are the middle of the catalogue's.
    ///
    /// # Errors
    /// [`GpuDescriptionError`] for unknown keys, values that are no numbers, and for a description that lacks
    /// `tflops`, `gb` or `bandwidth`.
    pub fn described(text: &str) -> Result<Self, GpuDescriptionError> {
        let mut name = None;
        let mut values = [None; PROPERTIES.len()];
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (key, value) =
                part.split_once('=').ok_or_else(|| GpuDescriptionError::NoValue(part.to_owned()))?;
            let (key, value) = (key.trim().to_lowercase(), value.trim());
            if key == "name" {
                name = Some(value.to_owned()).filter(|name| !name.is_empty());
                continue;
            }
            let at = PROPERTIES.iter().position(|(names, ..)| names.contains(&key.as_str()));
            let at = at.ok_or_else(|| GpuDescriptionError::UnknownKey(key.clone()))?;
            let (names, unit, most) = PROPERTIES[at];
            let number = value.parse::<f64>().ok().filter(|number| *number > 0.0 && *number < most);
            let wrong = || GpuDescriptionError::Value { key: names[0], value: value.to_owned(), most, unit };
            values[at] = Some(number.ok_or_else(wrong)?);
        }
        let [bf16, memory, bandwidth, fp8, f32, host] = values;
        let needed = |value: Option<f64>, key| value.ok_or(GpuDescriptionError::Missing(key));
        let bf16_tflops = needed(bf16, "tflops")?;
        let f32_tflops = f32.unwrap_or(F32_SHARE * bf16_tflops);
        Ok(Self {
            name: name.map_or(Cow::Borrowed("described card"), Cow::Owned),
            bf16_tflops,
            fp8_tflops: fp8.unwrap_or(0.0),
            tf32_tflops: 0.5 * bf16_tflops,
            f32_tflops,
            bandwidth_gb_per_s: needed(bandwidth, "bandwidth")?,
            memory_gb: needed(memory, "gb")?,
            host_gb_per_s: host.unwrap_or(HOST_GB_PER_S),
            family: UNKNOWN,
            source: "described on the command line",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_described_by_its_numbers() {
        let gpu = Gpu::described("name=H20, tflops=148, gb=96, bandwidth=4000, fp8=296").unwrap();
        assert_eq!((gpu.name.as_ref(), gpu.bf16_tflops, gpu.memory_gb), ("H20", 148.0, 96.0));
        assert_eq!((gpu.bandwidth_gb_per_s, gpu.fp8_tflops), (4000.0, 296.0));
        assert_eq!(Gpu::described("tflops=1,gb=8,bandwidth=100").unwrap().name, "described card");
    }

    #[test]
    fn a_poor_description_is_told_what_it_lacks() {
        let said = |text: &str| Gpu::described(text).unwrap_err().to_string();
        assert!(said("tflops=91,gb=48").contains("bandwidth=…"));
        assert!(said("tflops=91,gb=48,speed=3").contains("`speed`"));
        assert!(said("tflops=-1,gb=48,bandwidth=1").contains("tflops=-1"));
        assert!(said("tflops=NaN,gb=48,bandwidth=1").contains("tflops=NaN"));
        assert!(said("name,tflops=1").contains("`name`"));
    }
}
