"""What the S3 engines have in common: to a test they are one thing."""

import contextlib
import itertools
import shutil
import ssl
import urllib.request
from abc import ABC, abstractmethod
from pathlib import Path

import boto3
from botocore.config import Config

from tests.engines.certificate import Certificate
from tests.engines.process import Group
from tests.integration.process import free_port


class Engine(ABC):
    """An S3 engine on loopback ports, for path-style requests with signatures of version 4.

    `front` takes the requests, over http at `endpoint` and over https at `tls_endpoint`; `nodes`
    keep the objects, each all of them. Both are `Group`s: `with engine.nodes[0].killed(): ...`.
    A test has a bucket of its own and leaves all nodes running, as others use the engine too. All
    that it writes is below its directory, which is removed in the end.
    """

    region = "us-east-1"

    def __init__(self, directory, nodes=1):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True)
        self.certificate = Certificate.make(self.directory)
        self.port, self.tls_port = free_port(), free_port()
        self.front = Group()
        self.nodes = [Group() for _ in range(nodes)]
        self._bucket_numbers = itertools.count()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.port}"

    @property
    def tls_endpoint(self):
        return f"https://127.0.0.1:{self.tls_port}"

    @property
    def ca_file(self):
        """What a client has to trust for `tls_endpoint`."""
        return str(self.certificate.file)

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *reason):
        self.stop()

    @abstractmethod
    def start(self):
        """Start it, and wait until it can be used."""

    def stop(self):
        """End all its processes and remove its directory."""
        with contextlib.ExitStack() as all_of_them:
            all_of_them.callback(shutil.rmtree, self.directory, ignore_errors=True)
            for group in [*self.nodes, self.front]:  # the front is the first to go
                all_of_them.callback(group.stop)

    def client(self, *, tls=False, access_key=None, secret_key=None, **settings):
        """A boto3 client; `settings` are those of its `Config`."""
        usual = {
            **{"signature_version": "s3v4", "s3": {"addressing_style": "path"}},
            **{"request_checksum_calculation": "when_required"},
            **{"response_checksum_validation": "when_required"},
            **{"read_timeout": 20, "retries": {"max_attempts": 0}},
        }
        return boto3.client(
            "s3",
            endpoint_url=self.tls_endpoint if tls else self.endpoint,
            verify=self.ca_file,
            region_name=self.region,
            aws_access_key_id=access_key or self.access_key,
            aws_secret_access_key=secret_key or self.secret_key,
            config=Config(**usual | settings),
        )

    def new_bucket(self):
        """The name of a new, empty bucket."""
        name = f"bucket-{next(self._bucket_numbers)}"
        self.client().create_bucket(Bucket=name)
        return name

    def answers(self, port, path):
        """Whether there is a 200 for this path on one of its ports."""
        trusting = ssl.create_default_context(cafile=self.ca_file)
        url = f"{'https' if port == self.tls_port else 'http'}://127.0.0.1:{port}{path}"
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusting)
        )
        with contextlib.suppress(OSError), opener.open(url, timeout=2) as answer:
            return answer.status == 200
        return False
