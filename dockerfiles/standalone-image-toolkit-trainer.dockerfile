# tenggat for the timed contest: `docker run IMAGE --task-id … --hours-to-complete 1.5` plays one task.
#
# The program is one file. Beside it lie NVIDIA's compiler of kernels, matrix products and attention; the container runtime
# adds the driver's libraries when a container is started with `--gpus`. Nothing in the image runs as root.

FROM rust:1.95.0-slim-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY crates crates
COPY assets assets
COPY bench bench
COPY xtask xtask
# The same sources give the same bytes: no path of the build, no time.
ENV SOURCE_DATE_EPOCH=0 \
    RUSTFLAGS="--remap-path-prefix=/src=. --remap-path-prefix=/usr/local/cargo=cargo"
RUN cargo build --profile dist --locked --package tenggat

FROM python:3.12-slim-bookworm AS nvidia
RUN pip install --no-cache-dir --no-deps --target /nvidia \
    nvidia-cuda-nvrtc==13.0.88 nvidia-cublas==13.1.0.3 nvidia-cudnn-cu13==9.19.0.56

FROM debian:bookworm-slim
COPY --from=nvidia /nvidia/nvidia/cu13/lib /opt/nvidia/cu13
COPY --from=nvidia /nvidia/nvidia/cudnn/lib /opt/nvidia/cudnn
COPY --from=build /src/target/dist/tenggat /usr/local/bin/tenggat
# What is written: the LoRA under /app/checkpoints, unpacked pictures and caches under /app/work. /cache is only read.
RUN groupadd --gid 10001 tenggat \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /app/work tenggat \
    && mkdir -p /app/checkpoints /app/work \
    && chown -R tenggat:tenggat /app
ENV XDG_CACHE_HOME=/app/work/cache \
    TENGGAT_CUDA_LIBRARIES=/opt/nvidia/cu13:/opt/nvidia/cudnn \
    TMPDIR=/app/work \
    HF_HUB_OFFLINE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /app/work
ENTRYPOINT ["tenggat", "task", "--work-root", "/app/work/tasks"]
