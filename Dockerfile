# The image of the service, which KubeRay runs on Kubernetes (docs/kubernetes.md). Build it with:
#
#     docker build --tag REGISTRY/tabrank:0.1 .
#
# EXTRAS names the optional packages of pyproject.toml. For a Scorer on a GPU, add
# `--build-arg EXTRAS=redis,bucket,torch`.
#
# BASE names the image to start from. A tag may mean another image tomorrow; a digest always means
# the same one. `docker buildx imagetools inspect python:3.11-slim` prints the digest of today, for
# `--build-arg BASE=python:3.11-slim@sha256:…`.
#
# The image holds no secret. Tokens and passwords reach the container when it starts.
ARG BASE=python:3.11-slim
FROM ${BASE}

ARG EXTRAS=redis,bucket
WORKDIR /src
COPY pyproject.toml README.md LICENSE lock.txt constraints.txt cluster.yaml ./
COPY serve serve
COPY training training
COPY loadtest loadtest
# The packages go into the system's own Python, because a login shell forgets the PATH of any other.
# Every package must match a hash of lock.txt, except torch and its CUDA libraries. The pip that the
# lock names is installed first, because an older pip does not check hashes of constraints.
RUN sed -n '/^pip==/,/[^\\]$/p' lock.txt > pip.txt \
 && python -m pip install --no-cache-dir --require-hashes --requirement pip.txt \
 && python -m pip install --no-cache-dir --no-require-hashes --only-binary :all: --constraint constraints.txt \
    --constraint lock.txt --build-constraint lock.txt ".[${EXTRAS}]" \
 && rm -rf /src

# The user is given as a number, because from a name Kubernetes cannot see that it is not root.
RUN useradd --uid 1000 --create-home tabrank \
 && install --directory --owner=1000 --group=1000 /home/tabrank/app/var
USER 1000
ENV HOME=/home/tabrank
WORKDIR /home/tabrank/app
COPY cluster.yaml ./
CMD ["python", "-m", "serve", "--help"]
