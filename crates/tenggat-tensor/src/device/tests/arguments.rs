//! Arguments of kernels: structures of Rust against those of C++, field by field, and against compiled code.
//!
//! Rust's are read from the sources and laid out by the rules of `repr(C)`; a C++ compiler says where it puts
//! each field of the structure with the name that the comment `Mirrors` gives.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rayon::prelude::*;
use tenggat_gpu::{Mat, Module};

use crate::ops::{KERNELS, RARE_KERNELS};

/// A structure that is passed to kernels.
#[derive(Debug, Clone)]
struct Structure {
    name: String,
    /// What it is called in C++.
    mirrors: String,
    /// Names and types.
    fields: Vec<(String, String)>,
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Structures of a file whose comment says what they mirror, lengths of arrays as numbers.
///
/// # Panics
/// One that has the layout of C has no such comment.
fn structures(file: &Path) -> Vec<Structure> {
    let source = fs::read_to_string(file).unwrap();
    let beside = fs::read_to_string(file.with_file_name("mod.rs")).unwrap_or_default();
    let mut found = mirroring(&source);
    let constants = source.lines().chain(beside.lines()).filter_map(|line| {
        let (_, rest) = line.split_once("const ")?;
        let (name, value) = rest.split_once(": usize = ")?;
        Some((format!("; {name}]"), format!("; {}]", value.trim_end_matches(';'))))
    });
    for (name, value) in constants {
        let kinds = found.iter_mut().flat_map(|of| of.fields.iter_mut());
        kinds.for_each(|(_, kind)| *kind = kind.replace(&name, &value));
    }
    found
}

fn mirroring(source: &str) -> Vec<Structure> {
    let mut found = Vec::new();
    let mut mirrors = None;
    let mut lines = source.lines();
    while let Some(line) = lines.next() {
        if let Some((_, rest)) = line.split_once("/// Mirrors `") {
            mirrors = rest.split('`').next().map(str::to_owned);
        }
        if line.trim() == "#[repr(C)]" {
            let named = lines.next().and_then(|line| line.split_once("struct ")).map(|(_, rest)| rest);
            let name = named.and_then(|rest| rest.split_whitespace().next()).unwrap().to_owned();
            let fields = lines.by_ref().take_while(|line| line.trim() != "}").filter_map(|line| {
                let line = line.trim().trim_start_matches("pub ").trim_start_matches("pub(crate) ");
                let (field, kind) = line.split_once(": ")?;
                let is_name = field.chars().all(|c| c.is_alphanumeric() || c == '_');
                is_name.then(|| (field.to_owned(), kind.trim_end_matches(',').to_owned()))
            });
            let fields = fields.collect();
            let mirrors = mirrors.take().unwrap_or_else(|| panic!("{name} does not say what it mirrors"));
            found.push(Structure { name, mirrors, fields });
        }
    }
    found
}

/// Bytes of a type and its alignment.
fn extent(kind: &str, all: &[Structure]) -> (usize, usize) {
    if let Some((kind, n)) = kind.strip_prefix('[').and_then(|rest| rest.rsplit_once("; ")) {
        let (bytes, alignment) = extent(kind, all);
        return (bytes * n.trim_end_matches(']').parse::<usize>().unwrap(), alignment);
    }
    match kind {
        "u8" => (1, 1),
        "i32" | "u32" | "f32" => (4, 4),
        "i64" | "u64" => (8, 8),
        "Mat" => (size_of::<Mat>(), align_of::<Mat>()),
        name => {
            let of = all.iter().find(|other| other.name == name).unwrap_or_else(|| panic!("what is {name}?"));
            let (_, bytes, alignment) = layout(of, all);
            (bytes, alignment)
        }
    }
}

/// Where each field of a structure lies, its bytes and its alignment, as `repr(C)` has it.
fn layout(of: &Structure, all: &[Structure]) -> (Vec<usize>, usize, usize) {
    let (mut offsets, mut end, mut most) = (Vec::new(), 0usize, 1);
    for (_, kind) in &of.fields {
        let (bytes, alignment) = extent(kind, all);
        offsets.push(end.next_multiple_of(alignment));
        end = end.next_multiple_of(alignment) + bytes;
        most = most.max(alignment);
    }
    (offsets, end.next_multiple_of(most), most)
}

/// Assertions that a structure of C++ in `source` lies as that of Rust.
fn assertions(of: &Structure, all: &[Structure], source: &str) -> String {
    let Structure { name, mirrors, fields } = of;
    let head = format!("struct {mirrors} {{");
    let (before, _) = source.split_once(&head).unwrap_or_else(|| panic!("{name}: no `{head}`"));
    let template = before.trim_end().lines().last().filter(|line| line.starts_with("template <"));
    let parameters = template.map_or(0, |line| line.matches("class ").count());
    let parameters = match parameters {
        0 => String::new(),
        n => format!("<{}>", vec!["float"; n].join(", ")),
    };
    let (offsets, bytes, _) = layout(of, all);
    let alias = format!("Rust_{name}");
    let mut text = format!(
        "using {alias} = {mirrors}{parameters};\nstatic_assert(sizeof({alias}) == {bytes}, \"{name}\");\n"
    );
    for ((field, kind), offset) in fields.iter().zip(offsets) {
        let (bytes, _) = extent(kind, all);
        let value = format!("std::declval<{alias}>().{field}");
        let is_float = kind == "f32";
        text += &format!(
            "static_assert(offsetof({alias}, {field}) == {offset} && sizeof({value}) == {bytes} && \
             std::is_floating_point<decltype({value})>::value == {is_float}, \"{name}.{field}\");\n"
        );
    }
    text
}

/// What the C++ compiler says against assertions behind a module's source; `None` without a compiler.
fn refuted(module: &Module, assertions: &str) -> Option<String> {
    let kernels = sources().join("../../tenggat-gpu/src/kernels");
    let [emulate, common] =
        ["emulate.hpp", "common.cuh"].map(|name| fs::read_to_string(kernels.join(name)).unwrap());
    let source = format!(
        "#include <cstddef>\n#include <type_traits>\n{emulate}\n{common}\n{}\n{assertions}",
        module.source
    );
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let child = Command::new(compiler)
        .args(["-std=c++17", "-fsyntax-only", "-w", "-x", "c++", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        tenggat_skip::skipped_without_cxx("there is no C++ compiler");
        return None;
    };
    child.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Some(if output.status.success() { String::new() } else { said })
}

/// Bytes of the argument of each kernel in machine code: the attribute `EIATTR_CBANK_PARAM_SIZE` in the
/// section `.nv.info` of each, as cuobjdump shows it. ELF by its specification, in 64 bits.
pub(super) fn parameter_bytes(cubin: &[u8]) -> Vec<(String, usize)> {
    const CBANK_PARAM_SIZE: (u8, u8) = (3, 0x19);
    const IN_PLACE: u8 = 4;
    let mut found = Vec::new();
    for (name, data) in sections(cubin) {
        let Some(kernel) = name.strip_prefix(".nv.info.") else { continue };
        let mut rest = data;
        while let [form, attribute, low, high, behind @ ..] = rest {
            let value = usize::from(u16::from_le_bytes([*low, *high]));
            if (*form, *attribute) == CBANK_PARAM_SIZE {
                found.push((kernel.to_owned(), value));
            }
            rest = if *form == IN_PLACE { &behind[value..] } else { behind };
        }
    }
    found
}

/// Sections of machine code by name.
pub(super) fn sections(cubin: &[u8]) -> Vec<(String, &[u8])> {
    let number = |at: usize, bytes: usize| -> usize {
        cubin[at..at + bytes].iter().rev().fold(0, |number, &byte| number << 8 | usize::from(byte))
    };
    let (table, entry, count, names) = (number(0x28, 8), number(0x3a, 2), number(0x3c, 2), number(0x3e, 2));
    let header = |i: usize| table + i * entry;
    let contents = |i: usize| {
        let (at, bytes) = (number(header(i) + 0x18, 8), number(header(i) + 0x20, 8));
        // One without contents, such as memory that begins as zeros, has a length all the same.
        const NOBITS: usize = 8;
        if number(header(i) + 4, 4) == NOBITS { &[][..] } else { &cubin[at..at + bytes] }
    };
    let name = |i: usize| {
        let bytes = contents(names)[number(header(i), 4)..].split(|&byte| byte == 0).next().unwrap();
        String::from_utf8_lossy(bytes).into_owned()
    };
    (1..count).map(|i| (name(i), contents(i))).collect()
}

/// Compiled kernels take arguments of the size that C++ gives them.
pub(super) fn agree_with_code(module: &Module, parameters: &[(String, usize)]) {
    let mut text =
        String::from("template <class A> constexpr size_t bytes(void (*)(A)) { return sizeof(A); }\n");
    for (kernel, bytes) in parameters {
        text += &format!("static_assert(bytes({kernel}) == {bytes}, \"{kernel}\");\n");
    }
    assert_eq!(refuted(module, &text).unwrap_or_default(), "", "{}", module.name);
}

/// Sources with structures, and names of the modules that take them.
fn takers() -> Vec<(PathBuf, Vec<String>)> {
    let ops = sources().join("ops");
    let mut all = vec![(ops.join("activation.rs"), vec!["gelu".into(), "silu".into()])];
    for folder in fs::read_dir(&ops).unwrap().flatten().map(|entry| entry.path()).filter(|path| path.is_dir())
    {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let files = fs::read_dir(&folder).unwrap().flatten().map(|entry| entry.path());
        all.extend(
            files
                .filter(|file| file.extension().is_some_and(|ext| ext == "rs"))
                .map(|file| (file, vec![name.clone()])),
        );
    }
    for file in ["cuda.rs", "fp8.rs"] {
        all.push((sources().join("weight/quantised").join(file), vec!["quantise".into()]));
    }
    all.push((ops.join("columns/mod.rs"), vec!["gated_residual".into(), "layer_norm_modulate".into()]));
    all.push((sources().join("../../tenggat-gpu/src/blas/fallback.rs"), vec!["product".into()]));
    all.sort();
    all
}

#[test]
fn arguments_lie_where_kernels_look_for_them() {
    let modules = [KERNELS, RARE_KERNELS].concat();
    let takers = takers();
    // Some are part of others', in other files.
    let shared = structures(&sources().join("ops/columns/mod.rs"));
    let checked = takers.par_iter().flat_map_iter(|(file, modules_of)| {
        let own = structures(file);
        let all = [own.clone(), shared.clone()].concat();
        let mut seen: BTreeMap<_, _> = own.iter().map(|of| ((file, of.name.clone()), false)).collect();
        for taker in modules_of.iter().filter(|_| !own.is_empty()) {
            let module = modules.iter().find(|module| module.name == taker).unwrap();
            // One that a file hands to another's kernels is not known to its own.
            let known = |of: &&Structure| module.source.contains(&format!("struct {} {{", of.mirrors));
            let text: String =
                own.iter().filter(known).map(|of| assertions(of, &all, module.source)).collect();
            assert_eq!(refuted(module, &text).unwrap_or_default(), "", "{}", file.display());
            own.iter().filter(known).for_each(|of| _ = seen.insert((file, of.name.clone()), true));
        }
        seen
    });
    let checked: Vec<_> = checked.collect();
    let is_seen = |which| checked.iter().any(|(other, seen)| *other == which && *seen);
    for (which, _) in &checked {
        assert!(is_seen(which.clone()), "{which:?} mirrors nothing");
    }
    assert!(checked.len() > 40, "{} structures", checked.len());
}

/// Two fields in the place of each other are found, although the sizes are right.
#[test]
fn arguments_in_another_order_are_found() {
    let file = sources().join("ops/adamw/cuda.rs");
    let mut all = structures(&file);
    let module = KERNELS.iter().find(|module| module.name == "adamw").unwrap();
    let step = all.iter_mut().find(|of| of.name == "Step").unwrap();
    step.fields.swap(0, 1);
    let text = assertions(&all[2], &all, module.source);
    let Some(said) = refuted(module, &text) else { return };
    assert!(said.contains("Step."), "{said}");
}
