//! Finds NVIDIA's libraries, and loads them before the bindings look for them by name.
//!
//! The bindings ask the system for `libcudnn.so.9` and the like, and the system's search path is fixed when
//! the process starts. A library that was loaded from elsewhere before answers to its name, so everything is
//! loaded here by path, once, and stays. The driver, `libcuda.so.1`, is the system's and not looked for.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LOCAL, RTLD_NOW};

/// The libraries in the order in which they need one another; of each, the file names, best first.
const LIBRARIES: [&[&str]; 4] = [
    &["libcudart.so.13", "libcudart.so.12"],
    &["libnvrtc.so.13", "libnvrtc.so.12"],
    &["libcublasLt.so.13", "libcublasLt.so.12"],
    &["libcudnn.so.9"],
];

/// Loads the libraries and returns what was loaded: a path, or the bare name where the system found the file.
///
/// Of each, the newest major version that the driver runs is what the bindings use: an older driver refuses
/// what a newer compiler made, so newer ones are loaded only where there is no other. Older ones are loaded
/// beside it, each with its parts: a cuDNN that was built for another CUDA asks for the compiler of its own.
///
/// Each is taken from the first place that has it: `folders`, the system's own path, a toolkit (`CUDA_HOME`,
/// `/usr/local/cuda`), the Python packages of an environment (`VIRTUAL_ENV`, `CONDA_PREFIX`, next to the
/// `bin` folders on `PATH`). One that is nowhere, or that does not load, is left out: whoever needs it says
/// so.
pub fn preload(folders: &[PathBuf]) -> Vec<PathBuf> {
    let (places, driver) = (places(), driver_major());
    let load = |names: &[&str]| preload_all(names, folders, &places);
    let loaded = LIBRARIES.into_iter().map(|names| {
        let [fit, too_new] = for_driver(names, driver);
        Some(load(&fit)).filter(|loaded| !loaded.is_empty()).unwrap_or_else(|| load(&too_new))
    });
    loaded.flatten().collect()
}

/// Major version of CUDA that the driver runs; `None` without one.
fn driver_major() -> Option<u32> {
    if !driver_is_there() {
        return None;
    }
    let mut version = 0;
    // SAFETY: the driver is there, and writes one number.
    unsafe { cudarc::driver::sys::cuDriverGetVersion(&raw mut version) }.result().ok()?;
    u32::try_from(version / 1000).ok().filter(|&major| major > 0)
}

/// The names of a library that a driver runs, and those that are too new for it. Only names of libraries that
/// come in several versions end in that of CUDA.
fn for_driver<'a>(names: &[&'a str], driver: Option<u32>) -> [Vec<&'a str>; 2] {
    let major = |name: &str| name.rsplit('.').next().and_then(|major| major.parse::<u32>().ok());
    let fits = |name: &&str| names.len() == 1 || driver.zip(major(name)).is_none_or(|(most, is)| is <= most);
    let (fit, too_new) = names.iter().partition(|name| fits(name));
    [fit, too_new]
}

/// Loads a library in every version that is found, the first for all to see.
fn preload_all(names: &[&str], folders: &[PathBuf], places: &[PathBuf]) -> Vec<PathBuf> {
    let mut scope = RTLD_GLOBAL;
    let mut all = Vec::new();
    for name in names {
        let loaded = preload_one(name, folders, places, scope);
        if !loaded.is_empty() {
            // The names of functions are the same in each version: only one may be found by them.
            scope = RTLD_LOCAL;
        }
        all.extend(loaded);
    }
    all
}

/// Whether the driver's library is installed, so that there may be a GPU.
pub fn driver_is_there() -> bool {
    // SAFETY: only asks whether a library can be opened.
    unsafe { cudarc::driver::sys::is_culib_present() }
}

/// Loads one library, with the parts that it will ask for by name.
fn preload_one(name: &str, folders: &[PathBuf], places: &[PathBuf], scope: i32) -> Vec<PathBuf> {
    let load = |file: &Path| load(file, scope);
    let from = |folders: &[PathBuf]| {
        let file = find(name, folders)?;
        // The compiler opens its headers by a name with the minor version in it, and does not look in its own
        // folder.
        let parts = name
            .strip_prefix("libnvrtc.so.")
            .zip(file.parent())
            .map_or(Vec::new(), |(major, folder)| starting(folder, &format!("libnvrtc-builtins.so.{major}")));
        let loaded: Vec<PathBuf> = parts.into_iter().filter(|part| load(part)).collect();
        load(&file).then(|| loaded.into_iter().chain([file]).collect())
    };
    from(folders)
        .or_else(|| Some(PathBuf::from(name)).filter(|name| load(name)).map(|name| vec![name]))
        .or_else(|| from(places))
        .unwrap_or_default()
}

/// Loads a library for the rest of the process, its names for all to see (`RTLD_GLOBAL`) or not.
fn load(file: &Path, scope: i32) -> bool {
    // SAFETY: loading runs the initialisers of NVIDIA's library, which ask nothing of the process.
    match unsafe { Library::open(Some(file), RTLD_NOW | scope) } {
        Ok(library) => {
            // Unloading would take the functions away from those who hold them.
            std::mem::forget(library);
            true
        }
        Err(_) => false,
    }
}

/// The file of this name in the first folder that has one.
fn find(name: &str, folders: &[PathBuf]) -> Option<PathBuf> {
    folders.iter().map(|folder| folder.join(name)).find(|file| file.exists())
}

/// Folders of toolkits and Python environments that may hold libraries, the likeliest first.
fn places() -> Vec<PathBuf> {
    let set = |name| env::var_os(name).map(PathBuf::from);
    let toolkits = set("CUDA_HOME").into_iter().chain([PathBuf::from("/usr/local/cuda")]);
    let on_path = env::var_os("PATH").unwrap_or_default();
    let prefixes = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(set).chain(
        env::split_paths(&on_path)
            .filter(|folder| folder.ends_with("bin"))
            .filter_map(|folder| folder.parent().map(Path::to_owned)),
    );
    toolkits.map(|toolkit| toolkit.join("lib64")).chain(prefixes.flat_map(|prefix| wheels(&prefix))).collect()
}

/// Library folders of NVIDIA's packages in the Python environment at `prefix`: those for CUDA 13, then those
/// for 12.
fn wheels(prefix: &Path) -> Vec<PathBuf> {
    const PACKAGES: [&str; 5] = ["cu13", "cudnn", "cuda_nvrtc", "cublas", "cuda_runtime"];
    starting(&prefix.join("lib"), "python3")
        .into_iter()
        .flat_map(|python| {
            ["site-packages", "dist-packages"].map(|packages| python.join(packages).join("nvidia"))
        })
        .flat_map(|nvidia| PACKAGES.map(|package| nvidia.join(package).join("lib")))
        .filter(|folder| folder.is_dir())
        .collect()
}

/// What a folder holds whose name starts so, in order of name.
fn starting(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = (fs::read_dir(folder).into_iter().flatten().flatten())
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A library that does nothing, in a folder of its own under the name of another; `None` without a C
    /// compiler.
    fn library(folder: &Path, name: &str) -> Option<()> {
        let compiler = env::var_os("CC").unwrap_or_else(|| "cc".into());
        let done = std::process::Command::new(compiler)
            .args(["-shared", "-x", "c", "/dev/null", "-o"])
            .arg(folder.join(name))
            .arg(format!("-Wl,-soname,{name}"))
            .status();
        done.is_ok_and(|status| status.success()).then_some(())
    }

    /// Every version is loaded, the newest first wherever it lies; of one version, the first folder wins.
    #[test]
    fn every_version_is_loaded_newest_first() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let folders = [first.path().to_owned(), second.path().to_owned()];
        let names = ["libtenggat-x.so.13", "libtenggat-x.so.12"];
        assert_eq!(preload_all(&names, &folders, &[]), [] as [PathBuf; 0]);
        let Some(()) = library(first.path(), names[1]) else { return tenggat_skip::skipped("no C compiler") };
        assert_eq!(preload_all(&names, &folders, &[]), [first.path().join(names[1])]);
        library(second.path(), names[0]).unwrap();
        let both = [second.path().join(names[0]), first.path().join(names[1])];
        assert_eq!(preload_all(&names, &folders, &[]), both);
        library(first.path(), names[0]).unwrap();
        assert_eq!(preload_all(&names, &folders, &[])[0], first.path().join(names[0]));
    }

    /// A driver of CUDA 12 refuses what the compiler of 13 made; one of 13 runs both.
    #[test]
    fn libraries_are_no_newer_than_the_driver() {
        let [compiler, dnn] = [LIBRARIES[1], LIBRARIES[3]];
        for driver in [None, Some(13), Some(14)] {
            assert_eq!(for_driver(compiler, driver), [compiler.to_vec(), vec![]]);
        }
        let old = [vec!["libnvrtc.so.12"], vec!["libnvrtc.so.13"]];
        assert_eq!(for_driver(compiler, Some(12)), old);
        assert_eq!(for_driver(dnn, Some(8)), [dnn.to_vec(), vec![]]);
    }

    /// Places are looked in where folders and the system have nothing.
    #[test]
    fn places_come_last_but_come() {
        let place = tempfile::tempdir().unwrap();
        let name = "libtenggat-place.so.1";
        let Some(()) = library(place.path(), name) else { return tenggat_skip::skipped("no C compiler") };
        assert_eq!(preload_all(&[name], &[], &[place.path().to_owned()]), [place.path().join(name)]);
    }

    /// Each version of the compiler comes with the headers of its own.
    #[test]
    fn compilers_come_with_their_own_parts() {
        let folder = tempfile::tempdir().unwrap();
        let names = ["libnvrtc.so.9913", "libnvrtc-builtins.so.9913.0", "libnvrtc-builtins.so.9912.8"];
        for name in names {
            let Some(()) = library(folder.path(), name) else {
                return tenggat_skip::skipped("no C compiler");
            };
        }
        let loaded = preload_all(&names[..1], &[folder.path().to_owned()], &[]);
        assert_eq!(loaded, [names[1], names[0]].map(|name| folder.path().join(name)));
    }

    #[test]
    fn packages_of_an_environment_are_found() {
        let prefix = tempfile::tempdir().unwrap();
        let nvidia = prefix.path().join("lib/python3.11/site-packages/nvidia");
        for package in ["cudnn/lib", "cu13/lib", "nvtx/lib"] {
            fs::create_dir_all(nvidia.join(package)).unwrap();
        }
        assert_eq!(wheels(prefix.path()), [nvidia.join("cu13/lib"), nvidia.join("cudnn/lib")]);
        assert_eq!(wheels(&nvidia), [] as [PathBuf; 0]);
    }

    /// A file that is no library is passed over.
    #[test]
    fn what_does_not_load_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("libtenggat-none.so.13");
        fs::write(&file, "no library").unwrap();
        assert!(!load(&file, RTLD_GLOBAL));
        assert!(preload_all(&["libtenggat-none.so.13"], &[folder.path().to_owned()], &[]).is_empty());
    }
}
