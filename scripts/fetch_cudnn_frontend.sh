#!/usr/bin/env bash
# Gets the headers of cuDNN's C++ front-end, which CUDA builds use for attention.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

version=1.32.0
folder=build/_deps/cudnn-frontend

usage() {
  cat <<TEXT
Usage: scripts/fetch_cudnn_frontend.sh [FOLDER]
Puts the headers of the cuDNN front-end $version (Apache-2.0) into FOLDER/include; default $folder, where
cmake looks for them. For another folder set -DBRAID_CUDNN_FRONTEND_DIR=FOLDER/include. They come from the package
nvidia-cudnn-frontend of PyPI, through pip. Does nothing if they are there.
TEXT
}

case ${1:-} in
  -h | --help) usage; exit 0 ;;
  -*) usage >&2; die "unknown option $1" ;;
  ?*) folder=$1 ;;
esac
[ $# -le 1 ] || { usage >&2; die "one folder at most"; }

stamp=$folder/version
if [ "$(cat "$stamp" 2>/dev/null)" = "$version" ]; then exit 0; fi
python3 -m pip --version >/dev/null 2>&1 || die "needs python3 with pip"

download=$(mktemp -d)
trap 'rm -rf "$download"' EXIT
python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$download" "nvidia-cudnn-frontend==$version"
rm -rf "$folder"
mkdir -p "$folder"
python3 - "$download" "$folder" <<'PYTHON'
import pathlib, sys, zipfile
(wheel,) = pathlib.Path(sys.argv[1]).glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    names = archive.namelist()
    archive.extractall(sys.argv[2], [n for n in names if n.startswith("include/")])
    for name in names:
        if "/licenses/" in name and not name.endswith("/"):
            (pathlib.Path(sys.argv[2]) / pathlib.Path(name).name).write_bytes(archive.read(name))
PYTHON
rm -rf "$folder"/include/cudnn_frontend/{thirdparty,AGENTS.md}  # a JSON library that Braid does not compile in
echo "$version" >"$stamp"
