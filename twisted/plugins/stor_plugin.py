"""Makes `twistd stor`; imported whenever any Twisted program lists plugins, so nothing more."""

from twisted.application.service import ServiceMaker

stor = ServiceMaker("Stor", "stor.starting", "Keep and serve files by SHA-256 over HTTP.", "stor")
