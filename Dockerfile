# chatkeep's server. Build: docker build -t chatkeep .   Run: compose.yaml, or
#   docker run -p 8765:8765 -e CHATKEEP_JWT_SECRET=… -v chatkeep:/data chatkeep
FROM python:3.13-slim-bookworm AS build
COPY --from=ghcr.io/astral-sh/uv:0.9 /uv /usr/local/bin/uv
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
WORKDIR /app
COPY pyproject.toml uv.lock README.md LICENSE ./
RUN uv sync --frozen --no-dev --no-install-project --extra server --extra agent --extra postgres --extra mongodb --extra redis
COPY src ./src
RUN uv sync --frozen --no-dev --no-editable --extra server --extra agent --extra postgres --extra mongodb --extra redis

FROM python:3.13-slim-bookworm
RUN useradd --uid 10001 --no-create-home chatkeep && mkdir /data && chown chatkeep /data
COPY --from=build /app/.venv /app/.venv
ENV PATH=/app/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    CHATKEEP_HOST=0.0.0.0 \
    CHATKEEP_AUTH=jwt \
    CHATKEEP_LOG_FORMAT=json \
    CHATKEEP_DATABASE_URL=sqlite:////data/chat.db
USER 10001
VOLUME /data
EXPOSE 8765
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8765/readyz', timeout=2)"]
ENTRYPOINT ["chatkeep"]
CMD ["serve"]
