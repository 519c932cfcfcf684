# Build: docker build -t agent-platform .            (OpenAI or compatible servers)
#        docker build --build-arg EXTRA=embedded ... (adds the embedded engine)
ARG PYTHON_IMAGE=docker.io/library/python:3.13-slim

FROM ${PYTHON_IMAGE} AS build
ARG EXTRA=runtime
ENV PYTHONDONTWRITEBYTECODE=1
WORKDIR /build
# Two environments: pip stays behind in the first, the second is what is shipped.
RUN python3 -m venv tools && python3 -m venv --without-pip /opt/venv
COPY requirements/${EXTRA}.txt requirements.txt
RUN tools/bin/pip --python /opt/venv/bin/python install --disable-pip-version-check --no-cache-dir \
      --no-compile --only-binary :all: --require-hashes --requirement requirements.txt \
    && find /opt/venv -type d \( -name tests -o -name include \) -prune -exec rm -r {} + \
    && find /opt/venv -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.a' \) -delete \
    && python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/venv/lib
WORKDIR /app
COPY alembic.ini ./
COPY alembic ./alembic
COPY app ./app
RUN python3 -m compileall -q --invalidation-mode checked-hash . \
    && printf '%s\n' '#!/opt/venv/bin/python' 'import sys' 'sys.path[0] = "/app"' \
      'from app.cli import main' 'sys.exit(main())' >/opt/venv/bin/agent-platform \
    && chmod 0755 /opt/venv/bin/agent-platform

FROM ${PYTHON_IMAGE}
ARG EXTRA=runtime
# The embedded chat model's library uses OpenMP, which its wheel does not bring.
# hadolint ignore=DL3008
RUN if [ "$EXTRA" = embedded ]; then \
      apt-get update \
      && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends libgomp1 \
      && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin; \
    fi
LABEL org.opencontainers.image.title="agent-platform" \
      org.opencontainers.image.description="Self-hosted backend for AI agents that talk, in text and by voice" \
      org.opencontainers.image.licenses="MIT"
RUN groupadd --gid 10001 app \
    && useradd --uid 10001 --gid app --home-dir /data --no-create-home --shell /usr/sbin/nologin app \
    && install --directory --owner app --group app --mode 0700 /data \
    && rm -rf /usr/local/bin/pip* /usr/local/lib/python3*/site-packages/* /usr/local/lib/python3*/ensurepip
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
# All that is written goes to DATA_DIR and /tmp, so the root may be read-only. The link is for a
# relative DATA_DIR=data, as in .env.example.
RUN ln -s /data /app/data
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PORT=8000 \
    DATA_DIR=/data
WORKDIR /app
USER 10001:10001
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "-ISc", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('PORT') or 8000), timeout=4); c.request('GET', '/health'); sys.exit(c.getresponse().status != 200)"]
# As a flag, since a HOST=127.0.0.1 from an .env file would make it listen to itself alone.
CMD ["python", "-m", "app.cli", "serve", "--host", "0.0.0.0"]
