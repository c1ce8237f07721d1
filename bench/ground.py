"""What a comparison has to work with."""

from pathlib import Path
from typing import Any

import attrs

from bench.contender import BareLoop
from bench.cores import Cores
from bench.nginx_server import NginxServer
from bench.programs import Programs
from bench.rclone_server import RcloneServer
from bench.registry_server import RegistryServer
from bench.stor_server import StorServer


@attrs.frozen
class Ground:
    """A directory of its own, the programs, and the cores that every server gets alike."""

    directory: Path
    programs: Programs
    cores: Cores

    def stor(self, name: str = "Stor", **settings: Any) -> StorServer:
        """A Stor, its disks below the directory."""
        place = self.directory / name.lower().replace(" ", "-").replace(",", "")
        return StorServer(place, self.programs, self.cores, name, **settings)

    def nginx(self, stor: StorServer) -> NginxServer:
        """An nginx that gives what is on the first disk of a Stor."""
        place = self.directory / "nginx"
        return NginxServer(place, stor.sets[0][0], self.programs, self.cores)

    def registry(self) -> RegistryServer:
        """A docker-registry."""
        return RegistryServer(self.directory / "registry", self.programs, self.cores)

    def rclone(self) -> RcloneServer:
        """An rclone."""
        return RcloneServer(self.directory / "rclone", self.programs, self.cores)

    def loop(self, layout: str, threads: int, size: int) -> BareLoop:
        """A bare loop."""
        return BareLoop(self.directory / f"{layout}{threads}", self.cores, layout, threads, size)
