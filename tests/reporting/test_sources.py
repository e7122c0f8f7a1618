"""What today's files say of sources, beside earlier records."""

from resnet_bench.recipe.benchmark import Benchmark, Fact
from resnet_bench.recipe.changes import override
from resnet_bench.reporting.runs import RunGroup
from resnet_bench.reporting.sources import as_known_today

FACT = Fact(fact="What the source's log says.", status="recovered")


def ranged(groups: list[RunGroup]) -> RunGroup:
    (found,) = [group for group in groups if group.name == "ranged"]
    return found


def facts(group: RunGroup) -> tuple[Fact, ...]:
    assert group.definition is not None
    return group.definition.source.facts


def test_facts_are_those_of_todays_file_where_it_has_the_recipe(
    groups: list[RunGroup], benchmarks: dict[str, Benchmark]
) -> None:
    recorded = benchmarks["ranged"]
    today = recorded.model_copy(update={"source": recorded.source.model_copy(update={"facts": (FACT,)})})
    assert facts(as_known_today(ranged(groups), {"ranged": today})) == (FACT,)
    other = today.model_copy(update={"recipe": override(recorded.recipe, {"optimizer.lr": 0.5})})
    assert facts(as_known_today(ranged(groups), {"ranged": other})) == recorded.source.facts
    assert as_known_today(ranged(groups), {}) == ranged(groups)


def test_what_is_claimed_stays_as_it_was_recorded(groups: list[RunGroup], benchmarks: dict[str, Benchmark]) -> None:
    recorded = benchmarks["ranged"]
    today = recorded.model_copy(update={"claims": benchmarks["at-least"].claims})
    found = as_known_today(ranged(groups), {"ranged": today}).definition
    assert found is not None
    assert found.claims == recorded.claims
