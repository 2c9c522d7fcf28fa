"""A few hundred photographs of one's own: a teacher that knows ImageNet learns them, and teaches a smaller network.

    kd_jax --config=photos --config.dataset.path=FOLDER     # FOLDER/CLASS/FILE

EfficientNet-Lite2 teaches EfficientNet-Lite0 at 96x96 by KD (see kd.py). Both start from ImageNet weights, which the
first run fetches from the Hugging Face hub. `photos:scratch` starts from nothing, and needs no network; `photos:smoke`
takes a few steps of small networks. For two CPU cores: 200 photographs take minutes.
"""

from kd_jax.config import recipes
from kd_jax.errors import choose


def get_config(arg=""):
    choose("the config's argument", arg, ("", "scratch", "smoke"))
    config = recipes.published("kd", "smoke" if arg == "smoke" else "lite")
    config.name = "photos"
    config.dataset.source = "folder"
    config.dataset.train_images = 0
    config.dataset.image_size = 16 if arg == "smoke" else 96
    for own in (config, config.teacher.config):
        own.dataset.augment = "crop_flip" if arg == "smoke" else "resized_crop"
        own.dataset.least_area = 0.35
        own.train.batch_size = 16
        own.train.epochs = 2 if arg == "smoke" else 40
        own.evaluate.every_epochs = 5
        own.checkpoint.every_epochs = 5
        own.log.every_steps = 20
        if arg != "smoke":
            own.optimizer.learning_rate = 5e-4
        if arg == "scratch":
            own.model.pretrained = ""
    return config
