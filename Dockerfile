# The image of Stor. Give it a configuration, and the disks at the paths that stand there:
#   docker run -v $PWD/config.json.example:/etc/stor.conf -e CONFIG_FILE=/etc/stor.conf IMAGE
# with -v /mnt/data1:/mnt/data1 ... and -p 8080:8080. --user gives the disks' owner.

FROM debian:trixie-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends \
    python3-setuptools python3-venv python3-wheel
WORKDIR /build
# What Stor needs changes less often than Stor.
COPY requirements.txt .
RUN python3 -m venv /usr/lib/stor \
 && /usr/lib/stor/bin/pip install --no-cache-dir --no-compile --require-hashes -r requirements.txt
COPY setup.py README.md ./
COPY stor stor
COPY twisted twisted
COPY debian/slim debian/slim
# With the setuptools of Debian, so that nothing comes without a hash.
RUN python3 setup.py --quiet bdist_wheel --dist-dir wheels \
 && /usr/lib/stor/bin/pip install --no-compile --no-deps --no-index wheels/*.whl \
 && debian/slim /usr/lib/stor

FROM debian:trixie-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates python3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/* \
 && useradd --system --uid 990 --home-dir /var/lib/stor --create-home --shell /usr/sbin/nologin stor
COPY --from=build /usr/lib/stor /usr/lib/stor
# Which disks belong to it; a volume there outlives the container.
ENV STATE_DIRECTORY=/var/lib/stor
USER 990:990
WORKDIR /
EXPOSE 8080
# /status is 200 when every storage is available. It is asked at the default port.
HEALTHCHECK --interval=15s --timeout=5s --start-period=10s \
  CMD ["/usr/lib/stor/bin/python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8080/status', timeout=4)"]
ENTRYPOINT ["/usr/lib/stor/bin/twistd", "--nodaemon", "--pidfile=", "stor"]
