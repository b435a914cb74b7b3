# speakerd for machines without a device, and the control plane for itself.
#
#   docker build -t speakerd:cpu .
#   docker build -t speakerd:controlplane --target controlplane .
#
# The wheels of the package index are built for CUDA; deploy/image/slim.sh leaves out what loads nowhere without a
# device. `--build-arg TORCH_INDEX=…`, the address of PyTorch's own index of CPU wheels, makes a far smaller image.
# Where deploy/air-gapped/collect.sh has gathered wheels, it builds with `--network=none`. docs/deploy.md says more.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

# What was brought is looked at from where it lies: copied, its 3 GB would be in a layer of each stage's own.
FROM ${PYTHON_IMAGE} AS source
WORKDIR /src
COPY pyproject.toml constraints.txt ./
COPY deploy/image deploy/image
RUN --mount=type=bind,source=deploy/air-gapped/brought,target=/src/deploy/air-gapped/brought \
    deploy/image/tini.sh /opt/tini

FROM source AS code
COPY README.md ./
COPY speakerd speakerd
COPY runtime runtime
COPY models models
COPY node node
COPY controlplane controlplane
COPY edge edge
RUN --mount=type=bind,source=deploy/air-gapped/brought,target=/src/deploy/air-gapped/brought \
    deploy/image/code.sh /opt/speakerd /opt/speakerd-code \
    && deploy/image/models.sh /opt/speakerd-models

FROM source AS small
RUN --mount=type=bind,source=deploy/air-gapped/brought,target=/src/deploy/air-gapped/brought \
    deploy/image/dependencies.sh /opt/speakerd /opt/speakerd-code controlplane,embedded \
    && deploy/image/slim.sh /opt/speakerd cpu

FROM source AS whole
ARG TORCH_INDEX=
RUN --mount=type=bind,source=deploy/air-gapped/brought,target=/src/deploy/air-gapped/brought \
    deploy/image/dependencies.sh /opt/speakerd /opt/speakerd-code all \
    && deploy/image/slim.sh /opt/speakerd cpu

FROM ${PYTHON_IMAGE} AS base
LABEL org.opencontainers.image.title="speakerd" \
      org.opencontainers.image.description="Self-hosted speaker diarization that knows people by name" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY deploy/image /opt/speakerd-image
RUN /opt/speakerd-image/user.sh
COPY --from=source /opt/tini /usr/bin/tini
ENV PATH=/opt/speakerd/bin:/opt/speakerd-code/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    SPEAKERD_DATA=/data \
    SPEAKERD_HTTP=0.0.0.0:7680 \
    SPEAKERD_MODELS=/models \
    DO_NOT_TRACK=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    HF_HUB_OFFLINE=1 \
    PYANNOTE_METRICS_ENABLED=0
USER 10001:10001
WORKDIR /data
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=8s --start-period=5m --retries=3 CMD ["speakerd", "health"]
ENTRYPOINT ["tini", "--", "speakerd"]

FROM base AS controlplane
COPY --from=small /opt/speakerd /opt/speakerd
COPY --from=code /opt/speakerd-code /opt/speakerd-code
RUN ["/opt/speakerd-image/check.sh", "controlplane"]
VOLUME ["/data"]
EXPOSE 7600 7601 7680
CMD ["controlplane"]

FROM base AS cpu
COPY --from=whole /opt/speakerd /opt/speakerd
COPY --from=code /opt/speakerd-code /opt/speakerd-code
COPY --from=code --chown=10001:10001 /opt/speakerd-models /models
RUN ["/opt/speakerd-image/check.sh", "cpu"]
VOLUME ["/data", "/models"]
EXPOSE 7680
CMD ["up", "--http", "0.0.0.0:7680", "--insecure"]
