"""Compares a version's files with what its manifest says of them."""

from pathlib import Path

from enginehouse_builder.manifest import FILE_NAME, File, Manifest, sha256_of

__all__ = ["fault_of", "faults_of", "files_of"]


def files_of(manifest: Manifest) -> list[File]:
    """Every file that the manifest names, each once, by path."""
    files = [*manifest.canonical, *manifest.text, manifest.reference]
    files += [file for engine in manifest.built for file in engine.files]
    return sorted({file.path: file for file in files}.values(), key=lambda file: file.path)


def faults_of(folder: Path, manifest: Manifest) -> list[str]:
    """What is wrong with the files, in words; empty if all are as they were published."""
    files = files_of(manifest)
    faults = [fault for file in files if (fault := fault_of(folder / file.path, file))]
    known = {FILE_NAME, *(file.path for file in files)}
    present = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return faults + [f"{path} is not in the manifest" for path in sorted(set(present) - known)]


def fault_of(path: Path, file: File) -> str:
    """What is wrong with a file, in words; empty if it is as it was published."""
    try:
        size = path.stat().st_size
        if size != file.size_bytes:
            return f"{file.path} has {size} bytes instead of {file.size_bytes}"
        found = sha256_of(path)
    except OSError as error:
        return f"{file.path} cannot be read: {error.strerror}"
    if found != file.sha256:
        return f"{file.path} was changed: its SHA-256 is {found}, not {file.sha256}"
    return ""
