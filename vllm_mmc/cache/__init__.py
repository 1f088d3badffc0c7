# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The compile cache: strings and files only, nothing of how a graph is made."""

from vllm_mmc.lazy import exports

_NAMES = {
    "BundleError": "bundles",
    "export_bundle": "bundles",
    "import_bundle": "bundles",
    "verify": "bundles",
}
__all__ = list(_NAMES)
__getattr__ = exports(__name__, _NAMES)
