"""Label-free: the student's embedding becomes its teacher's, on images without labels; a linear probe then measures it.

The cosine distance of the embeddings, through a linear layer where the widths differ; the teacher's logits are not
used, and a teacher without classes will do, as DINOv2 or an image tower of CLIP:

    kd_jax import-teacher timm/vit_small_patch14_dinov2.lvd142m --to=dinov2
    kd_jax --config=embedding --config.dataset.source=folder --config.dataset.path=photos --workdir=run \
        --config.teacher.kind=exported --config.teacher.path=dinov2
    kd_jax probe --workdir=run dataset.source=folder dataset.path=flowers

By default the teacher is that of the other experiments, which was trained with labels, and the images are its own.
Terms such as `vkd`, `rrd`, `rkd_distance` can stand in the place of `embedding`, or beside it.

    python -m kd_jax.main --config=configs/embedding.py[:small|:laptop|:smoke]
"""

from kd_jax.config import recipes


def get_config(arg=""):
    config = recipes.distilled(arg, {"embedding": {"weight": 1.0}})
    del config.method.cross_entropy
    config.name = "embedding"
    config.dataset.label_free = True
    return config
