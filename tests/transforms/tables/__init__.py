"""Families by subject: every module here has `CASES`, which `tests.transforms.cases` collects."""
