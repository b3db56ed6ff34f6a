"""The settings of a run: no key is ignored, and what is compared is what was written."""

from __future__ import annotations

from typing import Any

import pytest
from monai.bundle import ConfigParser

from scripts.core.errors import InputError
from scripts.core.run_folder import RunFolder
from scripts.core.settings import check_keys, evaluated_settings, raw_settings, settings_of_result, unused_keys

CONFIG: dict[str, Any] = {
    "rate": 0.1,
    "card": {"stage": "toy", "grid": {"size": 3}},
    "noise": {"_target_": "RandGaussianNoised", "keys": "image", "std": "@rate"},
    "train": {"dataset": [1, 2], "inner": {"handlers": ["@card"]}, "inferer": None},
    "run": ["$print(@noise, @train#dataset, @train::inner#handlers)"],
}


def parser(**changes: Any) -> ConfigParser:
    found = ConfigParser()
    for key, value in {**CONFIG, **changes}.items():
        found[key] = value
    return found


def test_keys_in_use_pass() -> None:
    assert unused_keys(CONFIG) == []
    check_keys(parser())


@pytest.mark.parametrize(
    ("changes", "unused"),
    [
        ({"ratte": 1}, ["ratte"]),
        ({"train": {**CONFIG["train"], "dataste": 1}}, ["train#dataste"]),
        ({"train": {**CONFIG["train"], "inner": {"handlers": ["@card"], "a": 1}}}, ["train#inner#a"]),
        # A mapping that is referred to as a whole uses all that is in it.
        ({"card": {"anything": {"goes": 1}}}, []),
        ({"_note": "keys with an underscore are remarks"}, []),
    ],
)
def test_a_key_that_nothing_refers_to_is_found_at_any_depth(changes: dict[str, Any], unused: list[str]) -> None:
    assert unused_keys({**CONFIG, **changes}) == unused


def test_the_nearest_key_is_named() -> None:
    with pytest.raises(InputError, match="key 'ratte': found that no part of this config uses it, expected 'rate', p"):
        check_keys(parser(ratte=1))
    with pytest.raises(InputError, match=r"key 'train#dataste': .* expected 'dataset', perhaps"):
        check_keys(parser(train={**CONFIG["train"], "dataste": 1}))


def test_an_argument_that_its_component_does_not_take_is_named() -> None:
    noise = {**CONFIG["noise"], "strd": 0.1}
    with pytest.raises(InputError, match=r"key 'noise#strd': found an argument .* expected 'std', perhaps"):
        check_keys(parser(noise=noise))
    # In a list too; but not where a component is switched off, or takes whatever it is given.
    with pytest.raises(InputError, match="key 'train#inner#handlers#0#strd'"):
        check_keys(parser(train={**CONFIG["train"], "inner": {"handlers": [noise, "@card"]}}))
    check_keys(parser(noise={**noise, "_disabled_": True}))
    check_keys(parser(noise={"_target_": "builtins.dict", "anything": "@rate"}))


def test_settings_are_read_as_they_were_written() -> None:
    found = parser(
        raw={"_target_": "scripts.core.settings.raw_settings", "keys": ["noise", "rate"], "names": ["mr", "ct"]},
        resume=True,
        log_dir="here",
        plain={"_target_": "scripts.core.settings.settings_of_result"},
    )
    assert found.get_parsed_content("raw") == {"mr": CONFIG["noise"], "ct": 0.1}
    plain = found.get_parsed_content("plain")
    assert (plain["rate"], plain["noise#std"]) == (0.1, "@rate")
    # Not what decides no result: places, intervals, lists of cases (compared by content), the card.
    assert not {"resume", "log_dir", "run", "train#dataset", "card#stage"} & set(plain)


def test_outside_a_config_there_is_nothing_to_check() -> None:
    for build in (lambda: RunFolder(root="x", card={}), settings_of_result, lambda: raw_settings(["a"], ["b"])):
        with pytest.raises(RuntimeError, match="no config is being parsed here"):
            build()


def test_evaluated_settings_are_the_values_of_expressions_that_can_be_written_down() -> None:
    settings = parser(
        double="$2 * @rate", sizes="$(@double, None)", never="$1 / 0", run=["$@noise", "$@sizes", "$@card"]
    )
    assert evaluated_settings(settings) == {}, "nothing was asked for yet"
    settings.get_parsed_content("run")
    grid = {"stage": "toy", "grid": {"size": 3}}
    # Neither the transform nor what makes it up, and not what nothing asked for; run's first part is no plain value.
    assert evaluated_settings(settings) == {"rate": 0.1, "card": grid, "double": 0.2, "sizes": (0.2, None)}
