# headrace in a container. It brings no broker; compose.yaml beside it starts one.
FROM python:3.13-slim

WORKDIR /opt/headrace
COPY requirements.lock pyproject.toml README.md ./
RUN python -m pip install --no-cache-dir --require-hashes -r requirements.lock
COPY engine engine
COPY connectors connectors
COPY functions functions
RUN python -m pip install --no-cache-dir --no-deps --no-build-isolation .

RUN useradd --create-home headrace && mkdir /data && chown headrace /data
USER headrace
WORKDIR /data
ENTRYPOINT ["headrace"]
CMD ["--help"]
