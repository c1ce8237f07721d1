"""`stor check-config`: say whether a configuration can be used."""

from typing import Any

from stor.config import Config


def add(commands: Any) -> None:
    """Add the command to a parser's."""
    parser = commands.add_parser(
        "check-config",
        help="say whether a configuration can be used",
        description="Read a configuration and list every fault; the disks are not looked at.",
    )
    parser.add_argument("config", nargs="?", metavar="FILE")
    parser.set_defaults(configured=lambda config, given: check(config))


def check(config: Config) -> str:
    """What a configuration comes to, and what deserves attention."""
    roots = sum(map(len, config.sets))
    summary = f"The configuration can be used (sets: {len(config.sets)}, disks: {roots})"
    return "\n".join([*[f"warning: {warning}" for warning in config.warnings], summary])
