"""Options and the files they are read from. Imports the standard library only."""

from musubi_core.config.key_value import parse_key_values
from musubi_core.config.latent_shape import LatentShape
from musubi_core.config.option import OptionInfo, build, coerce, option, options_of, values_of
from musubi_core.config.read import parse_toml, read_config, read_json, read_toml
from musubi_core.config.suggest import nearest, unknown_key
from musubi_core.errors import ConfigError

__all__ = [
    "ConfigError",
    "LatentShape",
    "OptionInfo",
    "build",
    "coerce",
    "nearest",
    "option",
    "options_of",
    "parse_key_values",
    "parse_toml",
    "read_config",
    "read_json",
    "read_toml",
    "unknown_key",
    "values_of",
]
