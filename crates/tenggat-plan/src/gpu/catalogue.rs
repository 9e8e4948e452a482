//! The catalogue: what vendors state. Peaks are dense figures at boost clock with 32-bit accumulation.

use std::borrow::Cow;

use super::Gpu;
use super::family::{
    ADA, ADA_LOW_POWER, ADA_WORKSTATION, AMPERE, AMPERE_DATA_CENTRE, AMPERE_WORKSTATION, BLACKWELL,
    BLACKWELL_DATA_CENTRE, Family, HOPPER,
};

/// One line of the catalogue: bf16, fp8, TF32 and f32 in TFLOP/s, bandwidth in GB/s, memory in GB, host link
/// in GB/s.
const fn gpu(
    name: &'static str,
    [bf16_tflops, fp8_tflops, tf32_tflops, f32_tflops]: [f64; 4],
    [bandwidth_gb_per_s, memory_gb, host_gb_per_s]: [f64; 3],
    family: Family,
    source: &'static str,
) -> Gpu {
    Gpu {
        name: Cow::Borrowed(name),
        bf16_tflops,
        fp8_tflops,
        tf32_tflops,
        f32_tflops,
        bandwidth_gb_per_s,
        memory_gb,
        host_gb_per_s,
        family,
        source,
    }
}

const HOPPER_DATASHEET: &str = "NVIDIA H100 datasheet and Hopper whitepaper";
const ADA_WHITEPAPER: &str = "NVIDIA Ada architecture whitepaper";
const BLACKWELL_WHITEPAPER: &str = "NVIDIA RTX Blackwell architecture whitepaper";
const GEFORCE_PAGE: &str =
    "NVIDIA product page; tensor rate as twice the f32 rate, as in the whitepaper's table of the RTX 5090";
const GA102_WHITEPAPER: &str = "NVIDIA GA102 architecture whitepaper";

/// The catalogue, data-centre cards first, then by rate. Memory is what is sold, in GB of 10⁹ bytes.
pub const GPUS: &[Gpu] = &[
    gpu(
        "B300",
        [2250.0, 4500.0, 1125.0, 75.0],
        [8000.0, 270.0, 50.0],
        BLACKWELL_DATA_CENTRE,
        "NVIDIA HGX B300 product page, sparse figures halved",
    ),
    gpu(
        "B200",
        [2250.0, 4500.0, 1125.0, 75.0],
        [8000.0, 180.0, 50.0],
        BLACKWELL_DATA_CENTRE,
        "NVIDIA HGX B200 product page, sparse figures halved",
    ),
    gpu("H200", [989.4, 1978.9, 494.7, 66.9], [4800.0, 141.0, 50.0], HOPPER, "NVIDIA H200 datasheet"),
    gpu("H100 SXM", [989.4, 1978.9, 494.7, 66.9], [3350.0, 80.0, 50.0], HOPPER, HOPPER_DATASHEET),
    gpu("H100 PCIe", [756.0, 1513.0, 378.0, 51.2], [2000.0, 80.0, 50.0], HOPPER, HOPPER_DATASHEET),
    gpu(
        "A100 80GB",
        [312.0, 0.0, 156.0, 19.5],
        [2039.0, 80.0, 25.0],
        AMPERE_DATA_CENTRE,
        "NVIDIA A100 datasheet, SXM",
    ),
    gpu(
        "A100 40GB",
        [312.0, 0.0, 156.0, 19.5],
        [1555.0, 40.0, 25.0],
        AMPERE_DATA_CENTRE,
        "NVIDIA A100 datasheet, SXM",
    ),
    gpu(
        "RTX PRO 6000",
        [503.8, 1007.6, 251.9, 125.9],
        [1792.0, 96.0, 50.0],
        BLACKWELL,
        "NVIDIA RTX PRO 6000 Blackwell datasheet",
    ),
    gpu(
        "RTX PRO 6000 Max-Q",
        [438.9, 877.9, 219.5, 109.7],
        [1792.0, 96.0, 50.0],
        BLACKWELL,
        "NVIDIA RTX PRO 6000 Blackwell Max-Q datasheet",
    ),
    gpu(
        "RTX 6000 Ada",
        [364.2, 728.5, 182.1, 91.1],
        [960.0, 48.0, 25.0],
        ADA_WORKSTATION,
        "NVIDIA RTX 6000 Ada datasheet, sparse figures halved",
    ),
    gpu("L40S", [362.0, 733.0, 183.0, 91.6], [864.0, 48.0, 25.0], ADA_WORKSTATION, "NVIDIA L40S datasheet"),
    gpu("RTX 5090", [209.5, 419.0, 104.8, 104.8], [1792.0, 32.0, 50.0], BLACKWELL, BLACKWELL_WHITEPAPER),
    gpu("RTX 4090", [165.2, 330.3, 82.6, 82.6], [1008.0, 24.0, 25.0], ADA, ADA_WHITEPAPER),
    gpu("RTX A6000", [154.8, 0.0, 77.4, 38.7], [768.0, 48.0, 25.0], AMPERE_WORKSTATION, GA102_WHITEPAPER),
    gpu(
        "GB10",
        [125.0, 250.0, 62.5, 31.2],
        [273.0, 128.0, 50.0],
        BLACKWELL,
        "NVIDIA DGX Spark product page: 1 PFLOP of sparse fp4, an eighth of it dense bf16",
    ),
    gpu(
        "L4",
        [121.0, 242.5, 60.0, 30.3],
        [300.0, 24.0, 25.0],
        ADA_LOW_POWER,
        "NVIDIA L4 datasheet, sparse figures halved",
    ),
    gpu("RTX 5080", [112.6, 225.1, 56.3, 56.3], [960.0, 16.0, 50.0], BLACKWELL, BLACKWELL_WHITEPAPER),
    gpu("RTX 4080", [97.5, 194.9, 48.7, 48.7], [716.8, 16.0, 25.0], ADA, ADA_WHITEPAPER),
    gpu("RTX 4080 Super", [104.4, 208.9, 52.2, 52.2], [736.3, 16.0, 25.0], ADA, GEFORCE_PAGE),
    gpu("RTX 4070 Ti Super", [88.2, 176.4, 44.1, 44.1], [672.0, 16.0, 25.0], ADA, GEFORCE_PAGE),
    gpu("RTX 5070 Ti", [87.9, 175.8, 43.9, 43.9], [896.0, 16.0, 50.0], BLACKWELL, BLACKWELL_WHITEPAPER),
    gpu("RTX 3090 Ti", [80.0, 0.0, 40.0, 40.0], [1008.0, 24.0, 25.0], AMPERE, GEFORCE_PAGE),
    gpu("RTX 3090", [71.0, 0.0, 35.6, 35.6], [936.0, 24.0, 25.0], AMPERE, GA102_WHITEPAPER),
    gpu(
        "A10G",
        [70.0, 0.0, 35.0, 31.5],
        [600.0, 24.0, 25.0],
        AMPERE,
        "NVIDIA A10G datasheet of AWS G5 instances",
    ),
    gpu("RTX 5060 Ti", [47.4, 94.8, 23.7, 23.7], [448.0, 16.0, 25.0], BLACKWELL, GEFORCE_PAGE),
    gpu("RTX 4060 Ti", [44.1, 88.2, 22.1, 22.1], [288.0, 16.0, 12.0], ADA, GEFORCE_PAGE),
    gpu("RTX 3060", [25.5, 0.0, 12.7, 12.7], [360.0, 12.0, 25.0], AMPERE, GEFORCE_PAGE),
];
