"""A certificate for 127.0.0.1 that signs itself."""

import attrs

from tests.engines.process import run


@attrs.frozen
class Certificate:
    """Its files; clients that trust `file` trust it."""

    file: object
    key_file: object

    @classmethod
    def make(cls, directory):
        """A new one, in `directory`."""
        made = cls(directory / "certificate.pem", directory / "key.pem")
        run(
            [
                *("openssl", "req", "-x509", "-nodes", "-days", "7", "-subj", "/CN=127.0.0.1"),
                *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
                *("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
                *("-keyout", made.key_file, "-out", made.file),
            ]
        )
        return made
