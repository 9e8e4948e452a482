#!/bin/sh
# Builds stand-ins for NVIDIA's libraries, with which the path to a real GPU runs on the processor, and prints their
# folder: a process started with it as LD_LIBRARY_PATH finds a GPU. For tests, on Linux with a C++ compiler (`c++`, or
# what CXX names).
#
# What was built is kept, by what it was made of, in a folder that is nobody else's to write: its files are run.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
header=$here/../src/kernels/emulate.hpp
cxx=${CXX:-c++}
version=$("$cxx" --version)

kept=${TMPDIR:-/tmp}/tenggat-stand-in-$(id -u)
mkdir -p -m 700 "$kept"
if [ -L "$kept" ] || [ ! -O "$kept" ] || [ -n "$(find "$kept" -maxdepth 0 -perm /022)" ]; then
    echo "$kept is another user's, or others may write to it" >&2
    exit 1
fi
hash=$( (echo "$version"; cat "$here"/* "$header") | sha256sum | cut -c 1-16)
folder=$kept/$hash
if [ ! -d "$folder" ]; then
    beside=$(mktemp -d "$kept/$hash.XXXXXX")
    trap 'rm -rf "$beside"' EXIT
    library() {
        name=$1
        shift
        "$cxx" -std=c++17 -O3 -march=native -fno-strict-aliasing -Wall -Wextra -fPIC -fvisibility=hidden -shared \
            -Wl,-soname,"$name",-z,nodelete -o "$beside/$name" "$@"
        ln -s "$name" "$beside/${name%.so.*}.so"
    }
    cd "$here"
    library libcuda.so.1 state.cpp device.cpp memory.cpp modules.cpp streams.cpp work.cpp -ldl
    library libnvrtc.so.13 nvrtc.cpp
    library libcublasLt.so.13 cublaslt.cpp "$beside/libcuda.so.1" '-Wl,-rpath,$ORIGIN'
    library libcudnn.so.9 cudnn.cpp
    mkdir "$beside/kernels"
    cp "$header" "$beside"
    # Whoever was faster built the same.
    mv -T "$beside" "$folder" 2>/dev/null || [ -d "$folder" ]
fi
echo "$folder"
