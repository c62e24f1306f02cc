"""Write an OCI image as one tar archive that `ctr images import` takes.

The archive is an OCI image layout (image-spec v1.0, image-layout.md) with one manifest
and one layer. The same tree gives the same bytes: members are sorted, times are 0, and
the layer is not compressed, as the output of a compressor changes with its version.
"""
import hashlib
import io
import json
import tarfile
from dataclasses import dataclass

MEDIA = "application/vnd.oci.image"
EPOCH = "1970-01-01T00:00:00Z"
# containerd names an imported image after this annotation of the index entry.
NAME_ANNOTATION = "io.containerd.image.name"
TAG_ANNOTATION = "org.opencontainers.image.ref.name"


@dataclass(frozen=True)
class Node:
    """One file, directory or symbolic link of the root file system."""

    kind: bytes  # tarfile.REGTYPE, DIRTYPE or SYMTYPE
    mode: int
    content: bytes = b""
    target: str = ""
    uid: int = 0
    gid: int = 0


def add(archive, name, node):
    member = tarfile.TarInfo(name)
    member.type = node.kind
    member.mode = node.mode
    member.uid, member.gid = node.uid, node.gid
    member.linkname = node.target
    member.size = len(node.content)
    archive.addfile(member, io.BytesIO(node.content))


def with_parents(tree):
    """The tree with every directory that a path needs and the manifest did not name."""
    whole = dict(tree)
    for path in tree:
        parts = path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            whole.setdefault("/".join(parts[:depth]), Node(tarfile.DIRTYPE, 0o755))
    return whole


def archive_of(tree):
    """A tar archive of {path without leading slash: Node}."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, node in sorted(with_parents(tree).items()):
            add(archive, name, node)
    return out.getvalue()


def digest_of(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def as_json(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def image(reference, tree, process, platform):
    """The archive's bytes for an image named `reference` with one layer of `tree`.

    `process` holds the defaults of the image's config: Cmd, Env, WorkingDir, User.
    `platform` is written as `ctr --platform` takes it: OS/ARCHITECTURE.
    """
    os, _, architecture = platform.partition("/")
    platform = {"architecture": architecture, "os": os}
    layer = archive_of(tree)
    config = as_json({
        **platform,
        "created": EPOCH,
        "config": process,
        "rootfs": {"type": "layers", "diff_ids": [digest_of(layer)]},
        "history": [{"created": EPOCH, "created_by": "images/build"}],
    })
    manifest = as_json({
        "schemaVersion": 2,
        "mediaType": f"{MEDIA}.manifest.v1+json",
        "config": descriptor(f"{MEDIA}.config.v1+json", config),
        "layers": [descriptor(f"{MEDIA}.layer.v1.tar", layer)],
    })
    entry = {
        **descriptor(f"{MEDIA}.manifest.v1+json", manifest),
        "platform": platform,
        "annotations": {NAME_ANNOTATION: reference, TAG_ANNOTATION: reference.rpartition(":")[2]},
    }
    index = {"schemaVersion": 2, "mediaType": f"{MEDIA}.index.v1+json", "manifests": [entry]}
    layout = {
        "oci-layout": regular(as_json({"imageLayoutVersion": "1.0.0"})),
        "index.json": regular(as_json(index)),
    }
    for blob in (layer, config, manifest):
        layout["blobs/" + digest_of(blob).replace(":", "/")] = regular(blob)
    return archive_of(layout)


def descriptor(media_type, blob):
    return {"mediaType": media_type, "digest": digest_of(blob), "size": len(blob)}


def regular(content, mode=0o644):
    return Node(tarfile.REGTYPE, mode, content)
