# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Ask a model about a picture, with its encoder compiled.

python examples/offline_picture.py [MODEL [PICTURE]]
"""

import sys

from PIL import Image
from vllm import LLM, SamplingParams

from vllm_mmc.demo.media import photograph


def main(model: str = "Qwen/Qwen2.5-VL-7B-Instruct", picture: str = "") -> None:
    llm = LLM(
        model=model,
        max_model_len=4096,
        limit_mm_per_prompt={"image": 1, "video": 0},
        compilation_config={"compile_mm_encoder": True},
    )
    image = Image.open(picture) if picture else photograph()
    question = [
        {"type": "image_pil", "image_pil": image},
        {"type": "text", "text": "What is in this picture?"},
    ]
    (output,) = llm.chat(
        [{"role": "user", "content": question}],
        SamplingParams(temperature=0, max_tokens=64),
    )
    print("answer:", output.outputs[0].text)


if __name__ == "__main__":
    main(*sys.argv[1:])
