# The command line in an image, from the locked packages. Untested: no Docker engine has built it.
#   docker build --tag resnet-bench .
#   docker run --rm --volume "$PWD:/work" resnet-bench list
FROM python:3.12-slim

# A C compiler makes CPU training faster; make installs what the lock names.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev make git \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/resnet-bench
COPY Makefile pyproject.toml requirements.lock README.md LICENSE ./
COPY resnet_bench ./resnet_bench
COPY benchmarks ./benchmarks
COPY studies ./studies
COPY datasets ./datasets
COPY reports/reference ./reports/reference
RUN make setup

# Data, runs and stores are in the folder that is mounted here.
WORKDIR /work
ENV PATH=/opt/resnet-bench/.venv/bin:$PATH MLFLOW_DISABLE_TELEMETRY=true
ENTRYPOINT ["resnet-bench"]
CMD ["list"]
