# The service's image, for KubeRay: docker build --tag REGISTRY/tabrank:0.1 .
# With a scorer on GPUs: --build-arg EXTRAS=redis,bucket,torch. The image holds no secret; tokens
# and passwords come when it runs. A base named by its digest stays the same:
# --build-arg BASE=python:3.11-slim@sha256:… (from docker buildx imagetools inspect).
ARG BASE=python:3.11-slim
FROM ${BASE}

ARG EXTRAS=redis,bucket
WORKDIR /src
COPY pyproject.toml README.md LICENSE lock.txt constraints.txt cluster.yaml ./
COPY serve serve
COPY training training
COPY loadtest loadtest
# Into the system's own Python: a login shell forgets any other PATH. Every package must match a
# hash of the lock, torch and its CUDA libraries apart. Install the lock's own pip first: an older
# one does not check the hashes of constraints.
RUN sed -n '/^pip==/,/[^\\]$/p' lock.txt > pip.txt \
 && python -m pip install --no-cache-dir --require-hashes --requirement pip.txt \
 && python -m pip install --no-cache-dir --no-require-hashes --only-binary :all: --constraint constraints.txt \
    --constraint lock.txt --build-constraint lock.txt ".[${EXTRAS}]" \
 && rm -rf /src

# A number, because Kubernetes cannot see from a name that the user is not root.
RUN useradd --uid 1000 --create-home tabrank \
 && install --directory --owner=1000 --group=1000 /home/tabrank/app/var
USER 1000
ENV HOME=/home/tabrank
WORKDIR /home/tabrank/app
COPY cluster.yaml ./
CMD ["python", "-m", "serve", "--help"]
