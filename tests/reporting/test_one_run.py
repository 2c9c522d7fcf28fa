"""The page of one run."""

from kd_jax import runs
from kd_jax.reporting import finished, one_run
from kd_jax.reporting.saliency import PNG_SIGNATURE
from tests import tiny
from tests.reporting.made_up import groups, row, text, write_run


def test_the_recipe_is_said_in_words(tmp_path):
    teacher = runs.identity(tiny.config(), "f" * 64, None)
    method = {"cross_entropy": {"weight": 0.1}, "kd": {"weight": 0.9, "temperature": 4.0}}
    settings = {"optimizer.learning_rate": 0.05, "train.epochs": 3, "train.batch_size": 16, "train.steps": 0}
    write_run(tmp_path / "one", "kd", 7, teacher=teacher, method=method, **settings)
    said = list(one_run.words(finished.read([str(tmp_path)])[0][0]))
    assert said[0].endswith(
        "with 1,234 parameters. Data: digits, 3 classes, 300 test images, 64 training images. Seed 7."
    )
    assert said[1].startswith("Trained for 3 epochs of 16 images a step by sgd: learning rate 0.05, schedule ")
    assert said[2:] == [
        "The loss: 0.1 cross_entropy + 0.9 kd (temperature 4).",
        "Its teacher is teacher, which has a test accuracy of 90.00%.",
        "It took 5 seconds on 1 x cpu, 100 images per second. The checkpoint of step 12 was tested.",
    ]


def test_every_class_has_its_recall_precision_and_f1(tmp_path):
    write_run(tmp_path / "one")  # of each of three classes 90 images are right, and 10 are taken for the next
    path = str(tmp_path / "one")
    details = runs.read_json(path, "test_details.json")
    details["confusion"][0] = [45, 5, 50]
    runs.write_json(f"{path}/test_details.json", details)
    (group,) = groups(tmp_path)
    sections = {section.title: text(section.blocks) for section in one_run.sections(group)}
    recall, precision = 45 / 100, 45 / 55  # of the third class 10 are taken for it
    f1 = 2 * recall * precision / (recall + precision)
    expected = ["100", *(f"{100 * x:.1f}" for x in (recall, precision, f1))]
    assert row(sections["Classes"], "cat")[1:] == expected


def test_a_run_without_a_teacher_says_so(tmp_path):
    write_run(tmp_path / "one")
    assert "It had no teacher." in one_run.words(finished.read([str(tmp_path)])[0][0])


def test_what_an_older_config_lacks_is_unknown(tmp_path):
    write_run(tmp_path / "one")
    saved = runs.read_json(str(tmp_path / "one"), "config.json")
    del saved["config"]["optimizer"], saved["data"]["train_images"]
    runs.write_json(str(tmp_path / "one" / "config.json"), saved)
    said = list(one_run.words(finished.read([str(tmp_path)])[0][0]))
    assert "by unknown: learning rate unknown" in said[1]


def test_the_page_has_every_measure_of_test_and_validation_and_the_picture(tmp_path):
    write_run(tmp_path / "one", "kd", teacher=runs.identity(tiny.config(), "f" * 64, None))
    path = str(tmp_path / "one")
    result = runs.read_json(path, "result.json")
    runs.write_json(f"{path}/result.json", result | {"validation": {"accuracy": 0.25, "nll": None}})
    (tmp_path / "one" / "saliency.png").write_bytes(PNG_SIGNATURE)
    (group,) = groups(tmp_path)
    sections = {section.title: section.blocks for section in one_run.sections(group)}
    assert row(text(sections["Results"]), "accuracy, %")[1:] == ["50.00", "25.00"]
    assert row(text(sections["Results"]), "agreement, %")[1:] == ["80.00", ""]
    assert row(text(sections["Results"]), "the teacher's accuracy, %")[1:] == ["90.00", ""]
    assert sections["Saliency maps"][0].png == PNG_SIGNATURE
    assert list(sections) == [
        "Recipe",
        "Results",
        "Learning curves",
        "Calibration",
        "Confusions",
        "Classes",
        "Saliency maps",
        "Size and latency",
        "Settings",
    ]


def test_the_best_epoch_and_a_test_set_that_was_read_in_training_are_said(tmp_path):
    best = {"on": "validation", "step": 8, "epoch": 2.0, "test": {"accuracy": 0.625}, "validation": None}
    write_run(tmp_path / "both", said={"best": best, "test_every_epoch": False})
    write_run(tmp_path / "read", seed=1, said={"best": best | {"on": "test"}, "test_every_epoch": True})
    write_run(tmp_path / "neither", seed=2, said={"best": None, "test_every_epoch": False})
    said = {}
    for name in ("both", "read", "neither"):
        (group,) = groups(tmp_path / name)
        said[name] = {section.title: text(section.blocks) for section in one_run.sections(group)}["Results"]
    marked = "The test set was read in training, which selected nothing above."
    assert [marked in said[name] for name in said] == [False, True, False]
    assert "The best on the validation split is epoch 2.0, with a test accuracy of 62.50%." in said["both"]
    assert "The best on the test split is epoch 2.0, with a test accuracy of 62.50%." in said["read"]
    assert "The best on" not in said["neither"]
