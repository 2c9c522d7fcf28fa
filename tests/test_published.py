"""What the methods were published with: a record for each, of terms that make a method at every scale."""

import pytest

from kd_jax import methods
from kd_jax.config import checks, experiment, recipes
from kd_jax.config.pairs import PAIRS
from kd_jax.config.published import PUBLISHED
from kd_jax.config.record import fitted
from kd_jax.configs import imagenet, method
from kd_jax.errors import InputError

SETTINGS = [*PUBLISHED, *(f"{name},imagenet" for name, record in PUBLISHED.items() if record.imagenet)]
SCALES = ("", ",small", ",lite", ",laptop", ",smoke")


def test_every_method_has_a_record():
    own = {name for name in methods.METHODS if not name.startswith("original_")} - {"squared_error"}  # of a doctest
    assert own - PUBLISHED.keys() == set()


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_published_terms_make_a_method_at_every_scale(setting):
    name, _, which = setting.partition(",")
    for scale in SCALES:
        config = method.get_config(f"{name}{scale},{which}".rstrip(",")).to_dict()
        checks.check(config)
        made = methods.create(config["method"])
        assert made.views <= 1 + len(config["dataset"]["extra_views"])
        assert (config["teacher"]["kind"] != "none") == made.needs_teacher


@pytest.mark.parametrize("setting", SETTINGS)
def test_some_term_counts_in_every_epoch_at_every_scale(setting):
    name, _, which = setting.partition(",")
    for scale in SCALES:
        config = method.get_config(f"{name}{scale},{which}".rstrip(","))
        terms = config.method.to_dict().values()
        for epoch in range(recipes.epochs(config)):
            windows = [options.get("epochs", [0, None]) for options in terms]
            assert any(first <= epoch and (last is None or epoch < last) for first, last in windows)
        assert all(
            options["decay_epochs"][1] <= recipes.epochs(config) for options in terms if "decay_epochs" in options
        )


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_record_says_whence_it_is(name):
    record = PUBLISHED[name]
    assert bool(record.paper) == bool(record.venue)
    for text in (record.pairs, record.differs, record.here):
        assert not text or text.endswith(".")


def test_no_two_methods_have_one_title():
    titles = [record.title for record in PUBLISHED.values()]
    assert all(titles)
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_terms_of_every_pair_make_a_method(name):
    record = PUBLISHED[name]
    for pair in PAIRS.values():
        large = pair.data == "imagenet"
        if not large or record.imagenet:
            terms, epochs = record.terms(pair.like, imagenet=large)
            assert methods.create(fitted(terms, epochs, 1.0)).needs_teacher == record.teacher


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_what_is_other_for_a_pair_is_of_a_term_that_the_method_has_there(name):
    record = PUBLISHED[name]
    for pair, terms in record.of_pairs.items():
        usual = record.imagenet if PAIRS[pair].data == "imagenet" else record.cifar100
        assert terms.keys() <= usual.keys()
        assert PAIRS[pair].like == pair


@pytest.mark.parametrize(
    ("name", "pair", "expected"),
    [
        ("dkd", "wrn_40_2-shufflenetv1", {"dkd.beta": 8.0, "cross_entropy.weight": 1.0}),
        ("dkd", "vgg13-mobilenetv2_half", {"dkd.beta": 6.0, "dkd.temperature": 4.0}),
        ("dkd", "resnet50-mobilenetv1", {"dkd.beta": 2.0, "dkd.temperature": 1.0}),
        ("rld", "vgg13-vgg8", {"rld.beta": 8.0}),
        ("reviewkd", "resnet32x4-shufflenetv2", {"reviewkd.weight": 8.0, "reviewkd.preactivation": None}),
        ("reviewkd", "resnet50-mobilenetv1", {"reviewkd.weight": 8.0, "reviewkd.preactivation": True}),
        ("catkd", "wrn_40_2-shufflenetv1", {"catkd.weight": 80.0, "catkd.size": 4, "catkd.normalize": True}),
        ("catkd", "wrn_40_2-wrn_16_2", {"catkd.weight": 12.0, "catkd.size": 2, "catkd.normalize": None}),
        ("kd_ls", "resnet110-resnet20", {"kd.weight": 12.0, "kd.temperature": 4.0, "cross_entropy.weight": 0.1}),
        ("kd_ls", "resnet50-mobilenetv1", {"kd.weight": 9.0, "cross_entropy.weight": 0.5}),
        ("kd++", "resnet50-mobilenetv2_half", {"kd.weight": 3.0, "nd.weight": 0.5, "kd.temperature": 4.0}),
        ("nd", "resnet50-mobilenetv2_half", {"nd.weight": 0.5}),
        (
            "wkd_features",
            "resnet50-mobilenetv1",
            {"wkd_features.weight": 0.005, "wkd_features.decay_epochs": [30, 100]},
        ),
        ("sdd", "resnet50-vgg8", {"sdd.scales": [1, 2, 4]}),
    ],
)
def test_a_pair_has_the_values_of_its_authors(name, pair, expected):
    terms, _ = PUBLISHED[name].terms(pair, imagenet=PAIRS[pair].data == "imagenet")
    found = {key: terms[key.partition(".")[0]].get(key.partition(".")[2]) for key in expected}
    assert found == expected


def test_the_experiment_for_imagenet_has_the_terms_of_its_pair():
    betas = [imagenet.get_config(arg).method.dkd.beta for arg in ("dkd", "mobilenetv1,dkd")]
    assert betas == [0.5, 2.0]


@pytest.mark.parametrize(("warmup", "epochs", "expected"), [(20, 60, 20), (20, 59, 5), (20, 6, 1), (20, 4, 1)])
def test_a_warmup_of_more_than_a_third_of_the_run_keeps_its_share(warmup, epochs, expected):
    terms = fitted({"dkd": {"warmup_epochs": warmup}}, epochs, epochs / 240)
    assert terms == {"dkd": {"warmup_epochs": expected}}


@pytest.mark.parametrize(
    ("window", "epochs", "expected"),
    [([150, 240], 240, [150, 240]), ([150, 240], 60, [38, 60]), ([150, 240], 1, [1, 2]), ([0, 30], 4, [0, 1])],
)
def test_a_window_keeps_its_share_of_the_run(window, epochs, expected):
    assert fitted({"term": {"decay_epochs": window}}, epochs, epochs / 240) == {"term": {"decay_epochs": expected}}


def test_two_phases_meet_at_every_length():
    for epochs in range(1, 300):
        terms = fitted(PUBLISHED["fsp"].cifar100, epochs, epochs / 270)
        assert terms["fsp"]["epochs"][1] == terms["cross_entropy"]["epochs"][0]


def test_the_published_epochs_are_kept_at_the_published_length():
    for record in PUBLISHED.values():
        assert fitted(record.cifar100, record.epochs, 1.0) == record.cifar100


def test_a_record_is_not_changed_by_a_config():
    config = method.get_config("crd,smoke")
    config.method.crd.negatives = 1
    assert method.get_config("crd").method.crd.negatives == PUBLISHED["crd"].cifar100["crd"]["negatives"] == 16384


def test_imagenet_has_its_own_terms():
    assert method.get_config("kd,imagenet").method.kd.to_dict() == {"weight": 0.5, "temperature": 1.0}
    assert method.get_config("kd").method.kd.to_dict() == {"weight": 0.9, "temperature": 4.0}


def test_a_warmup_is_a_share_of_the_epochs_for_which_it_was_published(monkeypatch):
    record = PUBLISHED["dkd"]._replace(
        imagenet={"dkd": {"warmup_epochs": 50}}, cifar100={"dkd": {"warmup_epochs": 120}}
    )
    monkeypatch.setitem(PUBLISHED, "dkd", record)
    assert method.get_config("dkd,imagenet").method.dkd.warmup_epochs == 30
    assert method.get_config("dkd").method.dkd.warmup_epochs == 30


def test_small_data_has_smaller_options():
    negatives = {scale: method.get_config(f"crd{scale}").method.crd.negatives for scale in SCALES}
    assert negatives == {"": 16384, ",small": 4096, ",lite": 256, ",laptop": 256, ",smoke": 256}


def test_the_epochs_of_a_run_that_counts_steps():
    assert {scale: recipes.epochs(recipes.student(scale)) for scale in recipes.SCALES} == {
        "": 60,
        "small": 60,
        "lite": 6,
        "laptop": 6,
        "smoke": 4,
    }


def test_keys_outside_of_the_terms_are_set():
    assert method.get_config("mlkd").dataset.extra_views == ("randaugment",)
    assert method.get_config("kd++").optimizer.learning_rate == 0.1


@pytest.mark.parametrize("name", ["kd", "dkd", "crd", "fitnet", "simkd", "mlkd", "rkd", "adversarial"])
def test_the_experiment_of_a_method_is_its_record(name):
    for scale in SCALES:
        own = experiment(name).get_config(scale.removeprefix(","))
        assert own.to_dict() == method.get_config(f"{name}{scale}").to_dict()
        assert own.name == name


@pytest.mark.parametrize(
    ("arg", "said"),
    [
        ("dkdd", "the method is 'dkdd'; expected one of: .*; did you mean 'dkd'?"),
        ("", "the method is ''; expected one of"),
        ("dkd,smalll", "a part of the config's argument is 'smalll'; expected one of.*; did you mean 'small'?"),
        ("dkd,small,laptop", "the config's argument names small and laptop; expected one scale"),
        ("sp,imagenet", "sp has no terms for ImageNet; expected no 'imagenet', or one of: .*dkd"),
    ],
)
def test_an_argument_that_cannot_be_is_refused_with_the_choices(arg, said):
    with pytest.raises(InputError, match=said):
        method.get_config(arg)


def test_function_matching_sees_no_label_and_mixes_every_image():
    config = experiment("function_matching").get_config("small")
    assert config.method.to_dict() == {"kd": {"weight": 1.0, "temperature": 1.0}}
    assert config.train.mixup == 1.0
    assert config.train.epochs == 5 * experiment("kd").get_config("small").train.epochs
