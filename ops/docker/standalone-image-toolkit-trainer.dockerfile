# tenggat's entry of the timed contest, for every kind of model that the contest has: `tenggat task` trains Qwen-Image by
# itself and has ai-toolkit train the others. The contest builds the image from this file and gives the container its task.
#
# Without the contest, and for Qwen-Image alone, the Dockerfile in the root of the repository makes a far smaller image.

FROM rust:1.95.0-slim-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY crates crates
COPY assets assets
COPY bench bench
COPY xtask xtask
# The same sources give the same bytes: no path of the build, no time. The built-in model stays out: an entry brings none.
ENV SOURCE_DATE_EPOCH=0 \
    RUSTFLAGS="--remap-path-prefix=/src=. --remap-path-prefix=/usr/local/cargo=cargo"
RUN cargo build --profile dist --locked --package tenggat --no-default-features

FROM python:3.12-slim-bookworm AS nvidia
RUN pip install --no-cache-dir --no-deps --target /nvidia \
    nvidia-cuda-nvrtc==13.0.88 nvidia-cublas==13.1.0.3 nvidia-cudnn-cu13==9.19.0.56

FROM python:3.12-slim-bookworm
RUN apt-get update \
    && apt-get install -y --no-install-recommends git build-essential ffmpeg libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
# PyTorch of the version that ai-toolkit is made for comes first: its requirements name none.
RUN pip install --no-cache-dir torch==2.13.0 torchvision==0.28.0
ARG AI_TOOLKIT=27a03a91f23eb1b757d5ec2e80ee3e129cfcc350
RUN git clone --filter=blob:none https://github.com/ostris/ai-toolkit /app/ai-toolkit \
    && git -C /app/ai-toolkit checkout --quiet "$AI_TOOLKIT" \
    && pip install --no-cache-dir -r /app/ai-toolkit/requirements.txt
COPY --from=nvidia /nvidia/nvidia/cu13/lib /opt/nvidia/cu13
COPY --from=nvidia /nvidia/nvidia/cudnn/lib /opt/nvidia/cudnn
COPY --from=build /src/target/dist/tenggat /usr/local/bin/tenggat
# What is written: the LoRA under /app/checkpoints, unpacked pictures and caches under /app/work. /cache is only read.
RUN groupadd --gid 10001 tenggat \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /app/work tenggat \
    && mkdir -p /app/checkpoints /app/work \
    && chown -R tenggat:tenggat /app/checkpoints /app/work
ENV AI_TOOLKIT=/app/ai-toolkit \
    XDG_CACHE_HOME=/app/work/cache \
    TENGGAT_CUDA_LIBRARIES=/opt/nvidia/cu13:/opt/nvidia/cudnn \
    TMPDIR=/app/work \
    HF_HOME=/app/work/hf \
    HF_HUB_OFFLINE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /app/work
ENTRYPOINT ["tenggat", "task", "--work-root", "/app/work/tasks"]
