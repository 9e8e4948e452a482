//! The path to a real GPU on the processor: NVIDIA's libraries are replaced by stand-ins (`stand-in/` of
//! tenggat-gpu) that do what the libraries' documentation promises, and no more.

use std::env;
use std::ffi::c_void;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use cudarc::cublaslt::{self, sys as lt};
use cudarc::driver::{CudaContext, CudaStream, result};

use crate::ops::linear::{self, Write};
use crate::ops::{attention, check, gelu, gemm};
use crate::weight::Weight;
use crate::{DType, Device, Tensor};

/// Variable that tells tests in a child process that the libraries are stand-ins.
const STAND_IN: &str = "TENGGAT_STAND_IN";
/// Variable that names faults of the stand-ins, see `stand-in/faults.hpp`.
const FAULTS: &str = "TENGGAT_STAND_IN_FAULTS";
/// Faults, and tests that pass all the same.
const FAULTY: [(&str, &[&str]); 6] = [
    ("products", &["ops::gemm::tests::gpus_agree", "parts_are_products_of_parts"]),
    ("scales", &["cards_without_scales"]),
    ("first-ways", &["ops::gemm::tests::gpus_agree"]),
    ("captured-questions", &["streams_apart"]),
    ("dnn-plans", &["ops::attention::tests::gpus_agree"]),
    ("dnn-execution", &["ops::attention::tests::gpus_agree"]),
];

/// Runs the tests of GPUs in a process that takes the stand-ins for NVIDIA's libraries.
#[test]
fn the_path_to_a_real_device_passes_on_stand_ins() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tenggat-gpu/stand-in/build.sh");
    let built = Command::new("sh").arg(script).output().unwrap();
    if !built.status.success() {
        let why = String::from_utf8_lossy(&built.stderr);
        let compiler = env::var_os("CXX").unwrap_or_else(|| "c++".into());
        let there = Command::new(compiler).arg("--version").output().is_ok();
        assert!(!there, "{why}");
        tenggat_skip::skipped_without_cxx(why);
        return;
    }
    let folder = String::from_utf8(built.stdout).unwrap();
    let run = |tests: &[&str], faults: &str, at_least: usize| {
        let child = Command::new(env::current_exe().unwrap())
            .args(tests)
            .env("LD_LIBRARY_PATH", folder.trim())
            .env(FAULTS, faults)
            .envs([(STAND_IN, "1"), ("TENGGAT_TEST_GPU", "1")])
            .env_remove("TENGGAT_REQUIRE_CUDA_LIBRARIES")
            .output()
            .unwrap();
        let [out, err] = [child.stdout, child.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        let passed = out.split_once("test result: ok. ").and_then(|(_, rest)| rest.split(' ').next());
        let passed: usize = passed.and_then(|n| n.parse().ok()).unwrap_or(0);
        let good = child.status.success() && passed >= at_least;
        assert!(good, "{}, {passed} passed\n{out}\n{err}", child.status);
    };
    run(&["gpu", "fp8"], "", 40);
    // Memory is counted by one test alone.
    run(&["--exact", "device::tests::stand_in::all_memory_is_given_back"], "", 1);
    // The same numbers come of what is done instead where a library fails.
    for (fault, tests) in FAULTY {
        run(&[&["faulty", "--skip", "passes_on"], tests].concat(), fault, tests.len());
    }
}

/// What a fault of the stand-ins leads to.
#[test]
fn faulty_libraries_are_noted() {
    let Some(_) = context() else { return };
    let faults = env::var(FAULTS).unwrap_or_default();
    let Some(device) = check::open_gpu() else { panic!("no GPU") };
    let Device::Cuda(cuda) = &device else { panic!("not a GPU") };
    let x = check::randn(DType::F32, &[8, 8], 1).into_device(&device).unwrap();
    let product = || {
        let mut y = x.empty_like(&[8, 8])?;
        gemm::nn(1.0, x.view(), x.view(), 0.0, y.view_mut())?;
        Ok::<_, crate::Error>(y)
    };
    match faults.as_str() {
        "" => {}
        "products" => {
            let y = product().unwrap();
            assert!(cuda.notes().iter().any(|note| note.contains("slow kernel")), "{:?}", cuda.notes());
            let (again, graph) = cuda.capture(product).unwrap();
            assert!(graph.replay().unwrap());
            assert_eq!(again.to_f64().unwrap(), y.to_f64().unwrap());
        }
        "first-ways" => {
            product().unwrap();
            assert!(!cuda.notes().iter().any(|note| note.contains("slow kernel")), "another way is there");
        }
        "scales" => scales_follow_products(&device),
        "captured-questions" => {
            fp8_is_refused_in_captures_alone(&device);
            let error = cuda.capture(product).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.contains("new while work is captured"), "{error}");
            let y = product().expect("what was refused in a capture is not refused for good");
            let (again, graph) = cuda.capture(product).unwrap();
            assert!(graph.replay().unwrap());
            assert_eq!(again.to_f64().unwrap(), y.to_f64().unwrap());
        }
        "dnn-plans" | "dnn-execution" => {
            assert!(cuda.dnn().is_some() && cuda.missing_dnn().is_none());
            let [q, k, v] = [1, 2, 3]
                .map(|seed| check::randn(DType::BF16, &[40, 128], seed).into_device(&device).unwrap());
            let (mut o, mut lse) =
                (q.empty_like(&[40, 128]).unwrap(), Tensor::empty(&device, DType::F32, &[40, 2]).unwrap());
            let layout = attention::Layout {
                key_lens: &[30],
                device_lens: None,
                tokens: 40,
                heads: 2,
                scale: 0.125,
                bf16_products: false,
            };
            let mut forward =
                || attention::forward(q.view(), k.view(), v.view(), layout, o.view_mut(), lse.view_mut());
            forward().unwrap();
            // What failed is captured on the way that does not.
            let ((), graph) = cuda.capture(forward).unwrap();
            assert!(graph.replay().unwrap());
            assert!(o.to_f64().unwrap().iter().all(|x| x.is_finite()));
            assert!(
                cuda.notes().iter().any(|note| note.contains("without tensor cores")),
                "{:?}",
                cuda.notes()
            );
        }
        other => panic!("unknown fault {other}"),
    }
}

/// A layer in 8-bit floats on a device, and what it is given.
fn fp8_layer(device: &Device) -> (Weight, Tensor) {
    let weight = Weight::Dense(check::randn(DType::BF16, &[48, 128], 3)).into_device(device).unwrap();
    let x = check::randn(DType::BF16, &[32, 128], 4).into_device(device).unwrap();
    (weight.into_fp8().unwrap(), x)
}

fn forward(x: &Tensor, weight: &Weight) -> Result<Tensor, crate::Error> {
    let mut y = x.empty_like(&[32, 48])?;
    linear::forward(x.view(), weight, None, y.view_mut())?;
    Ok(y)
}

/// Where the library takes no scales, they are applied behind the product, and nothing falls back to bf16.
fn scales_follow_products(device: &Device) {
    let (weight, x) = fp8_layer(device);
    let Weight::Fp8(fp8) = &weight else { panic!("not in 8-bit floats") };
    let mut y = x.empty_like(&[32, 48]).unwrap();
    assert!(device.fp8_products());
    assert!(fp8.forward(x.view(), None, Write::Replace, y.view_mut()).unwrap(), "it fell back");
    assert_eq!(forward(&x, &weight).unwrap().to_f64().unwrap(), y.to_f64().unwrap());
}

/// What the library would not say of a product of 8-bit floats while work was captured, it is asked again.
fn fp8_is_refused_in_captures_alone(device: &Device) {
    let Device::Cuda(cuda) = device else { panic!("not a GPU") };
    let (weight, x) = fp8_layer(device);
    let captured = cuda.capture(|| forward(&x, &weight)).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(captured.contains("new while work is captured"), "{captured}");
    let Weight::Fp8(fp8) = &weight else { panic!("not in 8-bit floats") };
    let mut y = x.empty_like(&[32, 48]).unwrap();
    assert!(fp8.forward(x.view(), None, Write::Replace, y.view_mut()).unwrap(), "refused for good");
    let (again, graph) = cuda.capture(|| forward(&x, &weight)).unwrap();
    assert!(graph.replay().unwrap());
    assert_eq!(again.to_f64().unwrap(), y.to_f64().unwrap());
}

/// Where cuDNN is not installed, long attention is an error that says what to do.
#[test]
fn a_gpu_without_cudnn_says_so_before_it_takes_hours() {
    let Some(_) = context() else { return };
    let Some(device) = check::open_gpu() else { panic!("no GPU") };
    let Device::Cuda(cuda) = &device else { panic!("not a GPU") };
    if cuda.missing_dnn().is_none() {
        return;
    }
    let q = Tensor::zeros(&device, DType::BF16, &[1024, 8]).unwrap();
    let (mut o, mut lse) =
        (q.empty_like(&[1024, 8]).unwrap(), Tensor::empty(&device, DType::F32, &[1024, 1]).unwrap());
    let layout = attention::Layout {
        key_lens: &[1024],
        device_lens: None,
        tokens: 1024,
        heads: 1,
        scale: 0.5,
        bf16_products: false,
    };
    let result = attention::forward(q.view(), q.view(), q.view(), layout, o.view_mut(), lse.view_mut());
    let error = result.unwrap_err().to_string();
    assert!(error.contains("nvidia-cudnn") && error.contains("TENGGAT_WITHOUT=dnn"), "{error}");
}

/// A device that is dropped leaves nothing behind for others that have it open.
#[test]
fn all_memory_is_given_back() {
    let Some(context) = context() else { return };
    let before = context.mem_get_info().unwrap();
    {
        let Some(device) = check::open_gpu() else { panic!("no GPU") };
        let Device::Cuda(cuda) = &device else { panic!("not a GPU") };
        let x = check::randn(DType::F32, &[4, 4], 1).into_device(&device).unwrap();
        cuda.constants(&[1, 2]).unwrap();
        let work = || {
            let mut y = x.empty_like(&[4, 4])?;
            gemm::nn(1.0, x.view(), x.view(), 0.0, y.view_mut())?;
            Ok::<_, crate::Error>(y)
        };
        let (y, graph) = cuda.capture(work).unwrap();
        assert!(graph.replay().unwrap());
        y.to_f64().unwrap();
        assert!(context.mem_get_info().unwrap().0 < before.0);
        // The last owner of the device drops it on a thread where it was never current.
        std::thread::spawn(move || drop((x, y, graph, device))).join().unwrap();
    }
    assert_eq!(context.mem_get_info().unwrap(), before);
    let unused = check::open_gpu();
    std::thread::spawn(move || drop(unused)).join().unwrap();
    assert_eq!(context.mem_get_info().unwrap(), before);
}

/// The stand-ins' context; none outside the child process.
fn context() -> Option<Arc<CudaContext>> {
    if env::var_os(STAND_IN).is_none() {
        eprintln!("skipped: no stand-ins here");
        return None;
    }
    let context = CudaContext::new(0).unwrap();
    // SAFETY: the tests order their streams themselves.
    unsafe { context.disable_event_tracking() };
    Some(context)
}

#[test]
fn a_gpu_is_found() {
    let Some(_) = context() else { return };
    let Some(Device::Cuda(cuda)) = check::gpu() else { panic!("no GPU") };
    assert_eq!(cuda.description(), "stand-in");
    assert_eq!(cuda.versions(), "kernels for sm_90a, cuBLASLt 130100, no cuDNN");
    assert!(cuda.fp8_products());
}

/// Epilogues with GELU against the op: rounding in 32 bits.
#[test]
fn products_of_a_gpu_end_in_gelu() {
    use lt::{cublasLtEpilogue_t as Epilogue, cublasLtMatmulDescAttributes_t as Attribute};
    const N: usize = 8;
    let Some(context) = context() else { return };
    let stream = context.new_stream().unwrap();
    let numbers = |seed| check::randn(DType::F32, &[N, N], seed);
    let [identity, x, bias, aux, out] = [(); 5].map(|()| Numbers::new());
    let (b, row) = (numbers(1), numbers(2));
    let ones: Vec<f64> = (0..N * N).map(|i| f64::from(u8::from(i % (N + 1) == 0))).collect();
    identity.write(&Tensor::from_f64(&Device::cpu(), DType::F32, &ones, &[N, N]).unwrap(), &stream);
    x.write(&b, &stream);
    bias.write(&row, &stream);
    let handle = cublaslt::result::create_handle().unwrap();
    let (compute, f32_type) = (lt::cublasComputeType_t::CUBLAS_COMPUTE_32F, lt::cudaDataType::CUDA_R_32F);
    let layout = cublaslt::result::create_matrix_layout(f32_type, N as u64, N as u64, N as i64).unwrap();
    let run = |epilogue: Epilogue| {
        let description = cublaslt::result::create_matmul_desc(compute, f32_type).unwrap();
        let values = [
            (Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue as u64, 4),
            (Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias.0, 8),
            (Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, aux.0, 8),
            (Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, N as u64, 8),
        ];
        let (alpha, beta) = (1.0f32, 0.0f32);
        // SAFETY: all matrices are as large as the layout says, and described by live descriptions.
        unsafe {
            for (what, value, bytes) in values {
                let value = (&raw const value).cast();
                cublaslt::result::set_matmul_desc_attribute(description, what, value, bytes).unwrap();
            }
            let scalars = [&raw const alpha, &raw const beta].map(<*const f32>::cast);
            let [a, b, d] = [identity.0, x.0, out.0].map(|address| address as *mut c_void);
            let status = lt::cublasLtMatmul(
                handle,
                description,
                scalars[0],
                a,
                layout,
                b,
                layout,
                scalars[1],
                d,
                layout,
                d,
                layout,
                std::ptr::null(),
                std::ptr::null_mut(),
                0,
                stream.cu_stream().cast(),
            );
            status.result().unwrap();
            cublaslt::result::destroy_matmul_desc(description).unwrap();
        }
        out.read(&stream)
    };
    // The bias goes along rows of their matrix, columns of ours.
    let row = row.to_f64().unwrap();
    let sum: Vec<f64> = b.to_f64().unwrap().iter().enumerate().map(|(i, x)| x + row[i % N]).collect();
    let sum = Tensor::from_f64(&Device::cpu(), DType::F32, &sum, &[N, N]).unwrap();
    let mut expected = sum.duplicate().unwrap();
    gelu::forward(sum.view(), expected.view_mut()).unwrap();
    let got = run(Epilogue::CUBLASLT_EPILOGUE_GELU_AUX_BIAS);
    check::assert_close("gelu", &got, &expected, 1e-6);
    check::assert_close("saved", &aux.read(&stream), &sum, 1e-6);
    let mut expected = b.duplicate().unwrap();
    gelu::backward(sum.view(), expected.view_mut()).unwrap();
    check::assert_close("derivative", &run(Epilogue::CUBLASLT_EPILOGUE_DGELU), &expected, 1e-5);

    /// A matrix of f32 in the device's memory.
    struct Numbers(u64);

    impl Numbers {
        fn new() -> Self {
            // SAFETY: freed with the context.
            Numbers(unsafe { result::malloc_sync(4 * N * N) }.unwrap())
        }

        fn write(&self, values: &Tensor, stream: &CudaStream) {
            // SAFETY: the allocation is as long.
            unsafe { result::memcpy_htod_async(self.0, &values.to_f32().unwrap(), stream.cu_stream()) }
                .unwrap();
        }

        fn read(&self, stream: &CudaStream) -> Tensor {
            let mut values = [0.0f32; N * N];
            // SAFETY: the allocation is as long, and the copy is waited for.
            unsafe { result::memcpy_dtoh_async(&mut values, self.0, stream.cu_stream()) }.unwrap();
            stream.synchronize().unwrap();
            Tensor::from_f64(&Device::cpu(), DType::F32, &values.map(f64::from), &[N, N]).unwrap()
        }
    }
}
