"""Run Python commands in processes that are forked from a server, which has imported mixco already.

A new interpreter spends about four seconds on imports, a forked process none. It is still a real
process: it has an exit code and output, and can be killed. Tests that depend on how an interpreter
starts (memory, rights, start-up time) use `subprocess` instead.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
IMPORTED = ["mixco.api", "mixco.report.page", "mixco.data.workers", "torch._dynamo", "timm"]


def start_server() -> None:
    """Start the server in the background. Must come before mixco starts it, with fewer imports."""
    SERVER.set_forkserver_preload(IMPORTED)
    multiprocessing.forkserver.ensure_running()  # type: ignore[attr-defined]


class Python:
    """`python ARGUMENTS`, running. ARGUMENTS begin with -m MODULE, -c CODE or a script."""

    def __init__(
        self,
        *arguments: str | Path,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        before: Callable[[], object] | None = None,
    ) -> None:
        self.arguments = [str(argument) for argument in arguments]
        self.folder = tempfile.TemporaryDirectory()
        environment = {**os.environ, **(environment or {})}
        given = (self.arguments, self.folder.name, cwd or Path.cwd(), environment, before)
        self.process = SERVER.Process(target=_run, args=given)
        self.process.start()

    def running(self) -> bool:
        return self.process.is_alive()

    def kill(self) -> None:
        self.process.kill()

    def wait(self, seconds: float = 600) -> subprocess.CompletedProcess[str]:
        """Its exit code and output. It is killed when the time is up; its exit code is then -9."""
        try:
            self.process.join(seconds)
        finally:
            self.process.kill()
            self.process.join()
        out, err = (Path(self.folder.name, name).read_text("utf-8") for name in ("out", "err"))
        self.folder.cleanup()
        assert self.process.exitcode is not None
        return subprocess.CompletedProcess(self.arguments, self.process.exitcode, out, err)


def _run(
    arguments: list[str],
    output: str,
    cwd: Path,
    environment: Mapping[str, str],
    before: Callable[[], object] | None,
) -> None:
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(Path(output, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    if before is not None:
        before()
    option, *rest = arguments
    if option == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(rest[0], {"__name__": "__main__"})
    elif option == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(option).parent))
        runpy.run_path(option, run_name="__main__")


def python(
    *arguments: str | Path, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` up to its end."""
    return Python(*arguments, cwd=cwd, environment=environment).wait()


def mixco_command(
    *arguments: str | Path, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """`mixco ARGUMENTS` up to its end."""
    return python("-m", "mixco", *arguments, cwd=cwd)
