# The image of the service: `docker build -t gridloop .`; how to run it is in docs/operations.md.
#
# Stage `build` makes a virtual environment from the hashed pins, stage `serve` copies it. The dependencies, the service
# and the models are a layer each, so a change of code is a push of some hundred kilobytes.

# The version is that of .python-version (a test compares them). A mirror or a digest can be given in its place.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build

# The environment has no pip of its own: the image's pip installs into it.
RUN python -m venv --without-pip /opt/gridloop
COPY requirements.txt .
RUN pip --python /opt/gridloop/bin/python install --require-hashes --only-binary :all: -r requirements.txt

# Installed beside the environment, not into it: copied over it below, it is a layer of its own.
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY gridloop gridloop
RUN pip --python /opt/gridloop/bin/python install --no-deps --no-build-isolation --prefix /opt/service . \
 && pip --python /opt/gridloop/bin/python uninstall --yes hatchling pathspec pluggy tomlkit trove-classifiers

# What serving never opens: the packages' own tests and sources, ONNX Runtime's conversion tools, and its library for
# C programs (the Python module holds a copy of its own). `serve` fails to build if something was needed after all.
RUN cd /opt/gridloop/lib/python3.*/site-packages \
 && rm -r onnxruntime/transformers onnxruntime/quantization onnxruntime/tools onnxruntime/capi/libonnxruntime.so* \
 && find . -type d -name tests -prune -exec rm -r {} + \
 && find . -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.h' \) -delete

# Bytecode that is trusted without a look at its source: nothing changes in an image, and nothing can be written there.
RUN python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/gridloop/lib /opt/service/lib


FROM ${PYTHON_IMAGE} AS serve
ARG VERSION=""
ARG REVISION=""
ARG CREATED=""
LABEL org.opencontainers.image.title="Gridloop" \
      org.opencontainers.image.description="Typed REST inference for CNNs and RNNs exported to ONNX" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"

ENV PATH=/opt/gridloop/bin:$PATH
COPY --from=build /opt/gridloop /opt/gridloop
# The base image has no bytecode of the standard library: importing writes what serving and the health check use.
RUN ["python", "-c", "import fastapi, http.client, multiprocessing.forkserver, multiprocessing.resource_tracker, onnxruntime, uvicorn, uvloop"]
COPY --from=build /opt/service /opt/gridloop
RUN ["python", "-B", "-c", "import service.app, service.api.protocol, service.cli, service.server"]
COPY models /models

ENV PYTHONDONTWRITEBYTECODE=1 \
    GRIDLOOP_HOST=0.0.0.0 \
    GRIDLOOP_PORT=8000 \
    GRIDLOOP_MODELS=/models \
    GRIDLOOP_LOG_FORMAT=json \
    GRIDLOOP_DRAIN_GRACE_S=5
WORKDIR /models
# Any other number does as well: the service owns no file and writes only below /tmp.
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM

# Docker has one health state, and dependents, `up --wait` and rolling updates read it as "send requests": /readyz.
# A process that hangs answers neither probe, so nothing is lost beside /livez. No urllib: it would ask HTTP_PROXY. With
# TLS the certificate is not verified: it is this container that is asked, under a name that no certificate has.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-ISc", "import http.client as h, os, ssl, sys; at = '127.0.0.1', int(os.environ['GRIDLOOP_PORT']); c = h.HTTPSConnection(*at, timeout=4, context=ssl._create_unverified_context()) if os.environ.get('GRIDLOOP_TLS_CERT') else h.HTTPConnection(*at, timeout=4); c.request('GET', '/readyz'); sys.exit(c.getresponse().status != 200)"]

ENTRYPOINT ["gridloop"]
CMD ["serve"]
