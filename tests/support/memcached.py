"""A memcached without a server: pymemcache's client, as far as Stor uses it."""


class MemoryClient:
    """Keeps values in `values`, with the seconds they last in `lifetimes`.

    The next calls of `get`, `set` and `delete` raise what is in `errors`, one each.
    """

    def __init__(self, values=None, errors=()):
        self.values = {} if values is None else values
        self.lifetimes = {}
        self.errors = list(errors)
        self.calls = []
        self.closed = False

    def get(self, key):
        self._called("get", key)
        return self.values.get(key)

    def set(self, key, value, expire, noreply):
        self._called("set", key)
        assert not noreply, "memcached answers a failure all the same"
        self.values[key] = value
        self.lifetimes[key] = expire
        return True

    def delete(self, key, noreply):
        self._called("delete", key)
        assert not noreply, "memcached answers a failure all the same"
        return self.values.pop(key, None) is not None

    def close(self):
        self.closed = True

    def _called(self, name, key):
        self.calls.append((name, key))
        if self.errors:
            raise self.errors.pop(0)
