#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
# Compile once, start from the cache elsewhere. All arguments go to `cache warm`, as they
# go to `vllm serve`:
#     sh examples/ship_cache.sh Qwen/Qwen2.5-VL-7B-Instruct
set -eu
: "${BUNDLE:=encoder.tar}"

# A pair of keys: the private one stays where bundles are made.
test -f signing.pem || openssl genpkey -algorithm ed25519 -out signing.pem
openssl pkey -in signing.pem -pubout -out trusted.pem

# Where the encoder is compiled:
vllm-mmc cache warm "$@"
vllm-mmc cache export "$BUNDLE" --signing-key signing.pem

# On each machine that serves:
vllm-mmc cache import "$BUNDLE" --public-key trusted.pem
vllm-mmc cache verify
vllm-mmc cache explain "$@"
