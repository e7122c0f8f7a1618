"""Hypothesis strategies for recipes and benchmarks, shared by the tests of several modules."""

from typing import Any

from hypothesis import reject, settings
from hypothesis import strategies as st

from resnet_bench.base.errors import UserError
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.changes import override_nested
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.recipe.schema import parse

# On a machine with other work to do, an example that took long is not a failure.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")

Table = dict[str, Any]

fractions = st.floats(0, 0.99)
positive = st.floats(1e-8, 1e3)
channels = st.tuples(positive, positive, positive).map(list)
words = st.text(max_size=20)
slugs = st.from_regex(r"[a-z0-9]{1,8}(-[a-z0-9]{1,8}){0,2}", fullmatch=True)


def optional(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Table]:
    """A table with any choice of these keys."""
    return st.fixed_dictionaries({}, optional=fields)


sgd_settings = st.fixed_dictionaries(
    {"lr": positive, "momentum": st.floats(0.1, 0.99)},
    optional={"nesterov": st.booleans(), "weight_decay": fractions},
)

muons = st.fixed_dictionaries(
    {"name": st.just("muon"), "lr": positive, "rest": sgd_settings},
    optional={"head": sgd_settings, "steps": st.integers(1, 10), "normalize_filters": st.booleans()},
)

optimizers = st.one_of(
    st.fixed_dictionaries(
        {"name": st.just("sgd"), "lr": positive, "momentum": st.floats(0.1, 0.99)},
        optional={"nesterov": st.booleans(), "weight_decay": fractions},
    ),
    st.fixed_dictionaries(
        {"name": st.sampled_from(["adam", "adamw"]), "lr": positive},
        optional={
            "betas": st.tuples(fractions, fractions).map(list),
            "eps": positive,
            "weight_decay": fractions,
        },
    ),
    muons,
)


@st.composite
def schedules(draw: st.DrawFn, epochs: int) -> Table:
    """A schedule of exactly this many epochs."""
    name = draw(st.sampled_from(["constant", "one_cycle", "multi_step", "phases", "plateau", "cosine", "linear"]))
    if name == "multi_step" and epochs > 1:
        milestones = draw(st.sets(st.integers(1, epochs - 1), min_size=1, max_size=4))
        return {"name": name, "milestones": sorted(milestones), "factor": draw(st.floats(0.01, 0.9))}
    if name == "phases":
        ends = sorted(draw(st.sets(st.integers(1, epochs), max_size=3)) | {epochs})
        lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        phases = [{"epochs": length, "factor": draw(positive)} for length in lengths]
        return {"name": name, "phases": phases, **draw(optional(restart_momentum=st.booleans()))}
    if name == "one_cycle":
        return {"name": name, **draw(optional(rising_fraction=st.floats(0.2, 0.8), cycle_momentum=st.booleans()))}
    if name == "plateau":
        return {"name": name, **draw(optional(patience=st.integers(0, 20), min_lr=fractions))}
    if name == "cosine":
        return {"name": name, **draw(optional(final_factor=fractions))}
    if name == "linear":
        return {"name": name, **draw(optional(rising_fraction=fractions, final_factor=fractions))}
    return {"name": "constant"}


@st.composite
def augmentations(draw: st.DrawFn, epochs: int) -> Table:
    """An augmentation for a run of so many epochs."""
    table: Table = draw(optional(crop_padding=st.integers(0, 31), padding_mode=st.sampled_from(["zeros", "reflect"])))
    if draw(st.booleans()):
        table |= {"flip": True, **draw(optional(flip_mode=st.sampled_from(["random", "alternating"])))}
    jitters = st.fixed_dictionaries({"brightness": st.floats(0.01, 1)}, optional={"contrast": st.floats(0, 0.9)})
    table |= draw(optional(resize=st.integers(8, 512), jitter=jitters))
    if draw(st.booleans()):
        return table
    first = draw(st.floats(0.1, 0.9)) * epochs
    lengths = [first, epochs - first]
    return table | {"sizes": [{"pixels": draw(st.integers(8, 32)), "epochs": length} for length in lengths]}


@st.composite
def recipe_tables(draw: st.DrawFn) -> Table:
    """Nested tables of a valid recipe, as ``tomllib`` would return them."""
    epochs = draw(st.integers(1, 40))
    data: Table = {
        "dataset": draw(st.sampled_from(["cifar10", "cifar100"])),
        "mean": draw(channels),
        "std": draw(channels),
        **draw(optional(train_images=st.integers(200, 50_000), test_images=st.integers(100, 10_000))),
    }
    held_out = draw(st.booleans())
    if held_out:
        data["validation"] = {"images": draw(st.integers(2, 100)), **draw(optional(seed=st.integers(0, 2**32 - 1)))}
    splits = ["test", "validation"] if held_out else ["test"]
    option_values = st.one_of(
        st.booleans(),
        st.integers(2, 10),
        st.floats(-1e3, 1e3).filter(lambda value: value not in (0, 1)),
        words.filter(lambda value: value != "none"),
    )
    return {
        "data": data,
        "augmentation": draw(augmentations(epochs)),
        "model": {
            "name": draw(slugs),
            **draw(
                optional(
                    num_classes=st.integers(100, 1000),
                    whitening=optional(kernel_size=st.integers(2, 5), eps=positive, images=st.integers(1, 5000)),
                    options=st.dictionaries(
                        st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True), option_values, max_size=3
                    ),
                )
            ),
            "allow_unused_classes": True,
        },
        "optimizer": draw(optimizers),
        "schedule": draw(schedules(epochs)),
        "training": {
            "epochs": epochs,
            "batch_size": draw(st.integers(2, 90)),
            "last_batch": "drop",
            **draw(optional(label_smoothing=fractions, train_accuracy=st.sampled_from(["running", "separate_pass"]))),
            **draw(st.one_of(optional(clip_value=positive), optional(clip_norm=positive))),
            **draw(
                optional(
                    freeze=st.lists(
                        st.fixed_dictionaries(
                            {
                                "parameters": words.filter(bool),
                                "after_epochs": st.floats(0, 0.99).map(lambda x: x * epochs),
                            }
                        ),
                        min_size=1,
                        max_size=2,
                    )
                )
            ),
        },
        "evaluation": {
            "batch_size": draw(st.integers(2, 900)),
            **draw(
                optional(
                    mode=st.sampled_from(["eval", "batch_statistics"]),
                    averaging=st.sampled_from(["images", "batches"]),
                    shuffle=st.booleans(),
                    before_training=st.booleans(),
                    splits=st.permutations(splits).map(list),
                    every=st.integers(1, epochs),
                    test_time_augmentation=st.fixed_dictionaries(
                        {"mirror": st.just(True)}, optional={"shift": st.integers(0, 8)}
                    ),
                )
            ),
        },
    }


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Valid recipes of every kind."""
    table = draw(recipe_tables())
    try:
        return parse(Recipe, table, where="generated")
    except UserError:
        # Such as a last evaluation batch of a single image: rare enough to be drawn again.
        reject()


@st.composite
def scaled(draw: st.DrawFn, recipe: Recipe) -> Recipe:
    """The recipe over another number of epochs, its schedule scaled."""
    changes = {"training": {"epochs": draw(st.integers(1, 60))}, "evaluation": {"every": 1}}
    try:
        return override_nested(recipe, changes, where="generated")
    except UserError:
        # Such as a one-cycle schedule of a single step.
        reject()


@st.composite
def benchmarks(draw: st.DrawFn) -> Benchmark:
    """Valid benchmarks; the smoke profile is now another number of epochs, now another recipe altogether."""
    recipe = draw(recipes())
    profiles = {"smoke": draw(st.one_of(scaled(recipe), recipes()))} if draw(st.booleans()) else {}
    claim = st.one_of(
        st.fixed_dictionaries({"value": st.from_regex(r"[1-9][0-9](\.[0-9]{1,3})?", fullmatch=True)}),
        st.fixed_dictionaries({"at_least": st.floats(0, 100)}),
        st.tuples(st.floats(0, 50), st.floats(50, 100)).map(lambda ends: {"range": list(ends)}),
    )
    fact = st.fixed_dictionaries(
        {"fact": words, "status": st.sampled_from(["stated", "recovered", "inferred", "ambiguous"])},
        optional={"keys": st.lists(st.sampled_from(["optimizer.lr", "model.options.dropout"])), "alternative": words},
    )
    table = {
        "name": draw(slugs),
        "source": {"title": draw(words), "kind": "ours", "facts": draw(st.lists(fact, max_size=2))},
        "claims": draw(st.lists(claim, max_size=2)),
        "recipe": recipe,
        "profiles": profiles,
    }
    return parse(Benchmark, table, where="generated")
