"""Values of a JSON object, and every fault with its place."""

import difflib
import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import attrs

from stor.paths import is_path

#: What does not belong into a log, not even when it is wrong.
_KINDS: dict[type, str] = {str: "another text", list: "a list", dict: "an object"}
_SECRET = ("basic_auth", "secret", "s3_credentials", "s3_credentials.secret_key")


@attrs.define
class Reader:
    """Collects faults instead of stopping at the first; what has one is read as its default."""

    data: Mapping[str, Any]
    faults: list[str] = attrs.field(factory=list)
    warnings: list[str] = attrs.field(factory=list)

    def fault(self, path: str, expected: str, found: Any) -> None:
        """Note a value that is not what was expected; one that is secret is not shown."""
        # An item of a list is as secret as the list.
        secret = path.partition("[")[0] in _SECRET
        hidden = isinstance(found, str | list | dict) and secret
        shown = _KINDS[type(found)] if hidden else show(found)
        self.faults.append(f"{path}: expected {expected}, found {shown}")

    def missing(self, path: str, expected: str) -> None:
        """Note a value that has to be there."""
        self.faults.append(f"{path}: missing, expected {expected}")

    def refuse_unknown(self, path: str, found: Mapping[str, Any], known: tuple[str, ...]) -> None:
        """Note every key that is not known, with the nearest one that is."""
        for key in found:
            if key not in known:
                near = difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.0)
                shown = show(key).replace('"', "")
                self.faults.append(f'{path}{shown}: unknown key, did you mean "{near[0]}"?')

    def regex(self, key: str) -> re.Pattern[str]:
        """Read a regular expression, `.*` when there is none."""
        pattern = self.text(key, "a regular expression", default=".*")
        try:
            return re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            self.fault(key, f"a regular expression ({error})", pattern)
            return re.compile("")

    def text(
        self,
        path: str,
        expected: str,
        data: Mapping[str, Any] | None = None,
        default: str | None = None,
    ) -> str:
        """A text; without a `default` it has to be there and not be empty."""
        key = path.rpartition(".")[2]
        data = self.data if data is None else data
        if key not in data:
            if default is None:
                self.missing(path, expected)
            return default or ""
        value = data[key]
        if not isinstance(value, str) or (not value and default is None):
            self.fault(path, expected or "a text", value)
            return default or ""
        return value

    def path(self, key: str, default: str) -> str:
        """Read an absolute path."""
        value = self.data.get(key, default)
        if not is_path(value):
            self.fault(key, "an absolute path", value)
            return default
        return str(value)

    def integer(
        self,
        path: str,
        default: int | None,
        least: int,
        most: int = 2**63 - 1,
        data: Mapping[str, Any] | None = None,
    ) -> int | None:
        """A whole number in a range."""
        data = self.data if data is None else data
        value = data.get(path.rpartition(".")[2], default)
        if value is None and default is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            upper = f" up to {most}" if most < 2**63 - 1 else ""
            self.fault(path, f"a whole number from {least}{upper or ' on'}", value)
            return default
        return value

    def size(self, key: str, default: int | None, least: int) -> int | None:
        """A number of bytes, or a text such as "100 GB" or "8 MiB"."""
        value = self.data.get(key, default)
        if value is None and default is None:
            return None
        found = _bytes_of(value) if isinstance(value, str) else value
        if isinstance(found, bool) or not isinstance(found, int) or not least <= found < 2**63:
            expected = f'a number of bytes from {least} on, or a text such as "100 GB" or "8 MiB"'
            self.fault(key, expected, value)
            return default
        return found

    def boolean(self, key: str, default: bool) -> bool:
        """Read true or false."""
        value = self.data.get(key, default)
        # The older Stor's example writes true, its users also wrote 1 and 0.
        if value not in (True, False):
            self.fault(key, "true or false", value)
            return default
        return bool(value)

    def choice(self, key: str, choices: tuple[str, ...], default: str | None) -> str | None:
        """Read one of some texts."""
        if key not in self.data:
            return default
        value = self.data[key]
        if value not in choices:
            self.fault(key, "one of " + ", ".join(f'"{choice}"' for choice in choices), value)
            return default
        return str(value)


def _bytes_of(text: str) -> int | None:
    """The bytes that a text such as "1.5 TB" means; `None` when it means none."""
    found = re.fullmatch(r"(\d{1,18}(?:\.\d{1,3})?) ?(?:([kKMGTP])(i?))?B", text.strip(), re.ASCII)
    if found is None:
        return None
    power = " KMGTP".index((found[2] or " ").upper())
    number = Decimal(found[1]) * (1024 if found[3] else 1000) ** power
    return int(number) if number == int(number) else None


def show(value: Any) -> str:
    """A value as it stands in a configuration, shortened."""
    try:
        text = json.dumps(value)
    except RecursionError:
        return "something nested too deeply"
    return text if len(text) <= 80 else f"{text[:77]}..."
