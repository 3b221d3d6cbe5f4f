"""A wheel of a few bytes, and pip and uv told to look nowhere else."""

import zipfile


def make(folder, project="small-model", version="1", file=("small_model/model.gguf", b"weights")):
    """The path of a wheel that holds `file`, in `folder`."""
    name = f"{project.replace('-', '_')}-{version}"
    info = f"{name}.dist-info"
    contents = {
        file[0]: file[1],
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    contents[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*contents, f"{info}/RECORD"])
    folder.mkdir(exist_ok=True, parents=True)
    wheel = folder / f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, content in contents.items():
            archive.writestr(path, content)
    return wheel


def only(folder):
    """The environment variables with which pip and uv find packages in `folder` alone."""
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "UV_NO_INDEX": "1", "UV_FIND_LINKS": str(folder)}
