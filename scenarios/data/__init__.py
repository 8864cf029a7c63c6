"""Labelled data sets, by name or file: `table` is all of them, `labelled` what each of them is."""
