"""What a configuration lets clients do."""

import attrs

from stor.http.auth import Authenticator

#: How many bodies are taken at once.
MAX_UPLOADS = 1000


@attrs.frozen
class Rules:
    """Who may ask for what, and how much may be stored.

    `read_auth`: samples are for those alone who may store them. `public_listing`: everybody may
    list the samples, which tells strangers what there is. `status_auth`: the pages are for users
    alone, and what names a disk with them.
    """

    authenticator: Authenticator
    max_upload_bytes: int | None = None
    max_uploads: int = MAX_UPLOADS
    read_auth: bool = False
    public_listing: bool = False
    status_auth: bool = False
