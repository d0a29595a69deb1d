"""Imports every module of modules.txt, whose text the host puts in the name MODULES; runs in the guest."""
import importlib

failed = []
for line in MODULES.splitlines():  # noqa: F821
    name = line.split("#")[0].strip()
    if not name:
        continue
    try:
        importlib.import_module(name)
    except BaseException as e:
        failed.append(f"{name}: {e!r}")
if failed:
    raise SystemExit("\n".join(failed))
