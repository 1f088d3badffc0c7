# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What differs between supported releases, and every hook into other packages.

Each module says why it exists, names the folder in upstream/ whose patch makes it
unnecessary, or says why there is none, and can be undone. Where what it hooks is gone,
it does nothing, and `applies()` says why. Private names are looked up in `symbols`.
"""
