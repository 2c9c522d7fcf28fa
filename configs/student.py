"""The student trained alone: cross entropy on the labels, what every distilled student is compared with.

python -m kd_jax.main --config=configs/student.py[:small|:smoke]
"""

from kd_jax.config import base, recipes


def get_config(arg=""):
    config = base.alone(recipes.student(arg))
    config.name = "student"
    return config
