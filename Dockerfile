# The two images, for those who have a registry:
#
#   docker build --target carillon -t registry.example.com/carillon:0.1.0 .
#   docker build --target carillon-operator -t registry.example.com/carillon-operator:0.1.0 .
#
# Without a container runtime, `cargo xtask image --release` writes the same images as archives.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# Static programs, so that the images hold nothing else that needs updates.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    set -eu; \
    mkdir -p /out; \
    for program in carillon carillon-operator; do \
      cargo rustc --locked --release -p "$program" --bin "$program" -- -C target-feature=+crt-static; \
      strip --strip-debug -o "/out/$program" "target/release/$program"; \
    done; \
    mkdir -p /root-fs/etc/ssl/certs; \
    install -d -m 1777 /root-fs/tmp; \
    printf 'root:x:0:0:root:/:/\nnonroot:x:65532:65532::/:/\n' >/root-fs/etc/passwd; \
    printf 'root:x:0:\nnonroot:x:65532:\n' >/root-fs/etc/group; \
    cp /etc/ssl/certs/ca-certificates.crt /root-fs/etc/ssl/certs/

FROM scratch AS base
COPY --from=build /root-fs/ /
ENV PATH=/ SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
WORKDIR /
USER 65532:65532

FROM base AS carillon-operator
COPY --from=build /out/carillon-operator /carillon-operator
ENTRYPOINT ["/carillon-operator"]

# Last, and so the default.
FROM base AS carillon
COPY --from=build /out/carillon /carillon
ENTRYPOINT ["/carillon"]
