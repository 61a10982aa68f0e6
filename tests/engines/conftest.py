"""Checks against engines outside of the environment. `make test-vllm` runs them; elsewhere they are not collected.

VLLM_PYTHON names the interpreter of an environment with vLLM. The directory is not called `vllm`: it would be found in
place of the package.
"""

import os

collect_ignore_glob = [] if os.environ.get("VLLM_PYTHON") else ["test_*.py"]
