"""Where the wheels that PyTorch brings put CUDA's libraries."""

import importlib.util
from pathlib import Path


def folders():
    """Folders that may hold cuBLASLt, cuDNN and NVRTC, best first: nvidia's wheels, then torch's own."""
    roots = []
    for package, pattern in (("nvidia", "*/lib"), ("torch", "lib")):
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or []) if spec else []:
            roots += sorted(Path(place).glob(pattern))
    return [str(folder) for folder in roots if folder.is_dir()]
