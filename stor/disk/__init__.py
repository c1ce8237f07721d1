"""One disk: where its copies are, and the order that makes one durable. Blocking, no Twisted."""
