#!/usr/bin/env python3
"""Counts the machine instructions of GPU kernels: what NVRTC makes of them, read back with cuobjdump.

    TENGGAT_CUDA_LIBRARIES=... bench/gpu_instructions.py --cuobjdump PATH [--arch sm_90a] KERNEL...

A KERNEL is a name of `crates/tenggat-tensor/src`, such as `widen_uint3_bf16` or `gelu_*_vec_bf16`. NVRTC
comes with `pip install nvidia-cuda-nvrtc`, cuobjdump with `nvidia-cuda-cuobjdump` and `nvidia-cuda-nvdisasm`.
No GPU is needed, and none is measured: instructions are counted as they stand, each branch and each turn of a
loop once.
"""

import argparse
import ctypes
import fnmatch
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCES = ROOT / "crates/tenggat-tensor/src"
COMMON = ROOT / "crates/tenggat-gpu/src/kernels/common.cuh"


def sources():
    """Each module's kernels by its folder's name: the files that its `cuda.rs` or `mod.rs` names, in that order."""
    for folder in sorted(path.parent for path in SOURCES.rglob("op.cu")):
        for rust in (folder / "cuda.rs", folder / "mod.rs"):
            text = rust.read_text() if rust.exists() else ""
            if files := re.findall(r'include_str!\("([^"]+)"\)', text):
                yield folder.name, "\n".join((folder / file).read_text() for file in files)
                break


def nvrtc():
    """The compiler, from one of the folders that `TENGGAT_CUDA_LIBRARIES` names."""
    for folder in os.environ.get("TENGGAT_CUDA_LIBRARIES", "").split(os.pathsep):
        for library in sorted(pathlib.Path(folder).glob("libnvrtc.so.*")):
            for builtins in pathlib.Path(folder).glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(str(library))
    sys.exit("no libnvrtc.so: name its folder in TENGGAT_CUDA_LIBRARIES")


def compiled(library, name, source, arch):
    """The machine code of a module, and the compiler's report."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    text = COMMON.read_text() + f'\n#line 1 "{name}.cu"\n' + source
    options = [f"--gpu-architecture={arch}", "--std=c++17", "-default-device", "--ptxas-options=-v"]
    options = (ctypes.c_char_p * len(options))(*map(str.encode, options))
    library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), f"{name}.cu".encode(), 0, None, None)
    failed = library.nvrtcCompileProgram(program, len(options), options)
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    if failed:
        sys.exit(f"{name} does not compile:\n{log.value.decode()}")
    library.nvrtcGetCUBINSize(program, ctypes.byref(size))
    code = ctypes.create_string_buffer(size.value)
    library.nvrtcGetCUBIN(program, code)
    return code.raw, log.value.decode()


def functions(cuobjdump, code):
    """Name and instructions of each function, without the padding behind its end."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        command = [cuobjdump, "--dump-sass", file.name]
        listing = subprocess.run(command, check=True, capture_output=True, text=True)
    for part in listing.stdout.split("Function : ")[1:]:
        name, *lines = part.splitlines()
        found = (re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.+?);", line) for line in lines)
        instructions = [match[1] for match in found if match]
        while instructions and instructions[-1].split()[0] in ("NOP", "BRA"):
            instructions.pop()
        yield name.strip(), instructions


def operation(instruction):
    """The operation with its suffixes, without a predicate before it."""
    return re.sub(r"^@!?U?P\w+\s+", "", instruction).split()[0]


def main():
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--cuobjdump", default="cuobjdump")
    parser.add_argument("--arch", default="sm_90a")
    parser.add_argument("--dump", action="store_true", help="print the instructions themselves as well")
    parser.add_argument("kernels", nargs="+")
    args = parser.parse_args()
    library, unseen = nvrtc(), set(args.kernels)
    counts = f"{'last store':>10} {'all':>5} {'regs':>4} {'barriers':>8} {'shuffles':>8}"
    print(f"{'kernel':48} {counts}  loads; stores; calls")
    for module, source in sources():
        prefixes = [re.split(r"[*?\[]", pattern)[0] for pattern in args.kernels]
        # A name may be put together by a macro from parts: its first word is there.
        if not any(prefix.split("_")[0] in source for prefix in prefixes):
            continue
        code, log = compiled(library, module, source, args.arch)
        registers = dict(re.findall(r"entry function '(\w+)'.*?Used (\d+) registers", log, re.S))
        for name, instructions in functions(args.cuobjdump, code):
            matching = [pattern for pattern in args.kernels if fnmatch.fnmatchcase(name, pattern)]
            if not matching:
                continue
            unseen -= set(matching)
            operations = [operation(i) for i in instructions]
            stores = [at for at, op in enumerate(operations) if op.startswith(("STG", "ST.", "RED", "ATOM"))]

            def kinds(*starts):
                chosen = [op for op in operations if op.startswith(starts)]
                return " ".join(f"{chosen.count(kind)}x{kind}" for kind in sorted(set(chosen))) or "-"

            barriers, shuffles = (sum(op.startswith(kind) for op in operations) for kind in ("BAR", "SHFL"))
            print(
                f"{name:48} {max(stores, default=-1) + 1:10} {len(operations):5} {registers.get(name, '?'):>4} "
                f"{barriers:8} {shuffles:8}  {kinds('LDG', 'LD.')}; {kinds('STG', 'ST.')}; {kinds('CALL')}"
            )
            if args.dump:
                print("\n".join(f"    {i}" for i in instructions))
    if unseen:
        sys.exit(f"no such kernel: {', '.join(sorted(unseen))}")


if __name__ == "__main__":
    main()
