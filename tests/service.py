"""deploy/service without containers: the same programs, commands and settings on 127.0.0.1."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from compose_file import FOLDER, compose_file, mapped
from servers import (
    HOST,
    MlflowServer,
    free_port,
    postgres,
    postgres_binaries,
    s3,
    server_environment,
)

# In the place of `docker compose`: runs what would run in a container beside the running parts.
STAND_IN = """#!{python}
import json, os, subprocess, sys
parts = json.load(open({parts!r}))
words = sys.argv[2:]
with open({calls!r}, "a") as calls:
    print(*words, file=calls)
if words[0] in ("exec", "run"):
    at = next(place for place, word in enumerate(words) if word in parts)
    command = [*parts[words[at]]["entrypoint"], *words[at + 1 :]]
    for volume in (words[i + 1] for i, word in enumerate(words) if word == "--volume"):
        outside, inside = volume.split(":")[:2]
        command = [word.replace(inside, outside) for word in command]
    sys.exit(subprocess.run(command, env=os.environ | parts[words[at]]["environment"]).returncode)
"""


@dataclass(frozen=True)
class Service:
    """The running parts.

    Attributes:
        server: MLflow; whoever comes needs `person`.
        variables: those of .env, with their secrets.
        calls: what was said to `docker compose`, a line each.
    """

    server: MlflowServer
    variables: Mapping[str, str]
    calls: Path
    _tools: Path

    def person(self, name: str = "admin", password: str = "") -> dict[str, str]:
        """What a person's shell has; the administrator's, if no other is named."""
        return {
            "MLFLOW_TRACKING_URI": self.server.uri,
            "MLFLOW_TRACKING_USERNAME": name,
            "MLFLOW_TRACKING_PASSWORD": password or self.variables["MLFLOW_ADMIN_PASSWORD"],
        }

    def do(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of the scripts beside the compose file."""
        path = os.pathsep.join([str(self._tools), os.environ["PATH"]])
        return subprocess.run(
            [FOLDER / script, *arguments],
            env=os.environ | {"PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def compose(self, *words: str) -> None:
        """Say something to `docker compose`, as the scripts do."""
        subprocess.run([self._tools / "docker", "compose", *words], check=True)


@contextmanager
def service(folder: Path) -> Iterator[Service]:
    """Run the service on an empty database and store, and yield it once it answers.

    Raises:
        ServerError: a part did not start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with postgres(folder / "database") as database, s3(folder / "store") as store:
        variables = {
            "POSTGRES_PASSWORD": str(urlsplit(database).password),
            "S3_ACCESS_KEY": store["AWS_ACCESS_KEY_ID"],
            "S3_SECRET_KEY": store["AWS_SECRET_ACCESS_KEY"],
            "MLFLOW_ADMIN_PASSWORD": f"secret-{secrets.token_hex(8)}",
            "MLFLOW_SECRET_KEY": f"secret-{secrets.token_hex(8)}",
        }
        places = {
            "@database/": f"@{HOST}:{urlsplit(database).port}/",
            "http://store:8333": store["MLFLOW_S3_ENDPOINT_URL"],
            "/auth.ini": str(folder / "auth.ini"),
        }
        document = mapped(compose_file(variables), partial(_here, places=places))
        (folder / "auth.ini").write_text(document["configs"]["auth"]["content"])
        parts = document["services"]
        parts["database"]["entrypoint"] = []
        parts["database"]["environment"] = {
            "PGHOST": HOST,
            "PGPORT": str(urlsplit(database).port),
            "PGPASSWORD": variables["POSTGRES_PASSWORD"],
            "PATH": os.pathsep.join([str(postgres_binaries()), os.environ["PATH"]]),
        }
        objects = parts["objects"]
        subprocess.run(
            [*objects["entrypoint"], *objects["command"]],
            env=os.environ | objects["environment"],
            check=True,
        )
        mlflow = parts["mlflow"]
        port = free_port()
        command = [sys.executable, "-m", *mlflow["command"], "--host", HOST, "--port", str(port)]
        server = MlflowServer(folder, port, command, server_environment(mlflow["environment"]))
        running = Service(server, variables, folder / "calls", _tools(folder, parts))
        server.start()
        try:
            yield running
        finally:
            server.stop()


def _here(string: str, places: Mapping[str, str]) -> str:
    """The same, with what has a name among containers where it is on this machine."""
    for name, place in places.items():
        string = string.replace(name, place)
    return string


def _tools(folder: Path, parts: Mapping[str, Any]) -> Path:
    tools = folder / "tools"
    tools.mkdir()
    (folder / "parts.json").write_text(json.dumps(parts))
    names = {"parts": str(folder / "parts.json"), "calls": str(folder / "calls")}
    docker = tools / "docker"
    docker.write_text(STAND_IN.format(python=sys.executable, **names))
    docker.chmod(0o755)
    return tools
