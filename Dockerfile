# One image for listener, workers and Flower: they differ in the command only (docker-compose.yml).
# Nothing secret is in it: all of that comes from the environment of the container.

FROM python:3.13.14-slim AS build
RUN python -m venv /opt/cdc-tasks
ENV PATH=/opt/cdc-tasks/bin:$PATH
WORKDIR /src
COPY pyproject.toml README.md constraints.txt ./
COPY cdc_tasks cdc_tasks
COPY listener listener
RUN pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt '.[all]'

FROM python:3.13.14-slim
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin cdc
COPY --from=build /opt/cdc-tasks /opt/cdc-tasks
ENV PATH=/opt/cdc-tasks/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
COPY celeryconfig.py ./
USER 10001
CMD ["cdc-listener", "run"]
