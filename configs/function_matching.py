"""Function matching: a patient student matches its teacher's function on mixed images, and sees no label.

Beyer et al., "Knowledge Distillation: A Good Teacher is Patient and Consistent", CVPR 2022: KD at a temperature of 1,
aggressive mixup, one augmented view that both networks see, a long cosine schedule. There 1200 epochs on ImageNet, here
five times those of the other experiments at the two larger scales.

    kd_jax --config=function_matching[:small|:laptop|:smoke]
"""

from kd_jax.config import recipes


def get_config(arg=""):
    config = recipes.published("function_matching", arg)
    if arg in ("", "small"):
        config.train.epochs *= 5
    return config
