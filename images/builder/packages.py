"""Fetch the pinned packages of packages.toml through their registries' own clients.

Each archive is checked against its sha256 and kept in the cache under that digest, so a
change of the examples downloads nothing again.
"""
import glob
import hashlib
import os
import pathlib
import shutil
import sys
import tarfile
import tempfile
import tomllib
import zipfile

from .command import run

# pip picks wheels for this Python, not for the one that runs the build: some publishers
# mark their wheels for newer Pythons, and only the .wasm files in them are used.
WHEEL_PYTHON = "3.14"


def cache_folder():
    """Where everything that was built or fetched is kept: ${WASMVM_CACHE:-~/.cache/wasmvm}."""
    return pathlib.Path(os.environ.get("WASMVM_CACHE") or os.path.expanduser("~/.cache/wasmvm"))


class PackageError(Exception):
    """A package could not be had, or is not the pinned one."""


class Packages:
    """The table of packages.toml with a cache directory."""

    def __init__(self, table_path, cache):
        with open(table_path, "rb") as file:
            self.table = tomllib.load(file)
        self.cache = cache / "packages"

    def member(self, name, path):
        """The bytes of the file `path` in the archive of package `name`."""
        archive = self.archive(name)
        try:
            if archive.suffix == ".whl":
                with zipfile.ZipFile(archive) as wheel:
                    return wheel.read(path)
            with tarfile.open(archive) as crate:
                return crate.extractfile(path).read()
        except KeyError:
            raise PackageError(f"{archive.name} holds no {path}") from None

    def archive(self, name):
        """The path of the checked archive of package `name`, fetched when absent."""
        package = self.table[name]
        kept = self.cache / package["sha256"] / package["file"]
        if kept.exists():
            return kept
        self.cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.cache) as temporary:
            print(f"images: fetching {package['file']}", file=sys.stderr, flush=True)
            fetched = FETCH[package["client"]](name, package, pathlib.Path(temporary))
            check(fetched, package["sha256"])
            kept.parent.mkdir(exist_ok=True)
            os.replace(fetched, kept)
        return kept


def check(path, expected):
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != expected:
        raise PackageError(f"{path.name}: sha256 is {digest}, pinned is {expected}")


def fetch_wheel(name, package, temporary):
    """A wheel from PyPI by pip (Debian: python3-pip)."""
    run([
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:",
        "--disable-pip-version-check", "--python-version", WHEEL_PYTHON, "--dest", temporary,
        f"{name}=={package['version']}",
    ])
    return temporary / package["file"]


def fetch_crate(name, package, temporary):
    """A crate by `cargo fetch`: copied from cargo's own cache of archives."""
    home = os.environ.get("CARGO_HOME", os.path.expanduser("~/.cargo"))
    pattern = f"{home}/registry/cache/*/{package['file']}"
    if not glob.glob(pattern):
        (temporary / "lib.rs").touch()
        (temporary / "Cargo.toml").write_text(
            '[package]\nname = "fetch"\nversion = "0.0.0"\nedition = "2021"\n'
            '[lib]\npath = "lib.rs"\n[workspace]\n'
            f'[dependencies]\n{name} = "={package["version"]}"\n')
        run(["cargo", "fetch", "--quiet"], cwd=temporary)
    found = glob.glob(pattern)
    if not found:
        raise PackageError(f"cargo fetched {name} but {pattern} is absent")
    return pathlib.Path(shutil.copy(found[0], temporary))


FETCH = {"pip": fetch_wheel, "cargo": fetch_crate}
