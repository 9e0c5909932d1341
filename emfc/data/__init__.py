"""Reading and writing examples, splits, and preprocessing that is itself a bijection."""

from __future__ import annotations

from emfc.data.arrange import arrange_examples
from emfc.data.atomic import check_target, replacing, write_text
from emfc.data.columns import column_names, distinct_names, first_few, nearest_name
from emfc.data.preprocess import (
    Chain,
    Dequantise,
    Logit,
    Scale,
    Standardise,
    Step,
    preprocess_from_config,
)
from emfc.data.recipe import Recipe, parse_recipe
from emfc.data.splits import Split, split_rows
from emfc.data.tables import check_table_target, read_matrix, read_table, write_table

__all__ = [
    "Chain",
    "Dequantise",
    "Logit",
    "Recipe",
    "Scale",
    "Split",
    "Standardise",
    "Step",
    "arrange_examples",
    "check_table_target",
    "check_target",
    "column_names",
    "distinct_names",
    "first_few",
    "nearest_name",
    "parse_recipe",
    "preprocess_from_config",
    "read_matrix",
    "read_table",
    "replacing",
    "split_rows",
    "write_table",
    "write_text",
]
