"""From a config to an experiment: every option is built and traced, and what is wrong is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from kd_jax import experiment, identity, methods, models, runs
from kd_jax.config import base
from kd_jax.data import memory
from kd_jax.errors import InputError
from kd_jax.models import torch_names
from tests import tiny


@pytest.mark.parametrize(
    "overrides",
    [
        {"precision": "bfloat16"},
        {"train.ema": 0.9, "train.accumulate": 4},
        {"train.mixup": 0.2, "train.label_smoothing": 0.1},
        {"train.clip": 1.0, "optimizer.name": "adam"},
        {"optimizer.name": "adamw", "optimizer.decay_norms_and_biases": False},
        {"model.head": "mlp", "model.freeze": "backbone_and_norms"},
        {"model.shortcut": "pad", "model.freeze": "backbone"},
        {"dataset.augment": "crop_flip", "dataset.labeled": 20},
        {"dataset.holdout": 0.0, "optimizer.schedule": "step"},
    ],
    ids=lambda overrides: "-".join(overrides),
)
def test_every_option_can_be_trained_with(overrides):
    assert experiment.create(tiny.taught(**overrides)).steps == 12


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"model.name": "resnet19"}, "model.name is 'resnet19'; expected one of: .*; did you mean 'resnet1"),
        ({"model.freeze": "all"}, "model.freeze is 'all'; expected one of: backbone, backbone_and_norms, none"),
        ({"model.width": 0.0}, "model.width is 0.0; expected a factor above 0"),
        ({"precision": "float16"}, "precision is 'float16'; expected one of: bfloat16, float32"),
        ({"optimizer.schedule": "cosin"}, "optimizer.schedule is 'cosin'; .* did you mean 'cosine'"),
        ({"optimizer.name": "sgdm"}, "optimizer.name is 'sgdm'; .* did you mean 'sgd'"),
        ({"optimizer.learning_rate": float("inf")}, "optimizer.learning_rate is inf; expected a number above 0"),
        ({"optimizer.learning_rate": 0.0}, "optimizer.learning_rate is 0.0; expected a number above 0"),
        ({"dataset.image_size": 0}, "dataset.image_size is 0; expected a whole number from 1 to 4096"),
        (
            {"dataset.source": "cifar"},
            "dataset.source is 'cifar'; expected one of: digits, folder, hf, memory, npz, tar, tfds",
        ),
        ({"train.batch_size": 65}, "train.batch_size is 65; expected at most the 64 training images"),
        ({"train.batch_size": 15}, "train.batch_size is 15; expected a multiple of 2"),
        ({"train.accumulate": 3}, "train.batch_size is 16; expected a multiple of 6"),
        ({"seed": -1}, "seed is -1; expected a whole number from 0"),
        ({"optimizer.momentum": 1.0}, "optimizer.momentum is 1.0; expected a number of at least 0 and below 1"),
        ({"optimizer.b2": -0.5}, "optimizer.b2 is -0.5; expected a number of at least 0 and below 1"),
        ({"train.epochs": 0}, "train.epochs is 0; expected a whole number from 1 to 1000000"),
        ({"optimizer.warmup_epochs": float("inf")}, "optimizer.warmup_epochs is inf; expected a number of at least 0"),
        ({"optimizer.milestones": ("a",)}, r"optimizer.milestones is \['a'\]; expected a list of epochs above 0"),
        (
            {"dataset.extra_views": ("crop",)},
            r"dataset.extra_views is \['crop'\]; expected none, \[\]: the method's terms compare 1 view",
        ),
        ({"precision": "float64"}, "precision is 'float64', which needs JAX_ENABLE_X64=1"),
        ({"dataset.image_size": 100_000}, "dataset.image_size is 100000; expected a whole number from 1 to 4096"),
        ({"train.mixup": -0.1}, "train.mixup is -0.1; expected a number of at least 0"),
        ({"evaluate.select": "best"}, "evaluate.select is 'best'; expected one of: best-validation, both, last"),
        ({"evaluate.select": "best-validation", "dataset.holdout": 0.0}, "there is no validation split"),
        (
            {"teacher.kind": "hub"},
            "teacher.kind is 'hub'; expected one of: config, ensemble, exported, mean, none, .*run",
        ),
        ({"teacher.kind": "config"}, "teacher.config is empty"),
        ({"teacher.kind": "run"}, "teacher.path is empty"),
        (
            {"teacher.kind": "run", "teacher.path": "/nowhere"},
            "/nowhere has no config.json; expected the folder of a run",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_value_is_named_with_what_was_expected(overrides, said):
    with pytest.raises(InputError, match=said):
        experiment.create(tiny.config(**overrides))


def test_a_method_that_needs_a_teacher_is_refused_without_one():
    config = tiny.config() | {"method": {"kd": {"weight": 1.0}}}
    said = r"terms .kd. need a teacher; expected one of: config, .*run, untrained, weights"
    with pytest.raises(InputError, match=said):
        experiment.create(config)


def test_a_method_that_compares_views_asks_for_their_augmentation():
    config = tiny.taught() | {"method": {"mlkd": {"views": [0, 1]}}}
    with pytest.raises(InputError, match=r"dataset.extra_views is \[\]; expected the augmentation of 1 more, such as"):
        experiment.create(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("source", "folder"),
        ("name", "mnist"),
        ("path", "/elsewhere"),
        ("image_size", 16),
        ("holdout", 0.2),
        ("train_images", 32),
    ],
)
def test_a_teacher_of_other_data_is_refused(key, value):
    config = tiny.taught()
    own = config["dataset"][key]
    config["teacher"]["config"]["dataset"][key] = value
    with pytest.raises(InputError, match=rf"teacher.config.dataset.{key} is {value!r}; expected the student's {own!r}"):
        experiment.create(config)


@pytest.mark.parametrize(
    ("key", "value"), [("labeled", 20), ("unlabeled", False), ("augment", "none"), ("skip_unreadable", True)]
)
def test_a_teacher_may_see_the_same_data_otherwise(key, value):
    config = tiny.taught()
    config["teacher"]["config"]["dataset"][key] = value
    assert experiment.create(config).teacher.untrained.config["dataset"][key] == value


def test_a_mistake_in_the_teachers_config_is_said_to_be_there():
    config = tiny.taught()
    config["teacher"]["config"]["model"]["name"] = "resnet19"
    with pytest.raises(InputError, match="in the teacher's config, model"):
        experiment.create(config)


@pytest.mark.parametrize("key", ["train", "method", "teacher.kind", "optimizer.milestones", "model.freeze"])
def test_a_config_that_lacks_a_key_is_refused(key):
    config = tiny.config()
    *section, last = key.split(".")
    del (config[section[0]] if section else config)[last]
    with pytest.raises(InputError, match=rf"the config lacks {key}; expected every key of kd_jax/keys.py"):
        experiment.create(config)


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("train", "epoch", 3, r"a key of train is 'epoch'; expected one of: .*; did you mean 'epochs'"),
        ("train", "batch_size", 16.0, r"train.batch_size is 16.0; expected a whole number"),
        ("optimizer", "nesterov", "no", r"optimizer.nesterov is 'no'; expected true or false"),
        ("optimizer", "milestones", 7, r"optimizer.milestones is 7; expected a list"),
        ("teacher", "config", 7, r"teacher.config is 7; expected a section"),
    ],
)
def test_a_key_or_kind_of_value_that_there_is_not_is_refused(section, key, value, said):
    config = tiny.config()
    config[section][key] = value
    with pytest.raises(InputError, match=said):
        experiment.create(config)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gamma": -1}, "method.fitnet.optimizer.gamma is -1; expected a number above 0"),
        ({"momentum": "x"}, "method.fitnet.optimizer.momentum is 'x'; expected a number"),
        ({"milestones": [0]}, r"method.fitnet.optimizer.milestones is \[0\]; expected a list of epochs above 0"),
    ],
)
def test_a_terms_optimizer_is_checked_as_the_students(options, said):
    with pytest.raises(InputError, match=said):
        experiment.create(tiny.taught() | {"method": {"fitnet": {"optimizer": options}}})


@pytest.mark.parametrize(
    ("term", "said"),
    [
        ({"method": "simkd", "factor": 0}, "method.term.factor is 0; expected a whole number from 1 to 65536"),
        ({"method": "crd", "negatives": 0}, "method.term.negatives is 0; expected a whole number from 1 to 1048576"),
        ({"method": "original_kd", "temperature": 0}, "method.term.temperature is 0; expected a number above 0"),
        ({"method": "original_cross_entropy", "temperature": 0}, "method.term.temperature is 0; expected"),
        ({"method": "original_rkd_angle", "temperature": 0}, "method.term.temperature is 0; expected"),
        ({"method": "original_rkd_distance", "temperature": 0}, "method.term.temperature is 0; expected"),
        (
            {"method": "mlkd", "temperatures": ["a"]},
            r"method.term.temperatures is \['a'\]; expected a list of 1 to 1000 values, each a number above 0",
        ),
    ],
    ids=lambda value: value["method"] if isinstance(value, dict) else "",
)
def test_an_option_out_of_its_range_is_refused(term, said):
    with pytest.raises(InputError, match=said):
        experiment.create(tiny.taught() | {"method": {"term": term}})


@pytest.mark.parametrize(
    ("term", "said"),
    [
        (
            {"method": "rkd_distance", "on": "feature:9"},
            r"the student has no feature:9; expected feature:0 .* to feature:2",
        ),
        ({"method": "kd", "on": "pooled"}, r"compares \[16, 4\] with \[16, 8\]; expected equal shapes"),
        ({"method": "cross_entropy", "on": "pooled"}, r"compares \[16, 4\] with \[16, 10\]; expected equal"),
        ({"method": "adversarial", "on": "pooled"}, r"reads \[32, 4\] of the student, \[32, 8\] of the teacher"),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else "",
)
def test_a_loss_that_does_not_fit_the_networks_is_refused(term, said):
    with pytest.raises(InputError, match=said):
        experiment.create(tiny.taught() | {"method": {"term": term}})


def test_the_optimizer_of_a_term_without_parameters_is_refused():
    said = r"method.kd.optimizer is {'momentum': 0.5}; expected none, as the term trains no parameters"
    with pytest.raises(InputError, match=said):
        experiment.create(tiny.taught() | {"method": {"kd": {"optimizer": {"momentum": 0.5}}}})
    assert experiment.create(tiny.taught() | {"method": {"kd": {"optimizer": {}}}}).teacher


def test_a_config_that_is_no_tree_is_refused():
    with pytest.raises(InputError, match=r"the config is 'kd'; expected a tree, as kd_jax.config.base.get_config"):
        experiment.create("kd")


def test_a_mistake_in_a_loss_shows_before_anything_is_trained(monkeypatch):
    def broken(student, teacher):
        return student @ teacher

    monkeypatch.setitem(methods.METHODS, "broken", methods.from_loss(broken))
    config = tiny.taught() | {"method": {"broken": {}}}
    with pytest.raises(InputError, match=r"method.broken: .*test_experiment.py:\d+: TypeError: dot_general"):
        experiment.create(config)


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("optimizer", "method", {"name": "adam"}, "it is now method.TERM.optimizer"),
        ("teacher", "batch_statistics", True, "it is now teacher.mode, which is 'eval' or 'train'"),
        ("dataset", "labelled", 20, "it is now dataset.labeled"),
        ("dataset", "unlabelled", False, "it is now dataset.unlabeled"),
        ("model", "freeze", "encoder", "it is now 'backbone_and_norms'"),
        ("model", "freeze", "convolutions", "it is now 'backbone'"),
    ],
)
def test_a_key_or_word_of_an_older_version_is_refused_with_todays(section, key, value, said):
    config = tiny.config()
    config[section][key] = value
    with pytest.raises(InputError, match=rf"{section}.{key} is .* of an older version; {said}"):
        experiment.create(config)


def test_a_network_whose_stem_does_not_suit_the_images_warns():
    with pytest.warns(UserWarning, match='use stem="cifar"'):
        experiment.create(tiny.config(**{"model.stem": "imagenet", "dataset.image_size": 16}))


def test_the_labels_that_a_student_lacks_its_teacher_has():
    config = base.with_teacher(base.get_config(), base.get_config())
    config.update_from_flattened_dict({f"teacher.config.{key}": value for key, value in tiny.CHANGES.items()})
    config.update_from_flattened_dict(tiny.CHANGES | {"dataset.labeled": 20})
    made = experiment.create(config)
    assert (made.dataset.train.labels >= 0).sum() == 20
    assert (made.teacher.untrained.dataset.train.labels >= 0).all()


def test_runs_that_differ_in_the_teacher_differ_in_their_hash():
    first, second = tiny.taught(), tiny.taught()
    second["teacher"]["config"]["seed"] = 1
    assert experiment.create(first).digest != experiment.create(second).digest


def test_the_validation_images_do_not_depend_on_the_seed():
    first, second = (experiment.create(tiny.config(seed=seed)).dataset.validation for seed in (0, 1))
    np.testing.assert_array_equal(first.images, second.images)


def test_one_step_per_call_on_a_cpu_and_never_more_than_an_epoch():
    assert experiment.create(tiny.config()).steps_per_call == 1
    assert experiment.create(tiny.config(**{"train.steps_per_call": 50})).steps_per_call == 4


def test_the_devices_say_what_a_step_is_made_for_and_not_the_process(monkeypatch):
    monkeypatch.setattr("kd_jax.sharding.platform", lambda mesh: "tpu")
    options = {"train.accumulate": 4, "train.steps": 120, "train.batch_size": 4}
    made = tiny.create(tiny.METHODS["cross_entropy"], **options)
    assert (made.steps_per_call, made.options.unroll) == (12, False)
    monkeypatch.undo()
    made = tiny.create(tiny.METHODS["cross_entropy"], **options)
    assert (made.steps_per_call, made.options.unroll) == (1, True)


def augmented(**overrides):
    """(the images of a batch as they are stored, the batch that a step makes of them)."""
    made = tiny.create(tiny.METHODS["cross_entropy"], **overrides)
    raw = made.feed().example
    return raw, jax.jit(made.components.augment)(jax.random.key(0), raw)[0]


def test_images_are_cropped_as_the_config_says():
    for kind, flips in (("crop", False), ("crop_flip", True)):
        crops = np.asarray(augmented(**{"dataset.augment": kind})[1].crop)
        assert len(set(crops.tolist())) > 8
        assert (crops % 2).any() == flips


def test_targets_are_smoothed_as_the_config_says():
    raw, batch = augmented(**{"train.label_smoothing": 0.2})
    np.testing.assert_allclose(batch.targets, 0.8 * np.eye(4)[raw.labels] + 0.05, rtol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [{"dataset.cutout": 0.5}, {"train.cutmix": 1.0}, {"dataset.augment": "resized_crop", "dataset.least_area": 1.0}],
)
def test_each_augmentation_of_the_config_reaches_the_images(changes):
    plain, changed = (augmented(**{"dataset.augment": "none"} | given)[1].images for given in ({}, changes))
    if "dataset.least_area" in changes:  # a square that is the whole image, or a little less of it
        plain = augmented(**{"dataset.augment": "resized_crop", "dataset.least_area": 0.08})[1].images
    assert not np.array_equal(plain, changed)


def test_images_are_mixed_as_the_config_says():
    targets = np.asarray(augmented(**{"train.mixup": 1.0})[1].targets)
    assert ((targets > 0).sum(-1) == 2).any()


def test_images_are_normalized_by_the_training_images():
    made = tiny.create(tiny.METHODS["cross_entropy"])
    pixels = made.dataset.train.images.astype(np.float64) / 255
    expected = (pixels - pixels.mean()) / pixels.std()
    np.testing.assert_allclose(made.components.prepare(made.dataset.train.images), expected, rtol=1e-4, atol=1e-5)


def test_images_have_the_precision_of_the_config():
    made = tiny.create(tiny.METHODS["cross_entropy"], precision="bfloat16")
    assert jax.eval_shape(made.components.prepare, made.dataset.train.images).dtype == jnp.bfloat16


def test_the_options_of_a_step_are_the_configs():
    options = tiny.create(tiny.METHODS["cross_entropy"], **{"train.ema": 0.9, "train.accumulate": 4}).options
    assert (options.ema, options.micro_batches) == (0.9, 4)
    assert (options.num_examples, options.steps_per_epoch) == (48, 3)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_the_optimizers_options_are_the_configs(name):
    made = tiny.create(
        tiny.METHODS["cross_entropy"],
        **{"optimizer.name": name, "optimizer.b1": 0.5, "optimizer.b2": 0.75, "optimizer.weight_decay": 0.0},
        **{"optimizer.schedule": "constant"},
    )
    optimizer, hyper = made.components.optimizer, made.hyper
    params = {"student": {("fc", "bias"): jnp.ones(1)}, "cross_entropy": {}}
    state = optimizer.init({"student": {"fc": {"bias": jnp.ones(1)}}, "cross_entropy": {}})
    p, m, v = 1.0, 0.0, 0.0
    for t, g in enumerate([0.5, -1.0, 0.25], start=1):
        m, v = 0.5 * m + 0.5 * g, 0.75 * v + 0.25 * g * g
        p -= 0.05 * (m / (1 - 0.5**t)) / (np.sqrt(v / (1 - 0.75**t)) + 1e-8)
        gradients = {"student": {("fc", "bias"): jnp.full(1, g)}, "cross_entropy": {}}
        params, state = optimizer.update(gradients, state, params, step=jnp.int32(t - 1), hyper=hyper, trains={})
        np.testing.assert_allclose(params["student"][("fc", "bias")], [p], rtol=1e-5)


def test_the_rate_falls_over_the_run_after_a_warmup_in_its_epochs():
    options = {"train.steps": 12, "optimizer.warmup_epochs": 1.0}
    made = tiny.create(tiny.METHODS["cross_entropy"], **options)  # three steps an epoch
    rates = [float(made.components.optimizer.learning_rate(jnp.int32(step), made.hyper)) for step in range(12)]
    falling = 0.5 * (1 + np.cos(np.pi * np.arange(9) / 9))
    np.testing.assert_allclose(rates, 0.05 * np.concatenate([[0.25, 0.5, 0.75], falling]), rtol=1e-5)


def test_an_epoch_has_as_many_steps_as_whole_batches():
    made = tiny.create(tiny.METHODS["cross_entropy"], **{"train.batch_size": 14, "train.steps": 0, "train.epochs": 5})
    assert (made.options.steps_per_epoch, made.steps) == (3, 15)


def test_the_same_weights_in_another_place_are_the_same_run(tmp_path):
    network = models.create("resnet8", 10, width=1 / 8)
    digests = []
    for seed, place in ((0, "a"), (0, "b"), (1, "c")):
        variables = jax.jit(network.init)(jax.random.key(seed), jnp.zeros((1, 8, 8, 1)))
        save_file(torch_names.to_state_dict(variables, network), tmp_path / f"{place}.safetensors")
        config = tiny.config(**{"model.pretrained": str(tmp_path / f"{place}.safetensors")})
        digests.append(runs.digest(identity.identify(config)))
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("changed", ["images", "labels", "test images", "test labels", "shape"])
def test_other_arrays_are_another_run(changed):
    images, labels = np.arange(12 * 16, dtype=np.uint8).reshape(12, 4, 4), np.arange(12) % 2
    train, test = [images, labels], [images[::-1], labels]
    if changed == "shape":
        train[0], test[0] = images.reshape(12, 2, 8), images[::-1].reshape(12, 2, 8)
    else:
        part = test if changed.startswith("test") else train
        part[changed.endswith("labels")] = part[changed.endswith("labels")][::-1]
    prints = [
        memory.from_arrays(tuple(a), tuple(b)).fingerprint
        for a, b in ((train, test), ((images, labels), (images[::-1], labels)))
    ]
    assert prints[0] != prints[1]


def test_a_config_dict_and_a_plain_config_are_the_same_experiment():
    from ml_collections import ConfigDict

    plain = tiny.config()
    assert experiment.create(ConfigDict(plain)).digest == experiment.create(plain).digest


def test_what_an_experiment_compiles_for_a_cpu_keeps_its_barriers():
    def doubled(x, **_):
        return jax.lax.optimization_barrier(2 * x) + 1

    text = tiny.create(tiny.METHODS["cross_entropy"]).jit(doubled).lower(jnp.ones(8)).compile().as_text()
    assert "opt-barrier" in text
