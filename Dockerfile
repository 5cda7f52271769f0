# The hub as an image: what it needs to serve and nothing else, run by an ordinary user.

FROM python:3.13-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/hub
COPY requirements-runtime.lock ./
RUN /opt/hub/bin/pip install --no-cache-dir --require-hashes -r requirements-runtime.lock
COPY . .
# The builder is pinned like all the rest: its lines of the lock, and no isolation that would fetch another one.
RUN sed -n '/^setuptools==/,/[^\\]$/p' requirements.lock > build.lock \
    && python -m pip install --no-cache-dir --require-hashes -r build.lock \
    && python -m pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /opt/hub/bin/pip install --no-cache-dir --no-deps /wheels/*.whl \
    && /opt/hub/bin/pip check

FROM python:3.13-slim-bookworm
RUN useradd --system --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin hub
COPY --from=build /opt/hub /opt/hub
ENV PATH=/opt/hub/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    AURALINK_LISTEN=0.0.0.0:8080
USER 10001:10001
EXPOSE 8080
# Liveness only: a node whose database is away is to be kept, not killed. Readiness (/readyz) is the load balancer's question.
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['AURALINK_LISTEN'].rpartition(':')[2] + '/livez', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["auralink-hub"]
CMD ["serve"]
