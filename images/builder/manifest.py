"""Read an image.toml: what an example image holds and what it must print.

    summary = "one line"
    args, env, cwd, user        the image's defaults, as `ctr run` takes them
    [[program]]  name, path, and how it is made: sources (of `c`, `c-freestanding` or
                 `wat`), or package and member; component = true adds the adapter,
                 wit the world of further imports
    [[file]]     path, and from = a file beside the manifest, or text, or hex; mode, uid, gid
    [[directory]] path, mode, uid, gid      [[link]] path, target
    optional = true             built only when named
    platform = "wasi/wasm"      instead of linux/amd64; for `ctr --platform` then
    [[case]]     name; args (whole command line), env, user, stdin, stdout, stderr, status;
                 stdin_file and stdout_file name a file beside the manifest instead,
                 stdout_sha256 is the digest of what is long or binary
"""
import tomllib
from dataclasses import dataclass, field
from pathlib import Path


class ManifestError(Exception):
    """An image.toml says something that the builder does not know."""


@dataclass(frozen=True)
class Program:
    name: str  # of the module's copy in OUTDIR/modules
    path: str
    kind: str  # "c", "c-freestanding", "wat" or "package"
    sources: list = field(default_factory=list)
    defines: list = field(default_factory=list)
    component: bool = False
    wit: str = ""  # folder of the world with what the module imports beside preview 1
    package: str = ""
    member: str = ""


@dataclass(frozen=True)
class File:
    path: str
    content: bytes
    mode: int = 0o644
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True)
class Directory:
    path: str
    mode: int = 0o755
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True)
class Link:
    path: str
    target: str


@dataclass(frozen=True)
class Case:
    name: str
    args: list
    env: list = field(default_factory=list)
    user: str = ""
    status: int = 0
    stdin: bytes = None   # None: nothing is attached
    stdout: bytes = None  # None: not compared
    stderr: bytes = None
    stdout_sha256: str = ""


@dataclass(frozen=True)
class Image:
    name: str
    folder: Path
    summary: str
    args: list
    programs: list
    files: list
    directories: list
    links: list
    cases: list
    env: list = field(default_factory=list)
    cwd: str = "/"
    user: str = ""
    optional: bool = False  # built only when named
    platform: str = "linux/amd64"

    @property
    def reference(self):
        return f"wasmvm.example/{self.name}:latest"


def bytes_of(table, folder, key):
    """The bytes that `key` (text) or `key_file` (a file beside the manifest) gives, or None."""
    if f"{key}_file" in table:
        return (folder / table.pop(f"{key}_file")).read_bytes()
    text = table.pop(key, None)
    return None if text is None else text.encode()


def file_of(table, folder):
    for key, read in (
        ("from", lambda name: (folder / name).read_bytes()),
        ("text", str.encode),
        ("hex", bytes.fromhex),
    ):
        if key in table:
            return File(content=read(table.pop(key)), **table)
    raise ManifestError(f"file {table['path']} has none of from, text, hex")


def case_of(table, folder):
    streams = {key: bytes_of(table, folder, key) for key in ("stdin", "stdout", "stderr")}
    return Case(**table, **streams)


def read(folder):
    """The Image of the folder's image.toml."""
    path = folder / "image.toml"
    try:
        table = tomllib.loads(path.read_text())
        return Image(
            name=folder.name,
            folder=folder,
            programs=[Program(**each) for each in table.pop("program", [])],
            files=[file_of(each, folder) for each in table.pop("file", [])],
            directories=[Directory(**each) for each in table.pop("directory", [])],
            links=[Link(**each) for each in table.pop("link", [])],
            cases=[case_of(each, folder) for each in table.pop("case", [])],
            **table,
        )
    except (TypeError, ValueError, OSError) as error:
        raise ManifestError(f"{path}: {error}") from error
