# Debian's Rust, for building the init as a static binary where rust:1 cannot be pulled.
FROM kind-lab/debian:trixie
RUN apt-get update && apt-get install -y cargo rustc gcc libc6-dev && rm -rf /var/lib/apt/lists/*
