# Three stages: `build` compiles, `baofs` is the static binary alone (to COPY --from), and the last, which is built unless
# --target says otherwise, is a small example application with baofs as its entry point (examples/container).
#
# Where the build cannot reach a package registry, hand in a binary built outside, by its path in the context:
#   docker build --build-arg BINARY=target/x86_64-unknown-linux-musl/release/baofs .

FROM rust:1.95-bookworm AS build
ARG BINARY=
WORKDIR /src
COPY . .
RUN if [ -n "$BINARY" ]; then install -D "$BINARY" /out/baofs; exit; fi; \
    target=$(uname -m)-unknown-linux-musl && \
    apt-get update && apt-get install -y --no-install-recommends musl-tools && rustup target add "$target" && \
    cargo build --release --locked --target "$target" && install -D "target/$target/release/baofs" /out/baofs

FROM scratch AS baofs
COPY --from=build /out/baofs /usr/local/bin/baofs
ENTRYPOINT ["/usr/local/bin/baofs"]

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates python3 python3-psycopg2 && \
    rm -rf /var/lib/apt/lists/* && useradd --uid 1000 --create-home app
# 1777: Docker gives a tmpfs that is mounted here the mode of the directory, and the user of the container must write to it.
RUN install -d -m 1777 /app/secrets
COPY --from=baofs /usr/local/bin/baofs /usr/local/bin/baofs
COPY examples/container/agent-config.hcl /etc/bao/agent-config.hcl
COPY examples/container/app.py /app/app.py
ENV BAOFS_MOUNT=/app/secrets
HEALTHCHECK --interval=10s --timeout=5s --start-period=40s CMD ["baofs", "health", "--tcp", "127.0.0.1:8080"]
ENTRYPOINT ["baofs", "run", "--"]
CMD ["python3", "/app/app.py"]
