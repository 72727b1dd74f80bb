"""Writes an image in OCI layout, without a daemon: the layers and the configuration of deploy/docker/Dockerfile.

Usage: image.py VERSION PROGRAM OUT. `skopeo copy oci-archive:OUT docker://...` brings it to a registry.
"""

import gzip
import hashlib
import io
import json
import os
import platform
import sys
import tarfile

AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def tar(files):
    """`files`: name, bytes, mode. With the directories that lead there."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        seen = set()
        for name, content, mode in files:
            parts = name.split("/")
            for depth in range(1, len(parts)):
                directory = "/".join(parts[:depth])
                if directory not in seen:
                    seen.add(directory)
                    entry = tarfile.TarInfo(directory)
                    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                    archive.addfile(entry)
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def main():
    version, program, out = sys.argv[1:]
    blobs = {}

    def blob(content, media_type):
        digest = hashlib.sha256(content).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = content
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    with open(AUTHORITIES, "rb") as file:
        authorities = tar([(AUTHORITIES.lstrip("/"), file.read(), 0o644)])
    with open(program, "rb") as file:
        layers = [authorities, tar([("usr/local/bin/warmd", file.read(), 0o755)])]
    labels = {
        "org.opencontainers.image.title": "warmd",
        "org.opencontainers.image.version": version,
        "org.opencontainers.image.revision": os.environ.get("BUILD_COMMIT", ""),
        "org.opencontainers.image.licenses": "Apache-2.0",
    }
    config = {
        "architecture": ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": {
            "User": "65532:65532",
            "Env": ["PATH=/usr/local/bin"],
            "Entrypoint": ["/usr/local/bin/warmd"],
            "Cmd": ["--help"],
            "Labels": labels,
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]},
    }
    oci = "application/vnd.oci.image"
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{oci}.manifest.v1+json",
        "config": blob(json.dumps(config).encode(), f"{oci}.config.v1+json"),
        "layers": [blob(gzip.compress(layer, 9, mtime=0), f"{oci}.layer.v1.tar+gzip") for layer in layers],
    }
    entry = blob(json.dumps(manifest).encode(), f"{oci}.manifest.v1+json")
    names = {"org.opencontainers.image.ref.name": version}
    index = {"schemaVersion": 2, "mediaType": f"{oci}.index.v1+json", "manifests": [entry | {"annotations": names}]}
    files = [("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'), ("index.json", json.dumps(index).encode())]
    with open(out, "wb") as file:
        file.write(tar([(name, content, 0o644) for name, content in files + sorted(blobs.items())]))


main()
